// @ts-check
/** The tool calls of a run, a row each. */
import { add, addShape, followEnd, write } from "./nodes.js";
import { fineDuration } from "./wording.js";

/** @typedef {{ name: string, args: string, status: string, ms: number | null, result: string }} Tool */

/**
 * A row is known by its place among all calls of the run: ids are an agent's, and may come twice.
 * @param {HTMLElement} list @param {{ tools: Tool[], tools_cut: number }} run
 */
export function drawTools(list, { tools, tools_cut }) {
  list.hidden = !tools.length; // first: a hidden box has no end to follow
  followEnd(list, () => {
    const rows = /** @type {HTMLCollectionOf<HTMLElement>} */ (list.children);
    while (rows[0] && Number(rows[0].dataset.place) < tools_cut) rows[0].remove();
    while (rows.length > tools.length) list.lastElementChild?.remove();
    tools.forEach((tool, at) => {
      const row = rows[at] ?? addTool(list);
      row.dataset.place = String(tools_cut + at);
      drawTool(row, tool);
    });
  });
}

/** @param {HTMLElement} list */
function addTool(list) {
  const row = add(list, "li", "tool");
  const summary = add(add(row, "details", "tool-details"), "summary", "tool-line");
  addShape(summary);
  const call = add(summary, "span", "tool-call");
  for (const part of ["name", "args"]) add(call, "span", `tool-${part}`);
  for (const part of ["status", "ms", "result"]) add(summary, "span", `tool-${part}`);
  return row;
}

/** @param {HTMLElement} row @param {Tool} tool */
function drawTool(row, tool) {
  /** @param {string} name */
  const part = (name) => /** @type {HTMLElement} */ (row.querySelector(`.nbrun-card__${name}`));
  part("shape").dataset.shape = tool.status;
  write(part("tool-name"), tool.name);
  write(part("tool-args"), tool.args);
  write(part("tool-status"), tool.status);
  write(part("tool-ms"), tool.ms === null ? "" : fineDuration(tool.ms));
  write(part("tool-result"), tool.result);
}
