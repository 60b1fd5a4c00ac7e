// @ts-check
/** What a person is asked: the message, its arguments, and the buttons of the answer. */
import { add, write } from "./nodes.js";
import { counted, wholeDuration } from "./wording.js";

/**
 * @typedef {import("./requests.js").Requests} Requests
 * @typedef {{ id: string, message: string, args: string, options: string[], deadline: number | null }} Question
 */

/** @param {number} count */
export const moreQuestions = (count) => (count > 0 ? `… ${counted(count)} more question${count > 1 ? "s" : ""}` : "");

/**
 * A row is known by its question, so that what its reader is typing stays.
 * @param {HTMLElement} list @param {Question[]} questions @param {Requests} requests @param {number} nowS
 */
export function drawQuestions(list, questions, requests, nowS) {
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

/** Sends the answer that a click in the list gives. @param {Event} event  a click @param {string} runId @param {Requests} requests */
export function answerQuestion({ target }, runId, requests) {
  const button = target instanceof Element ? target.closest("button") : null;
  const row = button?.closest("li");
  if (!button?.dataset.op || !row?.dataset.id) return;
  const [call, choice] = [row.dataset.id, button.dataset.choice || null];
  const text = row.querySelector("input")?.value ?? "";
  requests.ask(call, { op: button.dataset.op, run_id: runId, call, choice, text });
}
