// @ts-check
/** The runs panel: a table of runs, with filters, pages, cancels, and the card of the run that is open. */
import { render } from "./card.js";
import { add, write } from "./nodes.js";
import { mountInPlace } from "./places.js";
import { makeRequests } from "./requests.js";
import { listen, watchKernel } from "./channels.js";
import { CANCEL_ROW, addCells, drawRow, tickRow } from "./rows.js";
import { counted } from "./wording.js";

/**
 * @typedef {import("./channels.js").Model} Model
 * @typedef {import("./requests.js").Requests} Requests
 * @typedef {import("./rows.js").Row} Row
 *
 * @typedef {object} Runs  What the panel shows; times are seconds since 1970, by the kernel's clock.
 * @property {string} id  the panel's
 * @property {import("./rows.js").Column[]} columns
 * @property {Row[]} rows
 * @property {number} live  how many runs of this kernel are in progress
 * @property {number} stored
 * @property {string} status  the filters of the rows
 * @property {string} text
 * @property {number} page  how many rows a page has
 * @property {boolean} has_more
 * @property {boolean} has_newer
 * @property {string} open  the key of the run whose card is open
 * @property {number} set  the number of the set whose runs are shown, or 0
 * @property {string} answered  the nonce of the request that this answers
 * @property {string} problem
 * @property {boolean} is_over
 * @property {boolean} is_stale  whether a notebook file would keep something else
 * @property {number} now
 */

const PANEL = "nbrun-panel";
const [LOOK, OPEN, ALL, KEEP] = ["look", "open", "all", "keep"]; // the keys of its requests, besides those of rows
const TYPING_MS = 300;
const QUIET_MS = 1500;
const LIVE_CHOICES = ["live", "queued", "running", "waiting", "cancelling"];
const ENDED_CHOICES = ["completed", "failed", "cancelled", "lost"];
const GONE = "The kernel restarted or died, so this table no longer updates. Run %agentrun for the current state.";

// ---- building --------------------------------------------------------------------------------------------------

/** @param {HTMLElement} el @param {import("./rows.js").Column[]} columns */
function buildPanel(el, columns) {
  const root = document.createElement("div");
  root.className = `nbrun-card ${PANEL}`;
  root.setAttribute("role", "group");
  root.setAttribute("aria-label", "Runs of this notebook");
  root.setAttribute("data-lm-suppress-shortcuts", "true"); // undocumented: the notebook doesn't handle the panel's keys
  const head = add(root, "div", "head", PANEL);
  const summary = add(head, "div", "summary", PANEL);
  summary.setAttribute("role", "status"); // alone in it: a screen reader reports the counts, and no rows
  const filters = add(head, "div", "filters", PANEL);
  const status = add(addLabel(filters, "Status"), "select", "status", PANEL);
  status.add(new Option("all", ""));
  for (const choice of [...LIVE_CHOICES, ...ENDED_CHOICES]) status.add(new Option(choice));
  const text = add(addLabel(filters, "Search"), "input", "text", PANEL);
  Object.assign(text, { type: "search", placeholder: "name, prompt, output", maxLength: 500, autocomplete: "off" });
  const busy = add(head, "span", "busy", PANEL);
  const all = addButton(head, "all");
  const answer = add(root, "div", "answer");
  answer.setAttribute("role", "alert");
  const table = add(root, "table", "table", PANEL);
  table.setAttribute("role", "table"); // explicit, because a narrow page draws it as lines
  write(add(table, "caption", "caption", PANEL), "Runs of this notebook, newest first");
  const titles = add(add(table, "thead", "titles", PANEL), "tr", "title-row", PANEL);
  for (const { heading, number } of columns) addTitle(titles, heading, number);
  addTitle(titles, "Cancel", false);
  for (const part of [titles.parentElement, titles]) part?.setAttribute("role", part === titles ? "row" : "rowgroup");
  const body = add(table, "tbody", "rows", PANEL);
  body.setAttribute("role", "rowgroup");
  const none = add(root, "div", "none", PANEL);
  const foot = add(root, "div", "foot", PANEL);
  const [newer, more] = [addButton(foot, "newer"), addButton(foot, "more")];
  el.append(root);
  return { root, summary, status, text, busy, all, answer, table, body, none, foot, newer, more };
}

/** @typedef {ReturnType<typeof buildPanel>} Panel */

/** @param {HTMLElement} parent @param {string} name */
function addLabel(parent, name) {
  const label = add(parent, "label", "label", PANEL);
  label.append(`${name} `);
  return label;
}

/** @param {HTMLElement} parent @param {string} name */
function addButton(parent, name) {
  const button = add(parent, "button", name, PANEL);
  button.type = "button";
  button.classList.add("nbrun-card__cancel");
  return button;
}

