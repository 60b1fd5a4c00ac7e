// @ts-check
/** The card: draws one run, and carries clicks (Cancel, Allow, Deny) to the kernel. What it shows is `model.get("run")`. */

/**
 * @typedef {{ name: string, args: string, status: string, ms: number | null, result: string }} Tool
 * @typedef {{ title: string, status: string, words: string }} Child
 * @typedef {{ part: number | null, words: string }} Progress  `part` of 1, if an end is known
 * @typedef {{ input_tokens: number, output_tokens: number, exact: boolean }} Usage
 *
 * @typedef {{ id: string, message: string, args: string, options: string[], deadline: number | null }} Question
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
 *
 * @typedef {{ nonce: string, outcome: string, message?: string }} Answer
 * @typedef {(answer: Answer) => void} OnAnswer
 * @typedef {{ op: string, nonce: string, run_id: string, session_id: string }} Content
 * @typedef {Content | { op: "ping", nonce: string }} Asked
 *
 * @typedef {object} Request  What became of a click; never what became of the run.
 * @property {boolean} isOpen
 * @property {string} note
 * @property {string} nonce
 * @property {AbortController} waiting  holds what waits for the answer: a timer, a socket
 *
 * @typedef {Map<string, Request>} Requests  by the question that they are for, or CANCEL
 *
 * @typedef {{ onReply: (message: { content: Answer }) => void, dispose: () => void }} Future
 * @typedef {(message: object, expectReply: boolean, disposeOnDone: boolean) => Future} SendControl
 * @typedef {(sender: unknown, status: string) => void} OnStatus
 * @typedef {{ connect: (slot: OnStatus) => void, disconnect: (slot: OnStatus) => void }} StatusSignal
 * @typedef {{ clientId: string, sendControlMessage?: SendControl, statusChanged?: StatusSignal }} Kernel
 *
 * @typedef {object} Model
 * @property {(trait: string) => any} get
 * @property {(event: string, callback: (value: any) => void) => void} on
 * @property {(event: string, callback: (value: any) => void) => void} off
 * @property {(content: object) => void} send
 * @property {{ kernel?: Kernel | null }} [widget_manager]  undocumented
 */

const ANSWER_WITHIN_MS = 1500;
const NO_ANSWER =
  "The kernel has not answered yet. The request waits there until it can be read. " +
  "If that takes too long: ■\u00a0Interrupt, or restart the kernel, which ends its runs.";
const REFUSALS = new Map([
  ["not_found", "This run is not in the running kernel (was it restarted?)."],
  ["foreign", "This run belongs to another kernel; it can only be cancelled there."],
]);

const CANCEL = "";

const ENDS_OF_KERNEL = new Set(["restarting", "autorestarting", "terminating", "dead"]);

// ---- what is written -------------------------------------------------------------------------------------------

/** @param {number} count */
const counted = (count) => count.toLocaleString("en-US");

/** "12 s", "1 min 05 s". @param {number} seconds */
function wholeDuration(seconds) {
  const [h, min, s] = [seconds / 3600, (seconds / 60) % 60, seconds % 60].map((part) => String(Math.floor(part)));
  if (h !== "0") return `${h} h ${min?.padStart(2, "0")} min`;
  return min === "0" ? `${s} s` : `${min} min ${s?.padStart(2, "0")} s`;
}

/** The same for a tool that has ended, where short times tell something: "140 ms", "3.2 s". @param {number} ms */
function fineDuration(ms) {
  if (ms < 1000) return `${Math.round(ms)} ms`;
  return ms < 10_000 ? `${(Math.floor(ms / 100) / 10).toFixed(1)} s` : wholeDuration(ms / 1000);
}

/** How long a live run is being waited for; the words of an ended one tell how long it took.
 * @param {Run} run @param {number} nowS */
function elapsedS(run, nowS) {
  return run.live ? Math.max(0, nowS - (run.started_at ?? run.created_at)) : null;
}

