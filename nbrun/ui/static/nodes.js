// @ts-check
/** The nodes that a view is made of: everything an agent wrote goes in as text. */

/**
 * @template {keyof HTMLElementTagNameMap} T
 * @param {ParentNode} parent @param {T} tag @param {string} name  the BEM element @param {string} block
 * @returns {HTMLElementTagNameMap[T]}
 */
export function add(parent, tag, name, block = "nbrun-card") {
  const node = document.createElement(tag);
  node.className = `${block}__${name}`;
  return parent.appendChild(node);
}

/**
 * For what an agent or a person wrote: of either direction, and turning nothing around it.
 * @template {keyof HTMLElementTagNameMap} T
 * @param {ParentNode} parent @param {T} tag @param {string} name  the BEM element
 */
export function addSaid(parent, tag, name) {
  const node = add(parent, tag, name);
  node.dir = "auto";
  return node;
}

/** @param {Element} parent @param {string} name  the BEM element */
export function addControl(parent, name) {
  const button = add(parent, "button", name);
  button.type = "button";
  leaveKeysTo(button);
  return button;
}

const ITS_KEYS = "data-lm-suppress-shortcuts"; // undocumented: JupyterLab and Notebook leave its keys to such a node

/** Without this a notebook takes Enter for itself. @param {HTMLElement} node */
export const leaveKeysTo = (node) => node.setAttribute(ITS_KEYS, "true");

/**
 * Ends the way of Enter where it was pressed: what JupyterLab (4.4) hears of it on its document takes every line break in
 * a cell away, from texts of its outputs too, and with it the sending of a form. @param {KeyboardEvent} event
 */
export const keepEnter = (event) => void (event.key === "Enter" && event.stopPropagation());

/**
 * Leaves the arrows to a box that the keyboard has come to, and to the notebook where a click happened to end there.
 * @param {FocusEvent} event
 */
export function noteFocus({ target }) {
  if (!(target instanceof HTMLElement) || target.tabIndex || !target.matches("div")) return;
  if (target.matches(":focus-visible")) leaveKeysTo(target);
  else target.removeAttribute(ITS_KEYS);
}

/** A part that folds to its title. @param {Element} parent @param {string} name  the BEM element @param {string} titleName */
export function addFold(parent, name, titleName = `${name}-title`) {
  const fold = add(parent, "details", name);
  const title = add(fold, "summary", titleName);
  leaveKeysTo(title);
  return { fold, title };
}

/** Opens or closes a fold, unless its reader has done so. @param {HTMLDetailsElement} fold @param {boolean} isOpen */
export function suggest(fold, isOpen) {
  if (!fold.dataset.chosen && fold.open !== isOpen) fold.open = isOpen;
}

/** Notes that a reader opens or closes a fold. @param {Event} event  a click; Enter and Space make one, too */
export function noteChoice({ target }) {
  const title = target instanceof Element ? target.closest("summary") : null;
  if (title?.parentElement) title.parentElement.dataset.chosen = "yes";
}

/** A box that scrolls. @param {Element} parent @param {string} name  the BEM element @param {string} label */
export function addBox(parent, name, label) {
  const box = addSaid(parent, "div", name);
  box.setAttribute("role", "group");
  box.setAttribute("aria-label", label);
  return box;
}

/** Lets the keyboard reach a box that has more than it shows. @param {HTMLElement} box */
export function reach(box) {
  if (box.scrollHeight > box.clientHeight + 1) box.tabIndex = 0;
  else box.removeAttribute("tabindex");
}

/** Shows a text, or hides a node without one. @param {HTMLElement} node @param {string | null} text */
export function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
  node.hidden = !text;
}

/** The same for what the edge may cut off: the tooltip has all. @param {HTMLElement} node @param {string} text */
export function writeLabel(node, text) {
  write(node, text);
  if (node.title !== text) node.title = text;
}

/** Leaves what is there, so that selections live and updates are cheap. @param {Text} node @param {string} text */
export function streamInto(node, text) {
  if (node.data === text) return;
  if (text.startsWith(node.data)) node.appendData(text.slice(node.data.length));
  else node.data = text;
}

/** Stays at a box's end, unless its reader has scrolled up. @param {HTMLElement} box @param {() => void} change */
export function followEnd(box, change) {
  const isAtEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 8;
  change();
  if (isAtEnd) box.scrollTop = box.scrollHeight;
}

/** Makes as many rows as there are items. @param {HTMLElement} list @param {number} count @param {() => unknown} addRow */
export function fitRows(list, count, addRow) {
  while (list.children.length > count) list.lastElementChild?.remove();
  while (list.children.length < count) addRow();
  list.hidden = !count;
}

/** @param {Element} parent */
export function addShape(parent) {
  const shape = add(parent, "span", "shape");
  shape.setAttribute("aria-hidden", "true");
  return shape;
}

/** A node that is there, by the name of its BEM element. @param {Element} row @param {string} name */
export const piece = (row, name) => /** @type {HTMLElement} */ (row.querySelector(`.nbrun-card__${name}`));
