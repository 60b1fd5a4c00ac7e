// @ts-check
/** How far something has come: a bar and words. */
import { add, addSaid, piece, write } from "./nodes.js";

/** @typedef {{ part: number | null, words: string }} Progress  `part` of 1, if an end is known */

/** @param {Element} parent */
export function addProgress(parent) {
  const progress = add(parent, "div", "progress");
  add(progress, "progress", "bar");
  addSaid(progress, "span", "done");
  return progress;
}

/** @param {HTMLElement} node @param {Progress | null} progress @param {boolean} isLive */
export function drawProgress(node, progress, isLive) {
  node.hidden = !progress;
  if (!progress) return;
  const bar = /** @type {HTMLProgressElement} */ (piece(node, "bar"));
  write(piece(node, "done"), progress.words);
  bar.hidden = !isLive; // without a known end it moves, and would go on moving
  bar.setAttribute("aria-label", progress.words);
  if (progress.part === null) bar.removeAttribute("value");
  else bar.value = progress.part;
}
