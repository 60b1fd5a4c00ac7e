// @ts-check
/** The card: draws one run, and carries clicks (Cancel, Allow, Deny) to the kernel. What it shows is `model.get("run")`. */
import { add, addShape, followEnd, streamInto, write, writeLabel } from "./nodes.js";
import { answerQuestion, drawQuestions, moreQuestions } from "./questions.js";
import { makeRequests } from "./requests.js";
import { listen, watchKernel } from "./roads.js";
import { drawTools } from "./tools.js";
import { counted, earlier, tokens, wholeDuration } from "./wording.js";

/**
 * @typedef {import("./roads.js").Model} Model
 * @typedef {import("./requests.js").Request} Request
 * @typedef {import("./requests.js").Requests} Requests
 * @typedef {import("./questions.js").Question} Question
 * @typedef {import("./tools.js").Tool} Tool
 * @typedef {import("./wording.js").Usage} Usage
 * @typedef {{ title: string, status: string, words: string }} Child
 * @typedef {{ part: number | null, words: string }} Progress  `part` of 1, if an end is known
 *
 * @typedef {object} Run  Moments are seconds since 1970, by the kernel's clock.
 * @property {string} id
 * @property {number | null} number
 * @property {string} name
 * @property {string} agent
 * @property {string} status
 * @property {string} words  the status as people say it
 * @property {boolean} live
 * @property {string | null} phase
 * @property {Progress | null} progress
 * @property {number} created_at
 * @property {number | null} started_at
 * @property {number | null} ended_at
 * @property {number} now  when the kernel sent this
 * @property {Usage} usage
 * @property {string} text  its tail
 * @property {number} text_cut  characters left out in front of the tail
 * @property {Tool[]} tools
 * @property {number} tools_cut
 * @property {Child[]} [children]  the runs that this one has started
 * @property {number} [children_cut]
 * @property {string[]} log  its last lines
 * @property {number} log_count  how many there are
 * @property {Question[]} [questions]  what a person is asked
 * @property {number} [questions_cut]
 * @property {string | null} error
 * @property {string[]} notices
 */

const CANCEL = ""; // its request; the others are known by their questions

/** How long a live run is being waited for; the words of an ended one tell how long it took.
 * @param {Run} run @param {number} nowS */
function elapsedS(run, nowS) {
  return run.live ? Math.max(0, nowS - (run.started_at ?? run.created_at)) : null;
}

/** @param {HTMLElement} el */
function buildCard(el) {
  const root = document.createElement("div");
  root.className = "nbrun-card";
  root.setAttribute("role", "group");
  const head = add(root, "div", "head");
  const facts = add(head, "div", "facts");
  const shape = addShape(facts);
  const words = add(facts, "span", "words");
  words.setAttribute("role", "status"); // alone in it: a screen reader hears changes of status, and no ticking
  words.setAttribute("aria-live", "polite");
  const name = add(facts, "span", "name");
  const number = add(facts, "span", "number");
  const agent = add(facts, "span", "agent");
  const elapsed = add(facts, "span", "elapsed");
  const usage = add(facts, "span", "usage");
  const cancel = add(head, "button", "cancel");
  cancel.type = "button";
  cancel.setAttribute("data-lm-suppress-shortcuts", "true"); // undocumented: the notebook leaves Enter to the button
  const answer = add(root, "div", "answer");
  answer.setAttribute("role", "alert");
  const questions = add(root, "ul", "questions");
  const questionsCut = add(root, "div", "more");
  const phase = add(root, "div", "phase");
  const progress = add(root, "div", "progress");
  const bar = add(progress, "progress", "bar");
  const done = add(progress, "span", "done");
  const notices = add(root, "ul", "notices");
  const toolsCut = add(root, "div", "cut");
  const tools = add(root, "ul", "tools");
  const childrenCut = add(root, "div", "cut");
  const children = add(root, "ul", "children");
  const log = add(root, "details", "log");
  const logTitle = add(log, "summary", "log-title");
  const logCut = add(log, "div", "cut");
  const logLines = add(log, "div", "log-lines");
  const idle = add(root, "div", "idle");
  const textCut = add(root, "div", "cut");
  const text = add(root, "div", "text");
  const stream = text.appendChild(new Text());
  const error = add(root, "div", "error");
  el.append(root);
  const story = { phase, progress, bar, done, childrenCut, children, log, logTitle, logCut, logLines };
  const body = { ...story, questions, questionsCut, notices, toolsCut, tools, idle, textCut, text, stream, error };
  return { root, shape, words, name, number, agent, elapsed, usage, cancel, answer, ...body };
}

