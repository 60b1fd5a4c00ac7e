// @ts-check
/** The card of a set: how many of its inputs have ended how, and its controls. What it shows is `model.get("set")`. */
import { render } from "./card.js";
import { inFrame, notInFrame } from "./frames.js";
import { addHead, drawCancel, drawFold, drawHead } from "./head.js";
import { add, addControl, addFold, addShape, addText, fitRows, keepEnter, noteChoice, piece, write, writeLabel } from "./nodes.js";
import { mountInPlace } from "./places.js";
import { keepPress } from "./presses.js";
import { STILL_MS, hiddenWords } from "./questions.js";
import { makeRequests } from "./requests.js";
import { listen, newNonce, trySend, watchKernel } from "./channels.js";
import { counted } from "./wording.js";

/**
 * @typedef {import("./channels.js").Model} Model
 * @typedef {import("./requests.js").Requests} Requests
 * @typedef {{ status: string, count: number, words: string }} Part
 * @typedef {{ count: number, key: string, words: string, runs: number[] }} Failure
 * @typedef {{ kind: string, digest: string, count: number, message: string, tool: string, hidden: string[],
 *   args: string[], runs: number[] }} QuestionGroup
 *   `digest`: of all that is asked, sent back with the answer, or "" if this isn't all of it
 * @typedef {{ number: number, status: string, title: string, took: string, text: string }} Member
 *
 * @typedef {object} SetOfRuns  Times are seconds since 1970, by the kernel's clock.
 * @property {string} id
 * @property {number} number
 * @property {string} name
 * @property {string} agent
 * @property {string} status
 * @property {string} words
 * @property {boolean} live
 * @property {number} created_at
 * @property {number} now  when the kernel sent this
 * @property {string} usage
 * @property {Part[]} parts
 * @property {number} rest  how many inputs have not ended
 * @property {string} size
 * @property {string} pace
 * @property {number} pace_until  when it no longer holds
 * @property {string[]} notes
 * @property {QuestionGroup[]} questions
 * @property {number} failed
 * @property {Failure[]} errors  the most frequent
 * @property {number} errors_cut
 * @property {Member[]} newest
 * @property {Member[]} slowest
 * @property {number} open  the number of the run whose card is open, or 0
 */

const SET = "nbrun-set";
const [CANCEL_SET, PAUSE_SET, RETRY_SET, ASKED_SET] = ["cancel", "pause", "retry ", "asked "]; // the keys of its requests
/** Whether the card of each model is folded. @type {WeakMap<object, boolean>} */
const FOLDED_SETS = new WeakMap();

/** @param {HTMLElement} el */
function buildSet(el) {
  const root = document.createElement("div");
  root.className = `nbrun-card ${SET}`;
  root.setAttribute("role", "group");
  const bodyId = `nbrun-${newNonce()}`;
  const head = addHead(root, bodyId);
  const pause = addControl(/** @type {Element} */ (head.cancel.parentElement), "cancel");
  head.cancel.before(pause);
  const body = add(root, "div", "body");
  body.id = bodyId;
  const bar = add(body, "div", "bar", SET);
  bar.setAttribute("aria-hidden", "true"); // the counts below say the same
  const parts = add(body, "ul", "parts", SET);
  const pace = add(body, "div", "note");
  const notes = add(body, "ul", "notes");
  const asked = add(body, "ul", "asked", SET);
  asked.setAttribute("aria-label", "Questions");
  const failed = add(body, "div", "failed", SET);
  const failedTitle = add(failed, "div", "note");
  const all = addControl(failed, "decide");
  const errors = add(failed, "ul", "errors", SET);
  const errorsCut = add(failed, "div", "cut");
  const newest = addMembers(body, "Newest");
  const slowest = addMembers(body, "Slowest");
  const opened = add(body, "div", "opened", SET);
  el.append(root);
  return { root, head, pause, body, bar, parts, pace, notes, asked, failed, failedTitle, all, errors, errorsCut, newest, slowest, opened };
}

/** @typedef {ReturnType<typeof buildSet>} SetCard */

/** @param {Element} body @param {string} title */
function addMembers(body, title) {
  const { fold, title: summary } = addFold(body, "log");
  write(summary, title);
  return { fold, list: add(fold, "ul", "members", SET) };
}

