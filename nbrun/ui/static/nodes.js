// @ts-check
/** The nodes of a view: everything that an agent wrote goes in as text. */

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
 * For text that an agent or a person wrote: of either direction, without turning what is around it.
 * @template {keyof HTMLElementTagNameMap} T
 * @param {ParentNode} parent @param {T} tag @param {string} name  the BEM element
 */
export function addText(parent, tag, name) {
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

const KEEPS_KEYS = "data-lm-suppress-shortcuts"; // undocumented: JupyterLab and Notebook take no keys from such a node

/** Otherwise the notebook handles Enter itself. @param {HTMLElement} node */
export const leaveKeysTo = (node) => node.setAttribute(KEEPS_KEYS, "true");

/**
 * Stops Enter from bubbling: JupyterLab (4.4) listens for it on the document and then removes every line break in a cell,
 * also in texts of its outputs, and a form isn't sent. @param {KeyboardEvent} event
 */
export const keepEnter = (event) => void (event.key === "Enter" && event.stopPropagation());

/**
 * Gives the arrow keys to a box that was reached by keyboard, but not to one that was only clicked.
 * @param {FocusEvent} event
 */
export function noteFocus({ target }) {
  if (!(target instanceof HTMLElement) || target.tabIndex || !target.matches("div")) return;
  if (target.matches(":focus-visible")) leaveKeysTo(target);
  else target.removeAttribute(KEEPS_KEYS);
}

/** A part that can be folded to its title. @param {Element} parent @param {string} name  the BEM element @param {string} titleName */
export function addFold(parent, name, titleName = `${name}-title`) {
  const fold = add(parent, "details", name);
  const title = add(fold, "summary", titleName);
  leaveKeysTo(title);
  return { fold, title };
}

/** Opens or closes a fold, unless the reader has. @param {HTMLDetailsElement} fold @param {boolean} isOpen */
export function suggest(fold, isOpen) {
  if (!fold.dataset.chosen && fold.open !== isOpen) fold.open = isOpen;
}

/** Notes that the reader opens or closes a fold. @param {Event} event  a click, also one by Enter or Space */
export function noteChoice({ target }) {
  const title = target instanceof Element ? target.closest("summary") : null;
  if (title?.parentElement) title.parentElement.dataset.chosen = "yes";
}

/** A box that scrolls. @param {Element} parent @param {string} name  the BEM element @param {string} label */
export function addBox(parent, name, label) {
  const box = addText(parent, "div", name);
  box.setAttribute("role", "group");
  box.setAttribute("aria-label", label);
  return box;
}

/** Lets the keyboard reach a box that scrolls. @param {HTMLElement} box */
export function reach(box) {
  if (box.scrollHeight > box.clientHeight + 1) box.tabIndex = 0;
  else box.removeAttribute("tabindex");
}

/** Shows a text, or hides the node if there is none. @param {HTMLElement} node @param {string | null} text */
export function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
  node.hidden = !text;
}

/** The same for a text that may be cut off at the edge: the tooltip has all of it. @param {HTMLElement} node @param {string} text */
export function writeLabel(node, text) {
  write(node, text);
  if (node.title !== text) node.title = text;
}

/** Keeps the text that is there, so that selections survive and updates are cheap. @param {Text} node @param {string} text */
export function streamInto(node, text) {
  if (node.data === text) return;
  if (text.startsWith(node.data)) node.appendData(text.slice(node.data.length));
  else node.data = text;
}

/** Stays at a box's end, unless the reader has scrolled up. @param {HTMLElement} box @param {() => void} change */
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

/** A node of a row, by the name of its BEM element. @param {Element} row @param {string} name */
export const piece = (row, name) => /** @type {HTMLElement} */ (row.querySelector(`.nbrun-card__${name}`));
