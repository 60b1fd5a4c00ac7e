// @ts-check
/** The tool calls of a run, one row each: open while they run and if they failed, else folded to a line. */
import { add, addFold, addText, addShape, fitRows, followEnd, piece, suggest, write, writeLabel } from "./nodes.js";
import { addProgress, drawProgress } from "./progress.js";
import { fineDuration, wholeDuration } from "./wording.js";

/**
 * @typedef {object} Tool
 * @property {string} kind
 * @property {string} name
 * @property {string} args
 * @property {string} status
 * @property {number} started_at
 * @property {number | null} ms
 * @property {string} result
 * @property {import("./progress.js").Progress | null} [progress]
 */

const OPEN_WHILE = new Set(["running", "error"]);

/**
 * A row is identified by its place among all calls of the run: ids come from the agent, and may repeat.
 * @param {HTMLElement} list @param {{ tools: Tool[], tools_cut: number }} run @param {number} nowS
 */
export function drawTools(list, { tools, tools_cut }, nowS) {
  list.hidden = !tools.length; // first: a hidden box has no end to follow
  followEnd(list, () => {
    const rows = /** @type {HTMLCollectionOf<HTMLElement>} */ (list.children);
    while (rows[0] && Number(rows[0].dataset.place) < tools_cut) rows[0].remove();
    fitRows(list, tools.length, () => addTool(list));
    tools.forEach((tool, at) => drawTool(/** @type {HTMLElement} */ (rows[at]), tool, String(tools_cut + at), nowS));
  });
}

/** @param {HTMLElement} list */
function addTool(list) {
  const { fold, title } = addFold(add(list, "li", "tool"), "tool-details", "tool-line");
  addShape(title);
  const call = add(title, "span", "tool-call");
  add(call, "span", "tool-kind");
  call.append(" "); // a margin would be on the wrong side where directions differ
  addText(call, "bdi", "tool-name");
  call.append(" ");
  addText(call, "bdi", "tool-args");
  add(title, "span", "tool-status");
  add(title, "span", "tool-ms");
  const more = add(fold, "div", "tool-more");
  addText(more, "div", "tool-all-args");
  addText(more, "div", "tool-result");
}

/** @param {HTMLElement} row @param {Tool} tool @param {string} place @param {number} nowS */
function drawTool(row, tool, place, nowS) {
  if (row.dataset.place !== place) row.dataset.place = place;
  const isRunning = tool.status === "running";
  suggest(/** @type {HTMLDetailsElement} */ (piece(row, "tool-details")), OPEN_WHILE.has(tool.status));
  piece(row, "shape").dataset.shape = tool.status;
  write(piece(row, "tool-kind"), tool.kind);
  writeLabel(piece(row, "tool-name"), tool.name);
  write(piece(row, "tool-args"), tool.args);
  write(piece(row, "tool-status"), tool.status);
  const tookS = isRunning && tool.started_at ? wholeDuration(Math.max(0, nowS - tool.started_at)) : "";
  write(piece(row, "tool-ms"), tool.ms === null ? tookS : fineDuration(tool.ms));
  write(piece(row, "tool-all-args"), tool.args || "no arguments");
  drawToolProgress(row, tool.progress ?? null);
  write(piece(row, "tool-result"), tool.result || (isRunning ? "" : "no result"));
}

/** Few tools report it, so only their rows have a bar. @param {HTMLElement} row @param {import("./progress.js").Progress | null} progress */
function drawToolProgress(row, progress) {
  const node = row.querySelector(".nbrun-card__progress");
  if (progress || node) drawProgress(/** @type {HTMLElement} */ (node ?? addProgress(piece(row, "tool-more"))), progress, true);
}
