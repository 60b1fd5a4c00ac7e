// @ts-check
/** The rows of the runs panel, one a run. */
import { add, addShape, write, writeLabel } from "./nodes.js";
import { costWords, counted, wholeDuration } from "./wording.js";

/**
 * @typedef {import("./requests.js").Requests} Requests
 * @typedef {{ input_tokens: number, output_tokens: number, exact: boolean, cost_usd: number | null }} RowUsage
 *
 * @typedef {object} Row  Moments are seconds since 1970, by the kernel's clock.
 * @property {string} key  what it is known by here
 * @property {string} id
 * @property {number | null} number
 * @property {string} name
 * @property {string} agent
 * @property {string} status
 * @property {string} words
 * @property {boolean} live
 * @property {boolean} own  whether it is of this kernel
 * @property {number} created_at
 * @property {number | null} started_at
 * @property {string} took  how long, of one that has ended
 * @property {RowUsage} usage
 */

/** What the request that cancels a row's run begins with; its key follows. */
export const CANCEL_ROW = "cancel ";

const BLOCK = "nbrun-panel";

/** @param {string} key */
export function addCells(key) {
  const tr = document.createElement("tr");
  tr.className = `${BLOCK}__row`;
  tr.setAttribute("role", "row");
  tr.dataset.key = key;
  const status = addCell(tr, "state");
  addShape(status);
  add(status, "span", "words", BLOCK);
  const run = add(tr, "th", "run", BLOCK);
  run.scope = "row";
  run.setAttribute("role", "rowheader");
  const open = add(run, "button", "open", BLOCK);
  open.type = "button";
  add(run, "span", "number", BLOCK);
  for (const name of ["agent", "started", "elapsed", "tokens", "cost"]) addCell(tr, name);
  const cancel = add(addCell(tr, "do"), "button", "cancel", BLOCK);
  cancel.type = "button";
  cancel.dataset.op = "cancel";
  cancel.classList.add("nbrun-card__cancel");
  return tr;
}

/** @param {HTMLElement} tr @param {string} name */
function addCell(tr, name) {
  const cell = add(tr, "td", name, BLOCK);
  cell.setAttribute("role", "cell");
  return cell;
}

/**
 * @param {HTMLElement} tr @param {Row} row @param {Requests} requests @param {number} nowS
 * @param {boolean} isDead  whether nobody tells any more how live runs stand
 * @param {boolean} isOpen  whether its card is shown
 */
export function drawRow(tr, row, requests, nowS, isDead, isOpen) {
  const isUnfollowed = isDead && row.live;
  const status = isUnfollowed ? "lost" : row.status;
  const shape = tr.querySelector(".nbrun-card__shape");
  if (shape instanceof HTMLElement) shape.dataset.shape = status;
  write(part(tr, "words"), isUnfollowed ? "Connection to the run lost" : row.words);
  drawOpen(/** @type {HTMLButtonElement} */ (part(tr, "open")), row, isOpen, isDead);
  write(part(tr, "number"), row.number === null ? "" : `#${row.number}`);
  fill(part(tr, "agent"), row.agent === row.name ? "" : row.agent);
  part(tr, "agent").title = row.agent;
  drawStarted(part(tr, "started"), row.started_at ?? row.created_at, nowS);
  fill(part(tr, "elapsed"), isUnfollowed ? "" : elapsed(row, nowS));
  fill(part(tr, "tokens"), tokenCounts(row.usage));
  fill(part(tr, "cost"), costWords(row.usage));
  drawRowCancel(tr, row, Boolean(requests.get(CANCEL_ROW + row.key)?.isOpen), isDead);
}

/** What ticks of a row. @param {HTMLElement} body @param {Row} row @param {number} nowS */
export function tickRow(body, row, nowS) {
  const tr = [...body.children].find((one) => one instanceof HTMLElement && one.dataset.key === row.key);
  if (tr instanceof HTMLElement) fill(part(tr, "elapsed"), elapsed(row, nowS));
}

/** @param {HTMLElement} tr @param {string} name */
function part(tr, name) {
  return /** @type {HTMLElement} */ (tr.querySelector(`.${BLOCK}__${name}`));
}

/** Shows a text in a cell, which stays where there is none. @param {HTMLElement} cell @param {string} text */
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

/** The day and the time here; somebody else's file may tell of a moment that is none. @param {number} atS */
function localMoment(atS) {
  const at = new Date(atS * 1000);
  if (Number.isNaN(at.getTime())) return { day: "?", time: "" };
  const here = new Date(at.getTime() - at.getTimezoneOffset() * 60_000).toISOString();
  return { day: here.slice(0, 10), time: here.slice(11, 19) };
}

/** @param {Row} row @param {number} nowS */
function elapsed({ live, started_at, took, created_at }, nowS) {
  return live ? wholeDuration(Math.max(0, nowS - (started_at ?? created_at))) : took;
}

/** @param {RowUsage} usage */
function tokenCounts({ input_tokens, output_tokens, exact }) {
  if (!input_tokens && !output_tokens) return "";
  return `${exact ? "" : "≥ "}${counted(input_tokens)} in · ${counted(output_tokens)} out`;
}

/** @param {HTMLElement} tr @param {Row} row @param {boolean} isAsked @param {boolean} isDead */
function drawRowCancel(tr, row, isAsked, isDead) {
  const cancel = /** @type {HTMLButtonElement} */ (part(tr, "cancel"));
  const isCancelling = isAsked || row.status === "cancelling";
  const isShown = row.live && row.own && !isDead;
  if (!isShown && cancel.matches(":focus")) part(tr, "open").focus(); // else the keyboard would be nowhere
  cancel.hidden = !isShown;
  cancel.disabled = isCancelling;
  fill(cancel, !isShown ? "" : isCancelling ? "Cancelling…" : "Cancel");
  if (isShown) cancel.setAttribute("aria-label", `${cancel.textContent} ${row.name}`);
}
