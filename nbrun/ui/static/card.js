// @ts-check
/** The card: draws one run, and carries clicks (Cancel, Allow, Deny) to the kernel. What it shows is `model.get("run")`. */
import { drawChildren } from "./children.js";
import { addCopies, drawCopies } from "./copies.js";
import { inFrame, notInFrame } from "./frames.js";
import { addHead, CANCEL_AFTER_S, drawCancel, drawFold, drawHead } from "./head.js";
import { add, addBox, addFold, addText, fitRows, followEnd, keepEnter, noteChoice, noteFocus, reach, write } from "./nodes.js";
import { mountInPlace } from "./places.js";
import { keepPress } from "./presses.js";
import { addProgress, drawProgress } from "./progress.js";
import { addProse, drawProse } from "./prose.js";
import { answerQuestion, drawQuestions, moreQuestions } from "./questions.js";
import { addNotify, askToNotify, drawNotify, notifyEnd } from "./notify.js";
import { makeRequests } from "./requests.js";
import { listen, newNonce, watchKernel } from "./channels.js";
import { STEER, addSteer, drawSteer, keepDraft, rescueDraft, sendSteer, takeDraft } from "./steer.js";
import { drawTools } from "./tools.js";
import { counted, earlier, LOST_WORDS, wholeDuration } from "./wording.js";

/**
 * @typedef {import("./channels.js").Model} Model
 * @typedef {import("./requests.js").Requests} Requests
 * @typedef {import("./questions.js").Question} Question
 * @typedef {import("./tools.js").Tool} Tool
 * @typedef {import("./children.js").Child} Child
 * @typedef {import("./progress.js").Progress} Progress
 * @typedef {import("./head.js").Headed & import("./prose.js").Prose & import("./copies.js").Copied & Story} Run
 *
 * @typedef {object} Story  The rest of a run. Times are seconds since 1970, by the kernel's clock.
 * @property {string | null} phase
 * @property {Progress | null} progress
 * @property {number | null} started_at
 * @property {number | null} ended_at
 * @property {number} now  when the kernel sent this
 * @property {string} [awaited]  what it waits for while it reports nothing
 * @property {Tool[]} tools
 * @property {number} tools_cut
 * @property {import("./tools.js").Calls[]} [calls]  its model calls
 * @property {number} [calls_cut]
 * @property {Child[]} [children]  its child runs
 * @property {number} [children_cut]
 * @property {string[]} log  its last lines
 * @property {number} log_count  how many there are
 * @property {Question[]} [questions]
 * @property {number} [questions_cut]
 * @property {import("./steer.js").Steer} [steer]  messages to the agent
 * @property {string | null} error
 * @property {string} [traceback]
 * @property {string[]} [notes]  details of the status
 * @property {string[]} notices  problems that need attention
 */

/** The folded run of each model: a page may redraw the view together with its output. */
const FOLDED = new WeakMap();
const CANCEL = ""; // the key of its request; a question's key is its id

/** How long a run has been live; for an ended one, the status words say how long it took.
 * @param {Run} run @param {number} nowS */
function elapsedS(run, nowS) {
  return run.live ? Math.max(0, nowS - (run.started_at ?? run.created_at)) : null;
}

/** @param {HTMLElement} el @param {() => Run} getRun @param {AbortSignal} signal  aborted when the view ends */
function buildCard(el, getRun, signal) {
  const root = document.createElement("div");
  root.className = "nbrun-card";
  root.setAttribute("role", "group");
  const bodyId = `nbrun-${newNonce()}`;
  const head = addHead(root, bodyId);
  // Questions are never folded: the run waits for their answers.
  const questions = add(root, "ul", "questions");
  const questionsCut = add(root, "div", "more");
  const body = add(root, "div", "body");
  body.id = bodyId;
  const phase = addText(body, "div", "phase");
  const progress = addProgress(body);
  const notes = add(body, "ul", "notes");
  const notices = add(body, "ul", "notices");
  const toolsCut = add(body, "div", "cut");
  const tools = add(body, "ul", "tools");
  const childrenCut = add(body, "div", "cut");
  const children = add(body, "ul", "children");
  const idle = add(body, "div", "idle");
  const prose = addProse(body);
  const error = addBox(body, "error", "Error");
  const { fold: trace, title: traceTitle } = addFold(body, "trace");
  const traceback = addBox(trace, "traceback", "Traceback");
  write(traceTitle, "Traceback");
  const { fold: log, title: logTitle } = addFold(body, "log");
  const logCut = add(log, "div", "cut");
  const logLines = addBox(log, "log-lines", "Log");
  const copyResult = addCopies(body, prose.text, getRun, signal);
  const notify = addNotify(body);
  const steer = addSteer(body);
  el.append(root);
  const boxes = [prose.thoughts, prose.text, prose.output, error, traceback, logLines];
  const people = { questions, questionsCut, notify, steer };
  const story = { phase, progress, notes, notices, toolsCut, tools, childrenCut, children, idle, prose, copyResult };
  return { root, head, ...people, body, ...story, error, trace, traceback, log, logTitle, logCut, logLines, boxes };
}