/** @param {HTMLElement} row @param {string} heading @param {boolean} isNumber */
function addTitle(row, heading, isNumber) {
  const title = add(row, "th", "title", PANEL);
  title.scope = "col";
  title.classList.toggle(`${PANEL}__figure`, isNumber);
  title.setAttribute("role", "columnheader");
  write(title, heading);
}

// ---- drawing ---------------------------------------------------------------------------------------------------

/** @param {Panel} panel @param {Runs} runs @param {Requests} requests @param {boolean} isGone */
function drawPanel(panel, runs, requests, isGone) {
  const isDead = isGone || runs.is_over;
  const isLooking = Boolean(requests.get(LOOK)?.isOpen);
  write(panel.summary, isDead ? "Not updating" : counts(runs));
  write(panel.busy, isLooking ? "Searching…" : "");
  panel.table.setAttribute("aria-busy", String(isLooking));
  const isCancelling = Boolean(requests.get(ALL)?.isOpen);
  write(panel.all, isCancelling ? "Cancelling…" : `Cancel all ${counted(runs.live)}`);
  panel.all.hidden = isDead || !runs.live;
  panel.all.disabled = isCancelling;
  write(panel.answer, [isGone ? GONE : "", runs.problem, ...notes(requests)].filter(Boolean).join(" "));
  for (const filter of [panel.status, panel.text]) filter.disabled = isDead;
  write(panel.none, runs.rows.length ? "" : noRuns(runs));
  write(panel.newer, `${runs.page} newer`);
  write(panel.more, `${runs.page} more`);
  panel.newer.hidden = isDead || !runs.has_newer;
  panel.more.hidden = isDead || !runs.has_more;
  panel.foot.hidden = panel.newer.hidden && panel.more.hidden;
  for (const button of [panel.newer, panel.more]) button.disabled = isLooking;
}

/** @param {Runs} runs */
const counts = ({ live, stored }) => `${counted(live)} live, ${counted(stored)} stored`;

/** @param {Runs} runs @param {Row} row */
const isOpen = ({ open, set }, row) => (row.set ? set === row.set : open === row.key);

/** @param {Runs} runs */
function noRuns({ status, text, has_newer }) {
  if (!status && !text && !has_newer) return "No runs yet. Start a cell with %%agentrun to make one.";
  return "No runs match.";
}

/** @param {Requests} requests */
const notes = (requests) => requests.keys().map((key) => (key === KEEP ? "" : (requests.get(key)?.note ?? "")));

/** The filters show what the rows match, unless somebody is editing them. @param {Panel} panel @param {Runs} runs */
function drawFilters({ status, text }, runs) {
  if (!status.matches(":focus")) status.value = runs.status;
  if (!text.matches(":focus")) text.value = runs.text;
}

/**
 * A row is kept for its run, so that the focus stays; only new rows are inserted.
 * @param {Panel} panel @param {Runs} runs @param {Element} card  the row with the open card
 * @param {(row: Row, tr: HTMLElement) => void} drawOne
 */
function drawRows({ body }, runs, card, drawOne) {
  const known = new Map([...body.rows].filter((tr) => tr !== card).map((tr) => [tr.dataset.key, tr]));
  const keys = new Set(runs.rows.map(({ key }) => key));
  for (const [key, tr] of known) if (!keys.has(key ?? "")) tr.remove();
  let next = body.firstElementChild;
  for (const row of runs.rows) {
    if (next === card) next = next.nextElementSibling;
    const tr = known.get(row.key) ?? addCells(row.key, runs.columns);
    if (tr === next) next = next.nextElementSibling;
    else body.insertBefore(tr, next);
    drawOne(row, tr);
  }
}

// ---- the open card ---------------------------------------------------------------------------------------------

/**
 * The card of one run in a row of its own: the card's view, on the panel's model.
 * @param {Panel} panel @param {Model} model
 */
function makeCardPlace({ body, table }, model) {
  const place = document.createElement("tr");
  place.className = `${PANEL}__opened`;
  place.setAttribute("role", "row");
  const cell = add(place, "td", "card", PANEL);
  cell.colSpan = table.tHead?.rows[0]?.cells.length ?? 1;
  cell.setAttribute("role", "cell");
  let [shown, end] = ["", () => {}];

  const close = () => {
    end();
    [shown, end] = ["", () => {}];
    place.remove();
  };
  /** @param {string} key  the row above it; an empty one closes the card */
  const draw = (key) => {
    const row = key ? [...body.rows].find((tr) => tr.dataset.key === key) : undefined;
    if (!row || !model.get("run")?.id) return close();
    if (row.nextElementSibling !== place) row.after(place);
    if (shown === key) return;
    end();
    shown = key;
    end = render({ model, el: cell });
  };
  return { place, draw, close };
}

// ---- the view --------------------------------------------------------------------------------------------------

