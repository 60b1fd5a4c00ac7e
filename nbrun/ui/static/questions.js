// @ts-check
/** The questions of a run: the message, its arguments, which may be edited, and buttons that answer it. */
import { add, addBox, leaveKeysTo, write } from "./nodes.js";
import { counted, wholeDuration } from "./wording.js";

/**
 * @typedef {import("./requests.js").Requests} Requests
 * @typedef {{ id: string, message: string, args: string, options: string[], deadline: number | null }} Asked
 * @typedef {Asked & { labels?: string[], tool?: string, edit?: string | null, hidden?: string[], digest?: string,
 *   input?: string }} Question
 *   `labels`: of the options; `edit`: the arguments as JSON, if they may be edited; `hidden`: the names that stand for
 *   secrets; `digest`: of all that is asked, sent back with the answer, or "" if this isn't all of it; `input`: a
 *   line of `text` is asked for, or a `secret` one
 */

const EDIT = "edit"; // a button that sends nothing
export const STILL_MS = 700; // the second click of a double click, or a press that was meant for what was here before
const SCROLL = "Scroll to the end of the question to allow it.";
const TOO_LONG = "Too long to show here: look at run.pending, and answer with run.approve() or %agentrun approve.";

/** Until when each list takes no answer: its rows have just appeared, or moved. @type {WeakMap<HTMLElement, number>} */
const STILL_UNTIL = new WeakMap();

/** @param {number} count */
export const moreQuestions = (count) => (count > 0 ? `… ${counted(count)} more question${count > 1 ? "s" : ""}` : "");

/**
 * A row is kept for its question, so that what is being typed stays; returns what was typed to one that is gone.
 * @param {HTMLElement} list @param {Question[]} questions @param {Requests} requests @param {number} nowS
 */
export function drawQuestions(list, questions, requests, nowS) {
  const rows = /** @type {HTMLElement[]} */ ([...list.children]);
  const gone = rows.filter((row) => !questions.some(({ id }) => id === row.dataset.id));
  const typed = gone.map((row) => (row.dataset.sent ? "" : draftOf(row)));
  gone.forEach(removeQuestion);
  const added = questions.filter(({ id }) => !rows.some((row) => row.dataset.id === id));
  for (const question of added) addQuestion(list, question, () => enableAnswers(list, requests));
  list.hidden = !questions.length;
  if (gone.length || added.length) keepStill(list, requests);
  enableAnswers(list, requests);
  for (const question of questions) {
    const row = [...list.children].find((one) => one instanceof HTMLElement && one.dataset.id === question.id);
    if (!(row instanceof HTMLElement)) continue;
    const request = requests.get(question.id);
    if (request?.note) delete row.dataset.sent;
    const editor = row.querySelector("textarea");
    if (editor) editor.readOnly = Boolean(request?.isOpen);
    const [left, note] = row.querySelectorAll(".nbrun-card__left, .nbrun-card__answer");
    write(/** @type {HTMLElement} */ (left), timeLeft(question.deadline, nowS));
    write(/** @type {HTMLElement} */ (note), row.dataset.mistake || request?.note || "");
  }
  return typed.find(Boolean) ?? "";
}

/** What was typed, but no secret: it may be shown elsewhere. @param {HTMLElement} row */
function draftOf(row) {
  const text = row.querySelector("input");
  return text && text.dataset.input !== "secret" ? text.value : "";
}

/**
 * Takes no answer for a moment: what is clicked now was meant for what was here before.
 * @param {HTMLElement} list @param {Requests} requests
 */
function keepStill(list, requests) {
  STILL_UNTIL.set(list, performance.now() + STILL_MS);
  setTimeout(() => enableAnswers(list, requests), STILL_MS + 1);
}

/** Enables the buttons of all questions that can be answered now. @param {HTMLElement} list @param {Requests} requests */
function enableAnswers(list, requests) {
  const isStill = performance.now() < (STILL_UNTIL.get(list) ?? 0);
  for (const row of /** @type {NodeListOf<HTMLElement>} */ (list.querySelectorAll("li"))) {
    const isSeen = noteSeen(row);
    const isOpen = Boolean(requests.get(row.dataset.id ?? "")?.isOpen);
    for (const button of row.querySelectorAll("button")) {
      button.disabled = isOpen || isStill || (button.dataset.op === "approve" && !isSeen);
    }
    write(/** @type {HTMLElement} */ (row.querySelector(".nbrun-card__unseen")), isSeen ? "" : unseen(row));
  }
}