/** @typedef {ReturnType<typeof buildCard>} Card */

// ---- drawing ---------------------------------------------------------------------------------------------------

/** @param {Card} card @param {Run} run @param {Requests} requests @param {number} nowS @param {number | null} seconds */
function draw(card, run, requests, nowS, seconds) {
  card.root.dataset.status = run.status;
  card.root.setAttribute("aria-label", `Run ${run.name}`);
  drawHead(card, run, seconds);
  drawCancel(card, run, requests.get(CANCEL));
  drawQuestions(card.questions, run.questions ?? [], requests, nowS);
  write(card.questionsCut, moreQuestions(run.questions_cut ?? 0));
  write(card.phase, run.phase);
  drawProgress(card, run);
  drawNotices(card.notices, run.notices);
  write(card.toolsCut, earlier(run.tools_cut, "tool call"));
  drawTools(card.tools, run);
  write(card.childrenCut, earlier(run.children_cut ?? 0, "child run"));
  drawChildren(card.children, run.children ?? []);
  drawLog(card, run);
  write(card.idle, isSilent(run) ? `waiting for the agent… ${wholeDuration(seconds ?? 0)}` : "");
  drawText(card, run);
  write(card.error, run.error);
}

/** @param {Card} card @param {Run} run @param {number | null} seconds */
function drawHead(card, run, seconds) {
  card.shape.dataset.shape = run.status;
  write(card.words, run.words);
  writeLabel(card.name, run.name);
  write(card.number, run.number === null ? "" : `#${run.number}`);
  writeLabel(card.agent, run.agent === run.name ? "" : run.agent);
  write(card.elapsed, seconds === null ? "" : wholeDuration(seconds));
  write(card.usage, tokens(run.usage));
}

/** @param {Card} card @param {Run} run @param {Request | undefined} request */
function drawCancel({ cancel, answer }, run, request) {
  const isCancelling = request?.isOpen || run.status === "cancelling";
  write(cancel, isCancelling ? "Cancelling…" : "Cancel");
  cancel.disabled = isCancelling;
  cancel.hidden = !run.live;
  write(answer, request?.note ?? "");
}

/** @param {Card} card @param {Run} run */
function drawProgress({ progress, bar, done }, run) {
  progress.hidden = !run.progress;
  if (!run.progress) return;
  const { part, words } = run.progress;
  write(done, words);
  bar.hidden = !run.live; // without a known end it moves, and would go on moving
  bar.setAttribute("aria-label", words);
  if (part === null) bar.removeAttribute("value");
  else bar.value = part;
}

/** @param {HTMLElement} list @param {string[]} notices */
function drawNotices(list, notices) {
  while (list.children.length > notices.length) list.lastElementChild?.remove();
  while (list.children.length < notices.length) add(list, "li", "notice");
  notices.forEach((notice, at) => write(/** @type {HTMLElement} */ (list.children[at]), notice));
  list.hidden = !notices.length;
}

/** @param {HTMLElement} list @param {Child[]} children */
function drawChildren(list, children) {
  while (list.children.length > children.length) list.lastElementChild?.remove();
  while (list.children.length < children.length) addChild(list);
  children.forEach((child, at) => {
    const [shape, title, words] = /** @type {HTMLCollectionOf<HTMLElement>} */ (list.children[at]?.children ?? []);
    if (!shape || !title || !words) return;
    shape.dataset.shape = child.status;
    writeLabel(title, child.title);
    write(words, child.words);
  });
  list.hidden = !children.length;
}

/** @param {HTMLElement} list */
function addChild(list) {
  const row = add(list, "li", "child");
  addShape(row);
  add(row, "span", "child-title");
  add(row, "span", "child-words");
}