/** @param {Usage} usage */
function tokens({ input_tokens, output_tokens, exact }) {
  if (!input_tokens && !output_tokens) return "";
  return `${exact ? "" : "≥ "}${counted(input_tokens)} in · ${counted(output_tokens)} out tokens`;
}

/** @param {number} count @param {string} noun */
const earlier = (count, noun) => (count > 0 ? `… ${counted(count)} earlier ${noun}${count > 1 ? "s" : ""}` : "");

// ---- nodes: everything an agent wrote goes in as text ----------------------------------------------------------

/**
 * @template {keyof HTMLElementTagNameMap} T
 * @param {Element} parent @param {T} tag @param {string} name  the BEM element
 * @returns {HTMLElementTagNameMap[T]}
 */
function add(parent, tag, name) {
  const node = document.createElement(tag);
  node.className = `nbrun-card__${name}`;
  return parent.appendChild(node);
}

/** Shows a text, or hides a node without one. @param {HTMLElement} node @param {string | null} text */
function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
  node.hidden = !text;
}

/** The same for what the edge may cut off: the tooltip has all. @param {HTMLElement} node @param {string} text */
function writeLabel(node, text) {
  write(node, text);
  node.title = text;
}

/** Leaves what is there, so that selections live and updates are cheap. @param {Text} node @param {string} text */
function streamInto(node, text) {
  if (text.startsWith(node.data)) node.appendData(text.slice(node.data.length));
  else node.data = text;
}

/** Stays at a box's end, unless its reader has scrolled up. @param {HTMLElement} box @param {() => void} change */
function followEnd(box, change) {
  const isAtEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 8;
  change();
  if (isAtEnd) box.scrollTop = box.scrollHeight;
}

