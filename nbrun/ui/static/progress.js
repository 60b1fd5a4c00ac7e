// @ts-check
/** Progress: a bar and words. */
import { add, addText, piece, write } from "./nodes.js";

/** @typedef {{ part: number | null, words: string }} Progress  `part` of 1, if the total is known */

/** @param {Element} parent */
export function addProgress(parent) {
  const progress = add(parent, "div", "progress");
  add(progress, "progress", "bar");
  addText(progress, "span", "done");
  return progress;
}

/** @param {HTMLElement} node @param {Progress | null} progress @param {boolean} isLive */
export function drawProgress(node, progress, isLive) {
  node.hidden = !progress;
  if (!progress) return;
  const bar = /** @type {HTMLProgressElement} */ (piece(node, "bar"));
  write(piece(node, "done"), progress.words);
  bar.hidden = !isLive; // without a value it is animated, and would stay so
  bar.setAttribute("aria-label", progress.words);
  if (progress.part === null) bar.removeAttribute("value");
  else bar.value = progress.part;
}