/** @param {Card} card @param {Run} run */
function drawLog({ log, logTitle, logCut, logLines }, run) {
  log.hidden = !run.log_count;
  write(logTitle, `Log (${counted(run.log_count)} line${run.log_count === 1 ? "" : "s"})`);
  write(logCut, earlier(run.log_count - run.log.length, "line"));
  const lines = run.log.join("\n");
  if (logLines.textContent !== lines) followEnd(logLines, () => (logLines.textContent = lines));
}

/** Whether it says nothing of what it does. @param {Run} run */
function isSilent(run) {
  const isTelling = run.text || run.phase || run.progress || run.tools.some((tool) => tool.status === "running");
  return run.status === "running" && !isTelling;
}

/** @param {Card} card @param {Run} run */
function drawText(card, run) {
  write(card.textCut, earlier(run.text_cut, "character"));
  card.text.hidden = !run.text; // first, as above
  if (card.stream.data !== run.text) followEnd(card.text, () => streamInto(card.stream, run.text));
}

/** What may still be said of a live run whose kernel is gone: nothing of how it stands. @param {Run} run @returns {Run} */
function unfollowed(run) {
  const ref = run.number === null ? run.id : `#${run.number}`;
  const notice = `The kernel was restarted or has died. %agentrun show ${ref} tells how this run ended.`;
  const state = { live: false, status: "lost", words: "No longer followed", phase: null, progress: null, questions: [] };
  return { ...run, ...state, notices: [...run.notices, notice] };
}

// ---- the view --------------------------------------------------------------------------------------------------

/**
 * How far the kernel's clock is ahead of ours. The state that a view finds when it opens may have been sent long ago
 * (the page was reloaded): "behind" then means old, not slow. The next update tells.
 * @param {Run} run @param {boolean} isFresh
 */
function clockSkewS(run, isFresh) {
  const skewS = run.now - Date.now() / 1000;
  return isFresh ? skewS : Math.max(0, skewS);
}

/** @param {{ model: Model, el: HTMLElement }} view */
export function render({ model, el }) {
  const closing = new AbortController();
  const card = buildCard(el);
  let skewS = clockSkewS(model.get("run"), false);
  let [frame, tick] = [0, 0];
  let isKernelGone = false;

  const drawNow = () => {
    cancelAnimationFrame(frame);
    clearTimeout(tick);
    frame = 0;
    const last = /** @type {Run} */ (model.get("run"));
    const run = isKernelGone && last.live ? unfollowed(last) : last;
    const nowS = Date.now() / 1000 + skewS;
    const seconds = elapsedS(run, nowS);
    draw(card, run, requests, nowS, seconds);
    if (seconds !== null) tick = setTimeout(drawSoon, 1000 - ((seconds * 1000) % 1000));
  };
  const drawSoon = () => {
    frame ||= requestAnimationFrame(drawNow);
  };
  const requests = makeRequests(model, drawNow, closing.signal);
  const onRun = () => {
    const run = /** @type {Run} */ (model.get("run"));
    skewS = clockSkewS(run, true);
    if (!run.live || run.status === "cancelling") requests.forget(CANCEL);
    for (const key of requests.keys()) {
      if (key !== CANCEL && !run.questions?.some(({ id }) => id === key)) requests.forget(key);
    }
    drawSoon();
  };
  const onGone = () => {
    isKernelGone = true;
    requests.forgetAll();
    drawSoon();
  };
  const onCancel = () => requests.ask(CANCEL, { op: "cancel", run_id: model.get("run").id });
  /** @param {Event} event */
  const onAnswered = (event) => answerQuestion(event, model.get("run").id, requests);

  listen(model, "change:run", onRun, closing.signal);
  card.cancel.addEventListener("click", onCancel, { signal: closing.signal });
  card.questions.addEventListener("click", onAnswered, { signal: closing.signal });
  watchKernel(model, onGone, closing.signal);
  closing.signal.addEventListener("abort", () => {
    cancelAnimationFrame(frame);
    clearTimeout(tick);
    card.root.remove();
  });
  drawNow();
  return () => closing.abort();
}

export default { render };