/** @param {{ model: Model, el: HTMLElement }} view */
function renderPanel({ model, el }) {
  const closing = new AbortController();
  const panel = buildPanel(el, model.get("panel").columns);
  const card = makeCardPlace(panel, model);
  let skewS = 0;
  let [frame, tick, typing, quiet] = [0, 0, 0, 0];
  let isGone = false;

  /** @returns {Runs} */
  const runs = () => model.get("panel");
  const now = () => Date.now() / 1000 + skewS;
  const drawNow = () => {
    cancelAnimationFrame(frame);
    frame = 0;
    const shown = runs();
    const isDead = isGone || shown.is_over;
    drawPanel(panel, shown, requests, isGone);
    drawFilters(panel, shown);
    drawRows(panel, shown, card.place, (row, tr) => drawRow(tr, row, requests, now(), isDead, isOpen(shown, row)));
    card.draw(shown.open);
    tickSoon();
  };
  const drawSoon = () => {
    frame ||= requestAnimationFrame(drawNow);
  };
  const tickSoon = () => {
    clearTimeout(tick);
    if (isGone || !runs().rows.some((row) => row.live)) return;
    tick = setTimeout(() => {
      for (const row of runs().rows) if (row.live) tickRow(panel.body, row, now());
      tickSoon();
    }, 1000);
  };
  const requests = makeRequests(model, drawNow, closing.signal);
  /** @param {string} page @param {string} text */
  const look = (page, text = panel.text.value) => {
    clearTimeout(typing);
    requests.ask(LOOK, { op: "look", panel: runs().id, status: panel.status.value, text, page });
  };
  /** Shows the runs of a set, or all again. @param {number} number */
  const lookInto = (number) => look("newest", runs().set === number ? "" : `set-${number}`);
  /** Has the notebook file keep what is shown, once nothing moves and the keyboard is elsewhere: the page redraws it. */
  const keepSoon = () => {
    clearTimeout(quiet);
    if (isGone || runs().is_over || !runs().is_stale || runs().live) return;
    quiet = setTimeout(() => {
      if (panel.root.matches(":focus-within")) return;
      requests.ask(KEEP, { op: "keep", panel: runs().id });
    }, QUIET_MS);
  };
  const onRuns = () => {
    skewS = runs().now - Date.now() / 1000;
    if (requests.get(LOOK)?.nonce === runs().answered) requests.forget(LOOK);
    requests.forget(OPEN);
    if (requests.get(ALL)?.waiting.signal.aborted) requests.forget(ALL); // it was answered: the rows show the rest
    for (const row of runs().rows) if (!row.live || row.status === "cancelling") requests.forget(CANCEL_ROW + row.key);
    keepSoon();
    drawSoon();
  };
  const onGone = () => {
    isGone = true;
    clearTimeout(quiet);
    requests.forgetAll();
    drawSoon();
  };
  /** @param {Event} event */
  const onClick = ({ target }) => {
    const button = target instanceof Element ? target.closest("button") : null;
    const row = runs().rows.find(({ key }) => key === button?.closest("tr")?.dataset.key);
    if (!button || !row || isGone) return;
    const which = row.set ? { set: row.set } : { run_id: row.id };
    if (button.dataset.op === "cancel") requests.ask(CANCEL_ROW + row.key, { op: "cancel", ...which, by: "panel" });
    else if (row.set) lookInto(row.set);
    else requests.ask(OPEN, { op: "open", panel: runs().id, key: runs().open === row.key ? "" : row.key });
  };
  const onTyped = () => {
    clearTimeout(typing);
    typing = setTimeout(() => look("newest"), TYPING_MS);
  };
  /** @param {HTMLElement} node @param {string} event @param {(event: Event) => void} does */
  const on = (node, event, does) => node.addEventListener(event, does, { signal: closing.signal });

  listen(model, "change:panel", onRuns, closing.signal);
  listen(model, "change:run", drawSoon, closing.signal);
  on(panel.body, "click", onClick);
  on(panel.status, "change", () => look("newest"));
  on(panel.text, "input", onTyped);
  on(panel.newer, "click", () => look("newer"));
  on(panel.more, "click", () => look("more"));
  on(panel.all, "click", () => requests.ask(ALL, { op: "cancel_all" }));
  on(panel.root, "focusout", keepSoon);
  watchKernel(model, onGone, closing.signal);
  closing.signal.addEventListener("abort", () => {
    cancelAnimationFrame(frame);
    for (const timer of [tick, typing, quiet]) clearTimeout(timer);
    card.close();
    panel.root.remove();
  });
  skewS = Math.max(0, runs().now - Date.now() / 1000);
  drawNow();
  return () => closing.abort();
}

/** Called once for each model, also without a view of it. @param {{ model: Model }} widget */
function initializePanel({ model }) {
  const closing = new AbortController();
  mountInPlace(model, renderPanel, closing.signal, () => false);
  return () => closing.abort();
}

export default { initialize: initializePanel, render: renderPanel };