/** @typedef {ReturnType<typeof buildCard>} Card */

// ---- drawing ---------------------------------------------------------------------------------------------------

/** @param {Card} card @param {Run} run @param {Requests} requests @param {number} nowS @param {number | null} seconds */
function draw(card, run, requests, nowS, seconds) {
  card.root.dataset.status = run.status;
  card.root.setAttribute("aria-label", `Run ${run.name}`);
  drawHead(card.head, run, seconds);
  drawCancel(card.head, run, requests.get(CANCEL), nowS);
  rescueDraft(card.steer, drawQuestions(card.questions, run.questions ?? [], requests, nowS));
  write(card.questionsCut, moreQuestions(run.questions_cut ?? 0));
  write(card.phase, run.phase);
  drawProgress(card.progress, run.progress, run.live);
  drawLines(card.notes, run.notes ?? [], "note");
  drawLines(card.notices, run.notices, "notice");
  const cut = [earlier(run.tools_cut, "tool call"), earlier(run.calls_cut ?? 0, "model call")];
  write(card.toolsCut, cut.filter(Boolean).join(" and ").replace(" and … ", " and "));
  drawTools(card.tools, run, nowS);
  write(card.childrenCut, earlier(run.children_cut ?? 0, "child run"));
  drawChildren(card.children, run.children ?? [], nowS);
  write(card.idle, isSilent(run) ? `waiting for the ${run.awaited ?? "agent"}… ${wholeDuration(seconds ?? 0)}` : "");
  drawProse(card.prose, run, run.live);
  drawError(card, run);
  drawLog(card, run);
  drawSteer(card.steer, run, requests);
  drawCopies(card.copyResult, run, !card.prose.text.hidden);
  card.boxes.forEach(reach); // last: sizes are read once, when everything is drawn
}

/** Moves the focus on from a control that is gone. @param {Card} card @param {Element} focused */
function keepFocus({ head, steer }, focused) {
  const isLost = document.activeElement === focused || document.activeElement === document.body;
  if (!isLost || focused.getClientRects().length) return;
  const next = steer.text.value && !steer.form.hidden ? steer.text : head.fold;
  next.focus({ preventScroll: true });
}

/** @param {HTMLElement} list @param {string[]} lines @param {string} name  the BEM element */
function drawLines(list, lines, name) {
  fitRows(list, lines.length, () => addText(list, "li", name));
  lines.forEach((line, at) => write(/** @type {HTMLElement} */ (list.children[at]), line));
}

/** @param {Card} card @param {Run} run */
function drawError({ error, trace, traceback }, run) {
  write(error, run.error);
  trace.hidden = !run.traceback;
  write(traceback, run.traceback ?? "");
}

/** @param {Card} card @param {Run} run */
function drawLog({ log, logTitle, logCut, logLines }, run) {
  log.hidden = !run.log_count;
  write(logTitle, `Log (${counted(run.log_count)} line${run.log_count === 1 ? "" : "s"})`);
  write(logCut, earlier(run.log_count - run.log.length, "line"));
  const lines = run.log.join("\n");
  if (logLines.textContent !== lines) followEnd(logLines, () => (logLines.textContent = lines));
}

/** @param {{ status: string }} part */
const isRunning = ({ status }) => status === "running";

/** Whether nothing shows what it does. @param {Run} run */
function isSilent(run) {
  const hasNews = run.blocks?.length || run.text || run.reasoning || run.phase || run.progress;
  return run.status === "running" && !hasNews && ![...run.tools, ...(run.calls ?? [])].some(isRunning);
}

/** What is still known of a live run whose kernel is gone: not its status.
 * @param {Run} run @param {string} why @returns {Run} */
function disconnected(run, why) {
  const ref = run.number === null ? run.id : `#${run.number}`;
  const notice = `${why} Run %agentrun show ${ref} to see how this run ended.`;
  const state = { live: false, status: "lost", words: LOST_WORDS, phase: null, progress: null, questions: [] };
  const tools = run.tools.map((tool) => (isRunning(tool) ? { ...tool, status: "unknown" } : tool));
  const calls = run.calls?.map((group) => (isRunning(group) ? { ...group, status: "unknown", started_at: 0 } : group));
  const unknown = { status: "unknown", words: "unknown" };
  const children = run.children?.map((child) => (child.ended_at ? child : { ...child, ...unknown }));
  return { ...run, ...state, tools, ...(calls && { calls }), ...(children && { children }), notices: [...run.notices, notice] };
}

// ---- the view --------------------------------------------------------------------------------------------------