/** @param {Element} parent */
function addShape(parent) {
  const shape = add(parent, "span", "shape");
  shape.setAttribute("aria-hidden", "true");
  return shape;
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

/** @param {number} count */
const moreQuestions = (count) => (count > 0 ? `… ${counted(count)} more question${count > 1 ? "s" : ""}` : "");

/**
 * A row is known by its question, so that what its reader is typing stays.
 * @param {HTMLElement} list @param {Question[]} questions @param {Requests} requests @param {number} nowS
 */
function drawQuestions(list, questions, requests, nowS) {
  const rows = /** @type {HTMLElement[]} */ ([...list.children]);
  for (const row of rows) if (!questions.some(({ id }) => id === row.dataset.id)) row.remove();
  for (const question of questions) {
    const row = rows.find((one) => one.dataset.id === question.id) ?? addQuestion(list, question);
    const request = requests.get(question.id);
    for (const button of row.querySelectorAll("button")) button.disabled = Boolean(request?.isOpen);
    const [left, note] = row.querySelectorAll(".nbrun-card__left, .nbrun-card__answer");
    write(/** @type {HTMLElement} */ (left), timeLeft(question.deadline, nowS));
    write(/** @type {HTMLElement} */ (note), request?.note ?? "");
  }
  list.hidden = !questions.length;
}

/** @param {number | null} deadline @param {number} nowS */
function timeLeft(deadline, nowS) {
  if (deadline === null) return "";
  return deadline > nowS ? `denied in ${wholeDuration(deadline - nowS)} without an answer` : "the time is over";
}

/** @param {HTMLElement} list @param {Question} question */
function addQuestion(list, { id, message, args, options }) {
  const row = add(list, "li", "question");
  row.dataset.id = id;
  row.setAttribute("data-lm-suppress-shortcuts", "true"); // as above: what is typed here is no command
  write(add(row, "div", "message"), message);
  write(add(row, "div", "args"), args);
  add(row, "div", "left");
  const bar = add(row, "div", "decision");
  const text = add(bar, "input", "reason");
  text.type = "text";
  text.placeholder = "a word to the agent (optional)";
  text.setAttribute("aria-label", `A word to the agent, with your answer to: ${message}`);
  for (const choice of options.length ? options : [""]) addDecision(bar, "approve", choice || "Allow", choice);
  addDecision(bar, "deny", "Deny", "");
  add(row, "div", "answer").setAttribute("role", "alert");
  return row;
}

/** @param {HTMLElement} bar @param {string} op @param {string} label @param {string} choice */
function addDecision(bar, op, label, choice) {
  const button = add(bar, "button", "decide");
  button.type = "button";
  Object.assign(button.dataset, { op, choice });
  write(button, label);
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

/**
 * A row is known by its place among all calls of the run: ids are an agent's, and may come twice.
 * @param {HTMLElement} list @param {Run} run
 */
function drawTools(list, { tools, tools_cut }) {
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

// ---- a click: one nonce, two roads -----------------------------------------------------------------------------

/** @returns {string} */
function newNonce() {
  if (crypto.randomUUID) return crypto.randomUUID(); // only on https and localhost
  const bytes = [...crypto.getRandomValues(new Uint8Array(16))];
  return bytes.map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** A closed road must not close the other; if both are, the missing answer says so. @param {() => void} road */
function tryRoad(road) {
  try {
    road();
  } catch (error) {
    console.warn("nbrun: a request could not be sent", error);
  }
}

/** @param {Asked} content @param {string} session */
function controlMessage(content, session) {
  const date = new Date().toISOString();
  const header = { msg_id: content.nonce, msg_type: "nbrun_request", session, username: "nbrun", date, version: "5.4" };
  return { channel: "control", header, parent_header: {}, metadata: {}, content, buffers: [] };
}

/**
 * The kernel's control channel, which is read even while a cell blocks the shell that reads widget messages.
 * @param {Model} model @param {Asked} content @param {OnAnswer} onAnswer @param {AbortSignal} signal
 */
function sendByControl(model, content, onAnswer, signal) {
  const kernel = model.widget_manager?.kernel; // undocumented, as is the method: there in JupyterLab 4 and Notebook 7
  if (!kernel?.sendControlMessage) return sendBySocket(model.get("kernel_id"), content, onAnswer, signal);
  const future = kernel.sendControlMessage(controlMessage(content, kernel.clientId), true, true);
  future.onReply = (message) => onAnswer(message.content);
  signal.addEventListener("abort", () => future.dispose());
}

/**
 * The same channel by a connection of our own, where the page is a Jupyter server's.
 * @param {string} kernelId @param {Asked} content @param {OnAnswer} onAnswer @param {AbortSignal} signal
 */
function sendBySocket(kernelId, content, onAnswer, signal) {
  const config = document.getElementById("jupyter-config-data")?.textContent; // undocumented
  if (!config || !kernelId) return;
  const { baseUrl = "/", wsUrl, token } = JSON.parse(config);
  const base = new URL(wsUrl || baseUrl, document.baseURI);
  const url = new URL(`api/kernels/${encodeURIComponent(kernelId)}/channels`, base);
  url.protocol = url.protocol.replace("http", "ws");
  url.searchParams.set("session_id", content.nonce);
  if (token) url.searchParams.set("token", token);
  const socket = new WebSocket(url);
  const send = () => socket.send(JSON.stringify(controlMessage(content, content.nonce)));
  /** @param {MessageEvent} event */
  const receive = ({ data }) => {
    if (typeof data !== "string" || !data.includes(content.nonce)) return; // every cell's output comes by here, too
    const message = JSON.parse(data);
    if (message.header.msg_type === "nbrun_reply") onAnswer(message.content);
  };
  socket.addEventListener("open", send, { signal });
  socket.addEventListener("message", receive, { signal });
  signal.addEventListener("abort", () => socket.close());
}

/** Tell when the kernel of this page is gone, and with it who could update the card. @param {Model} model
 * @param {() => void} onGone @param {AbortSignal} signal */
function watchKernel(model, onGone, signal) {
  const changes = model.widget_manager?.kernel?.statusChanged; // undocumented: a signal of JupyterLab's and Notebook's
  if (!changes?.connect) return;
  /** @type {OnStatus} */
  const slot = (_sender, status) => void (ENDS_OF_KERNEL.has(status) && onGone());
  changes.connect(slot);
  signal.addEventListener("abort", () => changes.disconnect(slot));
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
function render({ model, el }) {
  const closing = new AbortController();
  const card = buildCard(el);
  /** @type {Requests} */
  const requests = new Map();
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
  /** @param {string} key @param {boolean} isOpen @param {string} note */
  const settle = (key, isOpen, note) => {
    const request = requests.get(key);
    if (!request) return;
    request.waiting.abort();
    Object.assign(request, { isOpen, note });
    drawSoon();
  };
  /** @param {Answer} answer */
  const onAnswer = (answer) => {
    for (const [key, { nonce, waiting }] of requests) {
      if (answer.nonce !== nonce || waiting.signal.aborted) continue;
      const refusal = answer.outcome === "refused" ? answer.message : REFUSALS.get(answer.outcome);
      settle(key, !refusal, refusal ?? ""); // not refused: the button waits for the run's own next state
    }
  };
  const onRun = () => {
    const run = /** @type {Run} */ (model.get("run"));
    skewS = clockSkewS(run, true);
    if (!run.live || run.status === "cancelling") settle(CANCEL, false, "");
    for (const key of requests.keys()) {
      if (key !== CANCEL && !run.questions?.some(({ id }) => id === key)) settle(key, false, "");
    }
    drawSoon();
  };
  /** @param {string} key  the question that it is for, or CANCEL @param {string} op @param {object} [extra] */
  const ask = (key, op, extra) => {
    requests.get(key)?.waiting.abort();
    const [nonce, waiting] = [newNonce(), new AbortController()];
    /** @type {Request} */
    const request = { isOpen: true, note: "", nonce, waiting };
    requests.set(key, request);
    drawNow();
    /** @type {Content} */
    const content = { op, nonce, run_id: model.get("run").id, session_id: model.get("session_id"), ...extra };
    tryRoad(() => model.send(content));
    tryRoad(() => sendByControl(model, content, onAnswer, waiting.signal));
    const patience = setTimeout(() => {
      request.note = NO_ANSWER;
      drawSoon();
    }, ANSWER_WITHIN_MS);
    waiting.signal.addEventListener("abort", () => clearTimeout(patience));
  };
  /** @param {Event} event */
  const decide = ({ target }) => {
    const button = target instanceof Element ? target.closest("button") : null;
    const row = button?.closest("li");
    if (!button?.dataset.op || !row?.dataset.id) return;
    const [call, choice] = [row.dataset.id, button.dataset.choice || null];
    ask(call, button.dataset.op, { call, choice, text: row.querySelector("input")?.value ?? "" });
  };

  listen(model, "change:run", onRun, closing.signal);
  listen(model, "msg:custom", (message) => message?.op === "reply" && onAnswer(message), closing.signal);
  card.cancel.addEventListener("click", () => ask(CANCEL, "cancel"), { signal: closing.signal });
  card.questions.addEventListener("click", decide, { signal: closing.signal });
  watchKernel(
    model,
    () => {
      isKernelGone = true;
      for (const key of requests.keys()) settle(key, false, "");
      drawSoon();
    },
    closing.signal,
  );
  closing.signal.addEventListener("abort", () => {
    for (const { waiting } of requests.values()) waiting.abort();
    cancelAnimationFrame(frame);
    clearTimeout(tick);
    card.root.remove();
  });
  drawNow();
  return () => closing.abort();
}

/** @param {Model} model @param {string} event @param {(value: any) => void} callback @param {AbortSignal} signal */
function listen(model, event, callback, signal) {
  model.on(event, callback);
  signal.addEventListener("abort", () => model.off(event, callback));
}

export { newNonce, sendByControl, tryRoad }; // for doctor, which tries the roads
export default { render };