/** @param {HTMLElement} row */
const unseen = ({ dataset }) => (dataset.digest ? SCROLL : TOO_LONG);

/**
 * Notes whether all of the question has been in sight: nobody should allow what they could not read.
 * @param {HTMLElement} row
 */
function noteSeen(row) {
  if (!row.dataset.digest) return false;
  const parts = /** @type {HTMLElement[]} */ ([...row.querySelectorAll(".nbrun-card__asked, .nbrun-card__editor")]);
  for (const part of parts.filter(({ hidden }) => !hidden)) {
    if (part.clientHeight < part.scrollHeight && part.matches("div")) part.tabIndex = 0; // to scroll by keyboard
    const isAtEnd = part.scrollTop + part.clientHeight >= part.scrollHeight - 2; // heights are rounded
    if (isAtEnd && part.clientHeight) part.dataset.seen = "true";
  }
  return parts.every(({ hidden, dataset }) => hidden || dataset.seen);
}

/** @param {number | null} deadline @param {number} nowS */
function timeLeft(deadline, nowS) {
  if (deadline === null) return "";
  return deadline > nowS ? `Denied automatically in ${wholeDuration(deadline - nowS)} if you don't answer` : "Time is up";
}

/** Removes it; the focus moves on to the next question, where a second Enter decides nothing. @param {HTMLElement} row */
function removeQuestion(row) {
  const next = row.contains(document.activeElement) ? row.nextElementSibling : null;
  row.remove();
  next?.querySelector("input")?.focus({ preventScroll: true });
}

/** @param {HTMLElement} list @param {Question} question @param {() => void} onScroll */
function addQuestion(list, { id, message, args, options, labels, tool, edit, hidden, digest, input }, onScroll) {
  const row = add(list, "li", "question");
  Object.assign(row.dataset, { id, digest: digest ?? "" });
  write(add(row, "div", "asks"), "The agent asks:");
  /** @type {HTMLElement[]} */
  const parts = [addBox(row, "message", "What the agent asks"), addBox(row, "args", "The arguments")];
  parts.forEach((part, at) => {
    const text = at ? args : message;
    part.classList.add("nbrun-card__asked");
    part.hidden = !text;
    write(part, text);
  });
  if (hidden?.length) write(add(row, "div", "hidden"), hiddenWords(hidden));
  if (typeof edit === "string") parts.push(addEditor(row, message, edit));
  for (const part of parts) part.addEventListener("scroll", onScroll, { passive: true });
  add(row, "div", "left");
  const bar = add(row, "div", "decision");
  bar.setAttribute("role", "group");
  bar.setAttribute("aria-label", message);
  const text = add(bar, "input", "reason");
  leaveKeysTo(text);
  text.type = "text";
  text.placeholder = "Message to the agent (optional)";
  text.setAttribute("aria-label", `A word to the agent, with your answer to: ${message}`);
  if (input) wantLine(text, message, input);
  const allow = input ? "Send" : tool ? "Allow once" : "Allow";
  options.forEach((choice, at) => addDecision(bar, "approve", labels?.[at] ?? choice, choice));
  if (!options.length) addDecision(bar, "approve", allow, "");
  if (tool) {
    const always = addDecision(bar, "approve", "Always allow in this run", "");
    always.dataset.always = "true";
    always.title = `Allow ${tool} for the rest of this run without asking again`;
  }
  addDecision(bar, "deny", "Deny", "");
  add(row, "div", "unseen");
  add(row, "div", "answer").setAttribute("role", "alert");
}

/** @param {string[]} names */
export function hiddenWords(names) {
  const [shown, verb] = [names.map((name) => `[${name}]`).join(", "), names.length > 1 ? "stand" : "stands"];
  return `${shown} ${verb} for a secret that is hidden here. The tool gets its value, also if you edit the rest.`;
}

/** A line to type, sent by Enter. @param {HTMLInputElement} text @param {string} message @param {string} input */
function wantLine(text, message, input) {
  text.dataset.input = input; // no password field: a browser would offer to save it
  text.autocomplete = "off";
  text.placeholder = "Your answer";
  text.setAttribute("aria-label", message);
  text.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.isComposing || event.repeat) return; // a key that is held has answered once
    const send = text.parentElement?.querySelector("button");
    if (send && !send.disabled) send.click();
  });
}