/**
 * How far the kernel's clock is ahead of ours. The state that a view starts with may be old (the page was reloaded):
 * "behind" then doesn't mean a slow clock. The next update shows.
 * @param {Run} run @param {boolean} isFresh
 */
function clockSkewS(run, isFresh) {
  const skewS = run.now - Date.now() / 1000;
  return isFresh ? skewS : Math.max(0, skewS);
}

/** @param {{ model: Model, el: HTMLElement }} view */
export function render({ model, el }) {
  const closing = new AbortController();
  const card = buildCard(el, () => model.get("run"), closing.signal);
  let skewS = clockSkewS(model.get("run"), false);
  let tick = 0;
  let whyGone = ""; // why its kernel sends no more updates
  let wasLive = /** @type {boolean} */ (model.get("run").live);
  let wasDrawnLive = false;

  const drawNow = () => {
    notInFrame(drawNow);
    clearTimeout(tick);
    const last = /** @type {Run} */ (model.get("run"));
    const run = whyGone && last.live ? disconnected(last, whyGone) : last;
    const nowS = Date.now() / 1000 + skewS;
    const seconds = elapsedS(run, nowS);
    const focused = card.root.contains(document.activeElement) ? document.activeElement : null;
    const height = wasDrawnLive && !run.live && !isFolded() ? card.root.offsetHeight : 0;
    wasDrawnLive = run.live;
    draw(card, run, requests, nowS, seconds);
    drawNotify(card.notify, model.get("notify_after"), seconds);
    if (height) card.root.style.minHeight = `${height}px`; // what is below it stays where it is
    if (focused) keepFocus(card, focused);
    if (seconds === null) return;
    const cancelInS = run.created_at + CANCEL_AFTER_S - nowS;
    tick = setTimeout(drawSoon, cancelInS > 0 ? 1000 * cancelInS : 1000 - ((seconds * 1000) % 1000));
  };
  const drawSoon = () => inFrame(drawNow);
  const requests = makeRequests(model, drawNow, closing.signal);
  const onRun = () => {
    const run = /** @type {Run} */ (model.get("run"));
    skewS = clockSkewS(run, true);
    if (wasLive && !run.live) notifyEnd(run, model.get("notify_after")); // not in `draw`: a hidden page draws nothing
    wasLive = run.live;
    if (!run.live || run.status === "cancelling") requests.forget(CANCEL);
    for (const key of requests.keys()) {
      if (key !== CANCEL && key !== STEER && !run.questions?.some(({ id }) => id === key)) requests.forget(key);
    }
    drawSoon();
  };
  /** @param {string} why */
  const onGone = (why) => {
    whyGone ||= why;
    requests.forgetAll();
    drawSoon();
  };
  const onCancel = () => {
    if (card.head.cancel.ariaDisabled !== "true") requests.ask(CANCEL, { op: "cancel", run_id: model.get("run").id });
  };
  const isFolded = () => FOLDED.get(model) === model.get("run").id;
  const onFold = () => {
    FOLDED.set(model, isFolded() ? "" : model.get("run").id);
    drawFold(card.head, card.body, isFolded());
    card.root.style.removeProperty("min-height");
    drawSoon(); // a box that was hidden had no size
  };
  /** @param {Event} event */
  const onAnswered = (event) => answerQuestion(event, model.get("run").id, requests);
  /** @param {Event} event */
  const onSay = (event) => sendSteer(event, card.steer, model.get("run").id, requests);
  const onNotify = () => askToNotify(card.notify, model.get("notify_after"), drawSoon);

  listen(model, "change:run", onRun, closing.signal);
  card.head.cancel.addEventListener("click", onCancel, { signal: closing.signal });
  keepPress(card.head.cancel, model);
  card.head.fold.addEventListener("click", onFold, { signal: closing.signal });
  card.root.addEventListener("click", noteChoice, { signal: closing.signal });
  card.root.addEventListener("focusin", noteFocus, { signal: closing.signal });
  card.root.addEventListener("keydown", keepEnter, { signal: closing.signal });
  card.questions.addEventListener("click", onAnswered, { signal: closing.signal });
  card.questions.addEventListener("input", onAnswered, { signal: closing.signal });
  card.steer.form.addEventListener("submit", onSay, { signal: closing.signal });
  card.notify.button.addEventListener("click", onNotify, { signal: closing.signal });
  watchKernel(model, onGone, closing.signal);
  closing.signal.addEventListener("abort", () => {
    notInFrame(drawNow);
    clearTimeout(tick);
    keepDraft(model, card.steer);
    card.root.remove();
  });
  drawFold(card.head, card.body, isFolded());
  takeDraft(model, card.steer);
  drawNow();
  return () => closing.abort();
}

/** Called once for each model, also without a view of it. @param {{ model: Model }} widget */
function initialize({ model }) {
  const closing = new AbortController();
  mountInPlace(model, render, closing.signal, () => !model.get("run").live);
  return () => closing.abort();
}

export default { initialize, render };
