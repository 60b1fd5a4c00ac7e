// @ts-check
/** The nodes that a view is made of: everything an agent wrote goes in as text. */

/**
 * @template {keyof HTMLElementTagNameMap} T
 * @param {Element} parent @param {T} tag @param {string} name  the BEM element @param {string} block
 * @returns {HTMLElementTagNameMap[T]}
 */
export function add(parent, tag, name, block = "nbrun-card") {
  const node = document.createElement(tag);
  node.className = `${block}__${name}`;
  return parent.appendChild(node);
}

/** Shows a text, or hides a node without one. @param {HTMLElement} node @param {string | null} text */
export function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
  node.hidden = !text;
}

/** The same for what the edge may cut off: the tooltip has all. @param {HTMLElement} node @param {string} text */
export function writeLabel(node, text) {
  write(node, text);
  node.title = text;
}

/** Leaves what is there, so that selections live and updates are cheap. @param {Text} node @param {string} text */
export function streamInto(node, text) {
  if (text.startsWith(node.data)) node.appendData(text.slice(node.data.length));
  else node.data = text;
}

/** Stays at a box's end, unless its reader has scrolled up. @param {HTMLElement} box @param {() => void} change */
export function followEnd(box, change) {
  const isAtEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 8;
  change();
  if (isAtEnd) box.scrollTop = box.scrollHeight;
}

/** @param {Element} parent */
export function addShape(parent) {
  const shape = add(parent, "span", "shape");
  shape.setAttribute("aria-hidden", "true");
  return shape;
}