/** @param {HTMLElement} row @param {string} message @param {string} json */
function addEditor(row, message, json) {
  const toggle = addDecision(row, EDIT, "Edit arguments", "");
  toggle.className = "nbrun-card__link";
  toggle.setAttribute("aria-expanded", "false");
  const editor = add(row, "textarea", "editor");
  leaveKeysTo(editor);
  editor.hidden = true;
  editor.spellcheck = false;
  editor.defaultValue = json;
  editor.rows = Math.min(12, json.split("\n").length + 1);
  editor.setAttribute("aria-label", `The arguments, as JSON, of: ${message}`);
  return editor;
}

/** @param {HTMLElement} bar @param {string} op @param {string} label @param {string} choice */
function addDecision(bar, op, label, choice) {
  const button = add(bar, "button", "decide");
  leaveKeysTo(button);
  button.type = "button";
  Object.assign(button.dataset, { op, choice });
  write(button, label);
  return button;
}

/** Opens the editor, or closes it: then the arguments are used as they are shown. @param {HTMLElement} row */
function toggleEditor(row) {
  const [args, toggle, editor] = /** @type {NodeListOf<HTMLElement>} */ (
    row.querySelectorAll(".nbrun-card__args, .nbrun-card__link, .nbrun-card__editor")
  );
  if (!args || !toggle || !editor) return;
  editor.hidden = !editor.hidden;
  args.hidden = !editor.hidden;
  toggle.setAttribute("aria-expanded", String(args.hidden));
  write(toggle, args.hidden ? "Discard my edits" : "Edit arguments");
  if (args.hidden) editor.focus();
}

/** The JSON type of a value, in words. @param {unknown} value */
function kindOf(value) {
  if (value === null) return "null";
  if (Array.isArray(value)) return "a list";
  const kinds = new Map([["object", "an object"], ["string", "a string"], ["number", "a number"]]);
  return kinds.get(typeof value) ?? "true or false";
}

/** Why edited arguments can't be sent; empty if they can. @param {string} typed @param {string} asked  both as JSON */
function mistakeIn(typed, asked) {
  try {
    const [kind, wanted] = [kindOf(JSON.parse(typed)), kindOf(JSON.parse(asked))];
    return kind === wanted ? "" : `Not sent: the arguments must be ${wanted}, not ${kind}.`;
  } catch (error) {
    return `Not sent: this isn't valid JSON: ${error instanceof Error ? error.message : error}.`;
  }
}

/**
 * Does what a click in the list asks for; what was typed stays until the question is answered.
 * @param {Event & { detail?: number }} event  a click, or an edit of a text @param {string} runId @param {Requests} requests
 */
export function answerQuestion({ target, type, detail }, runId, requests) {
  const row = target instanceof Element ? target.closest("li") : null;
  const button = target instanceof Element ? target.closest("button") : null;
  if (!row?.dataset.id) return;
  if (button || type === "input") noteMistake(row, "");
  if (type === "input") delete row.dataset.sent;
  if (type !== "click" || !button?.dataset.op || button.disabled) return;
  if (button.dataset.op === EDIT) toggleEditor(row);
  else if (detail && detail > 1) return; // the second click of a double click
  else sendAnswer(row, button, runId, requests);
}

/** @param {HTMLElement} row @param {HTMLButtonElement} button @param {string} runId @param {Requests} requests */
function sendAnswer(row, { dataset }, runId, requests) {
  const call = row.dataset.id ?? "";
  /** @type {import("./requests.js").Content} */
  const answer = { op: dataset.op ?? "", run_id: runId, call, choice: dataset.choice || null };
  answer.text = row.querySelector("input")?.value ?? "";
  const editor = row.querySelector("textarea");
  if (answer.op === "approve" && editor && !editor.hidden && editor.value !== editor.defaultValue) {
    const mistake = mistakeIn(editor.value, editor.defaultValue);
    if (mistake) return noteMistake(row, mistake);
    answer.args_json = editor.value; // as text: JavaScript can't read numbers above 2 ** 53 exactly
  }
  if (dataset.always) answer.always = true;
  answer.digest = row.dataset.digest ?? "";
  row.dataset.sent = "yes";
  requests.ask(call, answer);
}

/** @param {HTMLElement} row @param {string} mistake */
function noteMistake(row, mistake) {
  if ((row.dataset.mistake ?? "") === mistake) return;
  row.dataset.mistake = mistake;
  row.querySelector("textarea")?.setAttribute("aria-invalid", String(Boolean(mistake)));
  write(/** @type {HTMLElement} */ (row.querySelector(".nbrun-card__answer")), mistake);
}
