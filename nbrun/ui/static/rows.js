// @ts-check
/** The rows of the runs panel, one per run. */
import { add, addShape, write, writeLabel } from "./nodes.js";
import { LOST_WORDS, wholeDuration } from "./wording.js";

/**
 * @typedef {import("./requests.js").Requests} Requests
 * @typedef {{ key: string, heading: string, number: boolean }} Column  `number`: whether its cells are numbers
 *
 * @typedef {object} Row  Times are seconds since 1970, by the kernel's clock.
 * @property {string} key  identifies it in the panel
 * @property {string} id
 * @property {number} [set]  the number of the set that it is a row of
 * @property {number | null} number
 * @property {string} name
 * @property {string} status
 * @property {boolean} live
 * @property {boolean} own  whether it belongs to this kernel
 * @property {number} created_at
 * @property {number | null} started_at
 * @property {Record<string, string>} cells  what each column shows, by the column's key
 */

/** How the key of the request that cancels a row's run begins; the row's key follows. */
export const CANCEL_ROW = "cancel ";

const BLOCK = "nbrun-panel";

/** @param {string} key @param {Column[]} columns */
export function addCells(key, columns) {
  const tr = document.createElement("tr");
  tr.className = `${BLOCK}__row`;
  tr.setAttribute("role", "row");
  tr.dataset.key = key;
  for (const column of columns) addColumn(tr, column);
  const cancel = add(addCell(tr, "do"), "button", "cancel", BLOCK);
  cancel.type = "button";
  cancel.dataset.op = "cancel";
  cancel.classList.add("nbrun-card__cancel");
  return tr;
}

/** @param {HTMLElement} tr @param {Column} column */
function addColumn(tr, { key, number }) {
  if (key === "run") return addRunCell(tr);
  const cell = addCell(tr, key === "status" ? "state" : key); // `status` is the filter
  cell.classList.toggle(`${BLOCK}__figure`, number);
  if (key !== "status") return;
  addShape(cell);
  add(cell, "span", "words", BLOCK);
}

/** @param {HTMLElement} tr */
function addRunCell(tr) {
  const run = add(tr, "th", "run", BLOCK);
  run.scope = "row";
  run.setAttribute("role", "rowheader");
  const open = add(run, "button", "open", BLOCK);
  open.type = "button";
  add(run, "span", "number", BLOCK);
}

/** @param {HTMLElement} tr @param {string} name */
function addCell(tr, name) {
  const cell = add(tr, "td", name, BLOCK);
  cell.setAttribute("role", "cell");
  return cell;
}

/** The columns that depend on the page: on its clock, or on whether the kernel still answers. */
const LIVELY = new Set(["run", "status", "started", "elapsed"]);

/**
 * @param {HTMLElement} tr @param {Row} row @param {Requests} requests @param {number} nowS
 * @param {boolean} isDead  whether live runs are no longer updated
 * @param {boolean} isOpen  whether its card is shown
 */
export function drawRow(tr, row, requests, nowS, isDead, isOpen) {
  const isLost = isDead && row.live;
  const shape = tr.querySelector(".nbrun-card__shape");
  if (shape instanceof HTMLElement) shape.dataset.shape = isLost ? "lost" : row.status;
  write(part(tr, "words"), isLost ? LOST_WORDS : (row.cells.status ?? ""));
  drawOpen(/** @type {HTMLButtonElement} */ (part(tr, "open")), row, isOpen, isDead);
  write(part(tr, "number"), row.number === null ? "" : `#${row.number}`);
  drawStarted(part(tr, "started"), row.started_at ?? row.created_at, nowS);
  fill(part(tr, "elapsed"), isLost ? "" : elapsed(row, nowS));
  for (const [key, text] of Object.entries(row.cells)) {
    if (LIVELY.has(key)) continue;
    fill(part(tr, key), text);
    part(tr, key).title = text;
  }
  drawRowCancel(tr, row, Boolean(requests.get(CANCEL_ROW + row.key)?.isOpen), isDead);
}

/** Updates what ticks. @param {HTMLElement} body @param {Row} row @param {number} nowS */
export function tickRow(body, row, nowS) {
  const tr = [...body.children].find((one) => one instanceof HTMLElement && one.dataset.key === row.key);
  if (tr instanceof HTMLElement) fill(part(tr, "elapsed"), elapsed(row, nowS));
}

/** @param {HTMLElement} tr @param {string} name */
function part(tr, name) {
  return /** @type {HTMLElement} */ (tr.querySelector(`.${BLOCK}__${name}`));
}

/** Shows a text in a cell, also an empty one. @param {HTMLElement} cell @param {string} text */
function fill(cell, text) {
  if (cell.textContent !== text) cell.textContent = text;
}

/** @param {HTMLButtonElement} open @param {Row} row @param {boolean} isOpen @param {boolean} isDead */
function drawOpen(open, row, isOpen, isDead) {
  writeLabel(open, row.name || "(no name)");
  open.disabled = isDead;
  open.setAttribute("aria-expanded", String(isOpen));
}

/** @param {HTMLElement} cell @param {number} atS @param {number} nowS */
function drawStarted(cell, atS, nowS) {
  const { day, time } = localMoment(atS);
  fill(cell, day === localMoment(nowS).day ? time : `${day} ${time.slice(0, 5)}`);
  cell.title = `${day} ${time}`;
}

/** Day and time in this time zone; a file from elsewhere may have a number that isn't a time. @param {number} atS */
function localMoment(atS) {
  const at = new Date(atS * 1000);
  if (Number.isNaN(at.getTime())) return { day: "?", time: "" };
  const here = new Date(at.getTime() - at.getTimezoneOffset() * 60_000).toISOString();
  return { day: here.slice(0, 10), time: here.slice(11, 19) };
}

/** @param {Row} row @param {number} nowS */
function elapsed({ live, started_at, cells, created_at }, nowS) {
  return live ? wholeDuration(Math.max(0, nowS - (started_at ?? created_at))) : (cells.elapsed ?? "");
}

/** @param {HTMLElement} tr @param {Row} row @param {boolean} isAsked @param {boolean} isDead */
function drawRowCancel(tr, row, isAsked, isDead) {
  const cancel = /** @type {HTMLButtonElement} */ (part(tr, "cancel"));
  const isCancelling = isAsked || row.status === "cancelling";
  const isShown = row.live && row.own && !isDead;
  if (!isShown && cancel.matches(":focus")) part(tr, "open").focus(); // else the focus would be lost
  cancel.hidden = !isShown;
  cancel.disabled = isCancelling;
  fill(cancel, !isShown ? "" : isCancelling ? "Cancelling…" : "Cancel");
  if (isShown) cancel.setAttribute("aria-label", `${cancel.textContent} ${row.name}`);
}