/** @param {Element} list */
function addMember(list) {
  const row = add(list, "li", "member", SET);
  addShape(row);
  row.append(addControl(row, "open"));
  add(row, "span", "usage");
  addText(row, "span", "gave");
}

/** @param {Element} list */
function addError(list) {
  const row = add(list, "li", "error-row", SET);
  add(row, "span", "number");
  addText(row, "span", "gave");
  add(row, "span", "runs");
  addControl(row, "decide");
}

/** @param {Element} list */
function addAsked(list) {
  const row = add(list, "li", "asked-row", SET);
  addText(row, "div", "asks");
  const message = add(row, "div", "message", SET);
  message.dir = "auto";
  add(row, "div", "hidden");
  add(row, "ul", "args", SET);
  const bar = add(row, "div", "decision");
  for (const op of ["approve", "deny"]) addControl(bar, "decide").dataset.op = op;
  add(bar, "span", "runs");
  add(row, "div", "unseen");
}

/** @param {Element} list */
function addPart(list) {
  const item = add(list, "li", "part", SET);
  addShape(item);
  add(item, "span", "count");
}

// ---- drawing ---------------------------------------------------------------------------------------------------

/** @param {SetCard} card @param {SetOfRuns} set @param {Requests} requests @param {number} nowS @param {boolean} isGone */
function drawSet(card, set, requests, nowS, isGone) {
  card.root.dataset.status = set.status;
  card.root.setAttribute("aria-label", `Set ${set.name}`);
  drawHead(card.head, set, set.live ? Math.max(0, nowS - set.created_at) : null);
  write(card.head.number, `set #${set.number}`);
  card.head.shape.dataset.shape = set.status === "paused" ? "waiting" : set.status;
  drawCancel(card.head, set, requests.get(CANCEL_SET), nowS);
  if (card.head.cancel.textContent === "Cancel" && set.rest) card.head.cancel.textContent = `Cancel ${counted(set.rest)}`;
  const asked = [PAUSE_SET, ...requests.keys()].map((key) => requests.get(key)?.note ?? "");
  write(card.head.answer, asked.find(Boolean) ?? "");
  write(card.pause, set.status === "paused" ? "Continue" : "Pause");
  card.pause.hidden = !set.live || set.status === "cancelling";
  drawBar(card, set.parts);
  write(card.pace, [set.size, nowS < set.pace_until ? set.pace : ""].filter(Boolean).join(" · "));
  fitRows(card.notes, set.notes.length, () => addText(card.notes, "li", "note"));
  set.notes.forEach((note, at) => write(/** @type {HTMLElement} */ (card.notes.children[at]), note));
  drawAsked(card.asked, set.live && !isGone ? set.questions : [], requests);
  drawErrors(card, set, requests, isGone);
  drawMembers(card.newest, set.newest, set.open, isGone);
  drawMembers(card.slowest, set.slowest, set.open, isGone);
}

/** @param {SetCard} card @param {Part[]} parts */
function drawBar({ bar, parts: list }, parts) {
  fitRows(bar, parts.length, () => add(bar, "span", "stretch", SET));
  fitRows(list, parts.length, () => addPart(list));
  parts.forEach(({ status, count, words }, at) => {
    const stretch = /** @type {HTMLElement} */ (bar.children[at]);
    stretch.dataset.shape = status;
    stretch.style.flexGrow = String(count);
    const item = /** @type {Element} */ (list.children[at]);
    piece(item, "shape").dataset.shape = status;
    write(/** @type {HTMLElement} */ (item.lastElementChild), words);
  });
}

