// @ts-check
/** A run's child runs, one row each. */
import { add, addText, addShape, fitRows, piece, write, writeLabel } from "./nodes.js";
import { fineDuration, wholeDuration } from "./wording.js";

/**
 * @typedef {object} Child
 * @property {string} title
 * @property {string} status
 * @property {string} words
 * @property {number | null} [started_at]
 * @property {number | null} [ended_at]
 * @property {string} [usage]  tokens and cost
 */

/** @param {HTMLElement} list @param {Child[]} children @param {number} nowS */
export function drawChildren(list, children, nowS) {
  fitRows(list, children.length, () => addChild(list));
  children.forEach((child, at) => {
    const row = /** @type {Element} */ (list.children[at]);
    piece(row, "shape").dataset.shape = child.status;
    writeLabel(piece(row, "child-title"), child.title);
    write(piece(row, "child-words"), child.words);
    write(piece(row, "child-took"), took(child, nowS));
    write(piece(row, "child-usage"), child.usage ?? "");
  });
}

/** @param {Child} child @param {number} nowS */
function took({ started_at: start, ended_at: end, status }, nowS) {
  if (!start) return "";
  if (end) return fineDuration(1000 * (end - start));
  return status === "running" || status === "cancelling" ? wholeDuration(Math.max(0, nowS - start)) : "";
}

/** @param {HTMLElement} list */
function addChild(list) {
  const row = add(list, "li", "child");
  addShape(row);
  addText(row, "bdi", "child-title");
  for (const name of ["words", "took", "usage"]) add(row, "span", `child-${name}`);
}
