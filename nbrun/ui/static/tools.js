// @ts-check
/**
 * The tool calls of a run, one row each: open while they run and if they failed, else folded to a line. Between them the
 * model calls, one thin row for all that follow each other.
 */
import { add, addFold, addText, addShape, fitRows, followEnd, piece, suggest, write, writeLabel } from "./nodes.js";
import { addProgress, drawProgress } from "./progress.js";
import { earlier, fineDuration, wholeDuration } from "./wording.js";

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

/**
 * @typedef {object} Calls  Model calls that follow each other.
 * @property {number} place  that of the tool call after them, among all of the run
 * @property {string} status
 * @property {string} words
 * @property {boolean} nested  whether a tool makes them
 * @property {number} started_at  if one is in progress
 * @property {number | null} ms
 * @property {string[]} lines  the last ones, one by one
 * @property {number} lines_cut
 */

const OPEN_WHILE = new Set(["running", "error"]);

/**
 * A row is identified by its place among all calls of the run: ids come from the agent, and may repeat.
 * @param {HTMLElement} list @param {{ tools: Tool[], tools_cut: number, calls?: Calls[] }} run @param {number} nowS
 */
export function drawTools(list, { tools, tools_cut, calls = [] }, nowS) {
  list.hidden = !tools.length && !calls.length; // first: a hidden box has no end to follow
  const placed = new Map(calls.map((group) => [group.place, group]));
  /** @type {{ place: string, tool?: Tool | undefined, group?: Calls | undefined }[]} */
  const steps = [...tools, undefined].flatMap((tool, at) => [
    { place: `before ${tools_cut + at}`, group: placed.get(tools_cut + at) },
    { place: String(tools_cut + at), tool },
  ]);
  const shown = steps.filter(({ tool, group }) => tool || group);
  followEnd(list, () => {
    const rows = /** @type {HTMLCollectionOf<HTMLElement>} */ (list.children);
    while (rows[0] && rows[0].dataset.place !== shown[0]?.place) rows[0].remove();
    shown.forEach(({ place, tool, group }, at) => {
      while (rows[at] && rows[at].dataset.place !== place) rows[at].remove();
      const row = rows[at] ?? (tool ? addTool(list) : addCalls(list));
      row.dataset.place = place;
      if (tool) drawTool(row, tool, nowS);
      if (group) drawCalls(row, group, nowS);
    });
    while (rows.length > shown.length) list.lastElementChild?.remove();
  });
}

/** @param {HTMLElement} list */
function addCalls(list) {
  const row = add(list, "li", "calls");
  const { fold, title } = addFold(row, "calls-details", "calls-line");
  addShape(title);
  addText(title, "bdi", "calls-words");
  add(title, "span", "calls-ms");
  add(fold, "div", "calls-cut");
  add(fold, "ol", "calls-lines");
  return row;
}

/** @param {HTMLElement} row @param {Calls} group @param {number} nowS */
function drawCalls(row, { status, words, nested, started_at, ms, lines, lines_cut }, nowS) {
  row.toggleAttribute("data-nested", nested);
  piece(row, "shape").dataset.shape = status;
  writeLabel(piece(row, "calls-words"), words);
  write(piece(row, "calls-ms"), started_at ? wholeDuration(Math.max(0, nowS - started_at)) : ms === null ? "" : fineDuration(ms));
  write(piece(row, "calls-cut"), earlier(lines_cut, "model call"));
  const list = piece(row, "calls-lines");
  fitRows(list, lines.length, () => addText(list, "li", "calls-one"));
  lines.forEach((line, at) => write(/** @type {HTMLElement} */ (list.children[at]), line));
}

/** @param {HTMLElement} list */
function addTool(list) {
  const row = add(list, "li", "tool");
  const { fold, title } = addFold(row, "tool-details", "tool-line");
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
  return row;
}

/** @param {HTMLElement} row @param {Tool} tool @param {number} nowS */
function drawTool(row, tool, nowS) {
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