/** @param {HTMLElement} list @param {QuestionGroup[]} groups @param {Requests} requests */
function drawAsked(list, groups, requests) {
  list.hidden = !groups.length;
  fitRows(list, groups.length, () => addAsked(list));
  groups.forEach(({ digest, count, message, hidden, args, runs }, at) => {
    const row = /** @type {HTMLElement} */ (list.children[at]);
    const shown = JSON.stringify([digest, message, args]);
    if (row.dataset.shown !== shown) { // what is pressed now was meant for what was here before
      row.dataset.shown = shown;
      row.dataset.still = String(performance.now() + STILL_MS);
    }
    write(piece(row, "asks"), count > 1 ? `${counted(count)} runs ask the same:` : "A run asks:");
    write(/** @type {HTMLElement} */ (row.querySelector(`.${SET}__message`)), message);
    write(piece(row, "hidden"), hidden.length ? hiddenWords(hidden) : "");
    const lines = /** @type {HTMLElement} */ (row.querySelector(`.${SET}__args`));
    fitRows(lines, args.length, () => addText(lines, "li", "gave"));
    args.forEach((text, which) => write(/** @type {HTMLElement} */ (lines.children[which]), text));
    const isOpen = Boolean(requests.get(ASKED_SET + digest)?.isOpen);
    for (const button of /** @type {NodeListOf<HTMLElement>} */ (row.querySelectorAll("[data-op]"))) {
      const word = button.dataset.op === "deny" ? "Deny" : "Allow";
      button.dataset.digest = digest;
      write(button, count > 1 ? `${word} all ${counted(count)}` : word);
      button.setAttribute("aria-disabled", String(isOpen));
      button.hidden = !digest;
    }
    drawRuns(piece(row, "runs"), runs);
    write(piece(row, "unseen"), digest ? "" : "Open a run to answer it there.");
  });
}

/** @param {HTMLElement} list @param {number[]} runs */
function drawRuns(list, runs) {
  fitRows(list, runs.length, () => addControl(list, "open"));
  runs.forEach((number, which) => {
    const button = /** @type {HTMLElement} */ (list.children[which]);
    button.dataset.run = String(number);
    write(button, `#${number}`);
  });
}

/** @param {SetCard} card @param {SetOfRuns} set @param {Requests} requests @param {boolean} isGone */
function drawErrors(card, { failed, errors, errors_cut, live }, requests, isGone) {
  card.failed.hidden = !failed;
  write(card.failedTitle, `${counted(failed)} failed, by error`);
  write(card.errorsCut, errors_cut ? `… ${counted(errors_cut)} more errors` : "");
  drawRetry(card.all, "", failed, requests, live || isGone || errors.length < 2);
  fitRows(card.errors, errors.length, () => addError(card.errors));
  errors.forEach(({ count, key, words, runs }, at) => {
    const row = /** @type {HTMLElement} */ (card.errors.children[at]);
    write(piece(row, "number"), `${counted(count)} ×`);
    writeLabel(piece(row, "gave"), words);
    drawRuns(piece(row, "runs"), runs);
    drawRetry(/** @type {HTMLElement} */ (row.lastElementChild), key, count, requests, live || isGone || !key);
  });
}

/** @param {HTMLElement} button @param {string} error @param {number} count @param {Requests} requests @param {boolean} isHidden */
function drawRetry(button, error, count, requests, isHidden) {
  const isOpen = Boolean(requests.get(RETRY_SET + error)?.isOpen);
  button.dataset.error = error;
  write(button, isOpen ? "Retrying…" : `Retry ${counted(count)}`);
  button.setAttribute("aria-disabled", String(isOpen));
  button.hidden = isHidden;
}

/** @param {ReturnType<typeof addMembers>} part @param {Member[]} members @param {number} open @param {boolean} isGone */
function drawMembers({ fold, list }, members, open, isGone) {
  fold.hidden = !members.length;
  fitRows(list, members.length, () => addMember(list));
  members.forEach(({ number, status, title, took, text }, at) => {
    const row = /** @type {HTMLElement} */ (list.children[at]);
    piece(row, "shape").dataset.shape = status;
    const button = /** @type {HTMLButtonElement} */ (piece(row, "open"));
    button.dataset.run = String(number);
    button.disabled = isGone || !number;
    button.setAttribute("aria-expanded", String(number > 0 && number === open));
    write(button, title);
    write(piece(row, "usage"), took);
    writeLabel(piece(row, "gave"), text);
  });
}

/** What is still known of a live set whose kernel is gone. @param {SetOfRuns} set @param {string} why @returns {SetOfRuns} */
function cutOff(set, why) {
  const note = `${why} Load nbrun again and run %agentrun show ${set.id} to see what it has done.`;
  return { ...set, live: false, status: "lost", words: "Connection to the set lost", pace: "", notes: [...set.notes, note] };
}

