// @ts-check
/** The questions of a run: the message, its arguments, which may be edited, and buttons that answer it. */
import { add, leaveKeysTo, write } from "./nodes.js";
import { counted, wholeDuration } from "./wording.js";

/**
 * @typedef {import("./requests.js").Requests} Requests
 * @typedef {{ id: string, message: string, args: string, options: string[], deadline: number | null }} Asked
 * @typedef {Asked & { labels?: string[], tool?: string, edit?: string | null }} Question
 *   `labels`: of the options; `edit`: the arguments as JSON, if they may be edited
 */

const EDIT = "edit"; // a button that sends nothing

/** @param {number} count */
export const moreQuestions = (count) => (count > 0 ? `… ${counted(count)} more question${count > 1 ? "s" : ""}` : "");

/**
 * A row is kept for its question, so that what is being typed stays.
 * @param {HTMLElement} list @param {Question[]} questions @param {Requests} requests @param {number} nowS
 */
export function drawQuestions(list, questions, requests, nowS) {
  const rows = /** @type {HTMLElement[]} */ ([...list.children]);
  for (const row of rows) if (!questions.some(({ id }) => id === row.dataset.id)) removeQuestion(row);
  for (const question of questions) {
    const row = rows.find((one) => one.dataset.id === question.id) ?? addQuestion(list, question);
    const request = requests.get(question.id);
    for (const button of row.querySelectorAll("button")) button.disabled = Boolean(request?.isOpen);
    const editor = row.querySelector("textarea");
    if (editor) editor.readOnly = Boolean(request?.isOpen);
    const [left, note] = row.querySelectorAll(".nbrun-card__left, .nbrun-card__answer");
    write(/** @type {HTMLElement} */ (left), timeLeft(question.deadline, nowS));
    write(/** @type {HTMLElement} */ (note), row.dataset.mistake || request?.note || "");
  }
  list.hidden = !questions.length;
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

/** @param {HTMLElement} list @param {Question} question */
function addQuestion(list, { id, message, args, options, labels, tool, edit }) {
  const row = add(list, "li", "question");
  row.dataset.id = id;
  write(add(row, "div", "message"), message);
  write(add(row, "div", "args"), args);
  if (typeof edit === "string") addEditor(row, message, edit);
  add(row, "div", "left");
  const bar = add(row, "div", "decision");
  bar.setAttribute("role", "group");
  bar.setAttribute("aria-label", message);
  const text = add(bar, "input", "reason");
  leaveKeysTo(text);
  text.type = "text";
  text.placeholder = "Message to the agent (optional)";
  text.setAttribute("aria-label", `A word to the agent, with your answer to: ${message}`);
  const allow = tool ? "Allow once" : "Allow";
  options.forEach((choice, at) => addDecision(bar, "approve", labels?.[at] ?? choice, choice));
  if (!options.length) addDecision(bar, "approve", allow, "");
  if (tool) {
    const always = addDecision(bar, "approve", "Always allow in this run", "");
    always.dataset.always = "true";
    always.title = `Allow ${tool} for the rest of this run without asking again`;
  }
  addDecision(bar, "deny", "Deny", "");
  add(row, "div", "answer").setAttribute("role", "alert");
  return row;
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
 * @param {Event} event  a click, or an edit of a text @param {string} runId @param {Requests} requests
 */
export function answerQuestion({ target, type }, runId, requests) {
  const row = target instanceof Element ? target.closest("li") : null;
  const button = target instanceof Element ? target.closest("button") : null;
  if (!row?.dataset.id) return;
  if (button || type === "input") noteMistake(row, "");
  if (type !== "click" || !button?.dataset.op) return;
  if (button.dataset.op === EDIT) toggleEditor(row);
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
  requests.ask(call, answer);
}

/** @param {HTMLElement} row @param {string} mistake */
function noteMistake(row, mistake) {
  if ((row.dataset.mistake ?? "") === mistake) return;
  row.dataset.mistake = mistake;
  row.querySelector("textarea")?.setAttribute("aria-invalid", String(Boolean(mistake)));
  write(/** @type {HTMLElement} */ (row.querySelector(".nbrun-card__answer")), mistake);
}