// ---- the view --------------------------------------------------------------------------------------------------

/** @param {{ model: Model, el: HTMLElement }} view */
function renderSet({ model, el }) {
  const closing = new AbortController();
  const card = buildSet(el);
  let [tick, skewS, whyGone] = [0, Math.max(0, model.get("set").now - Date.now() / 1000), ""];
  let [shown, endOpen] = [0, () => {}];

  /** @returns {SetOfRuns} */
  const set = () => model.get("set");
  const drawOpen = () => {
    const { open } = set();
    const isThere = open > 0 && model.get("run")?.number === open;
    if (shown === open || (open && !isThere)) return;
    endOpen();
    [shown, endOpen] = [open, open ? render({ model, el: card.opened }) : () => {}];
  };
  const drawNow = () => {
    notInFrame(drawNow);
    clearTimeout(tick);
    const last = set();
    const now = whyGone && last.live ? cutOff(last, whyGone) : last;
    drawSet(card, now, requests, Date.now() / 1000 + skewS, Boolean(whyGone));
    drawOpen();
    if (now.live) tick = setTimeout(drawSoon, 1000);
  };
  const drawSoon = () => inFrame(drawNow);
  const requests = makeRequests(model, drawNow, closing.signal);
  const onSet = () => {
    skewS = set().now - Date.now() / 1000;
    if (!set().live || set().status === "cancelling") requests.forget(CANCEL_SET);
    for (const key of requests.keys()) if (key !== CANCEL_SET && !requests.get(key)?.note) requests.forget(key);
    drawSoon();
  };
  /** @param {string} why */
  const onGone = (why) => {
    whyGone ||= why;
    requests.forgetAll();
    drawSoon();
  };
  const onCancel = () => {
    if (card.head.cancel.ariaDisabled !== "true") requests.ask(CANCEL_SET, { op: "cancel", set: set().number });
  };
  const onPause = () => requests.ask(PAUSE_SET, { op: set().status === "paused" ? "unpause" : "pause", set: set().number });
  const isFolded = () => Boolean(FOLDED_SETS.get(model));
  const onFold = () => {
    FOLDED_SETS.set(model, !isFolded());
    drawFold(card.head, card.body, isFolded());
  };
  /** @param {Event} event */
  const onClick = ({ target }) => {
    const button = target instanceof Element ? target.closest("button") : null;
    if (!button || whyGone || card.opened.contains(button)) return;
    const { run, error, op, digest } = button.dataset;
    const number = Number(run);
    if (run) trySend(() => model.send({ op: "open", number: number === set().open ? 0 : number }));
    const row = /** @type {HTMLElement | null} */ (button.closest(`.${SET}__asked-row`));
    if (op && digest && button.ariaDisabled !== "true" && performance.now() >= Number(row?.dataset.still)) {
      requests.ask(ASKED_SET + digest, { op, set: set().number, digest });
    }
    if (error === undefined || button.ariaDisabled === "true") return;
    requests.ask(RETRY_SET + error, { op: "retry", set: set().number, ...(error && { error }) });
  };

  const signal = { signal: closing.signal };
  listen(model, "change:set", onSet, closing.signal);
  listen(model, "change:run", drawSoon, closing.signal);
  card.head.cancel.addEventListener("click", onCancel, signal);
  keepPress(card.head.cancel, model);
  card.pause.addEventListener("click", onPause, signal);
  card.head.fold.addEventListener("click", onFold, signal);
  card.body.addEventListener("click", onClick, signal);
  card.root.addEventListener("click", noteChoice, signal);
  card.root.addEventListener("keydown", keepEnter, signal);
  watchKernel(model, onGone, closing.signal);
  closing.signal.addEventListener("abort", () => {
    notInFrame(drawNow);
    clearTimeout(tick);
    endOpen();
    card.root.remove();
  });
  drawFold(card.head, card.body, isFolded());
  drawNow();
  return () => closing.abort();
}

/** Called once for each model, also without a view of it. @param {{ model: Model }} widget */
function initializeSet({ model }) {
  const closing = new AbortController();
  mountInPlace(model, renderSet, closing.signal, () => !model.get("set").live, "set");
  return () => closing.abort();
}

export default { initialize: initializeSet, render: renderSet };
