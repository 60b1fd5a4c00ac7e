// @ts-check
/** The line of a card that is always there: the run's status, name, time and usage, and Cancel. */
import { add, addControl, addText, addShape, write, writeLabel } from "./nodes.js";
import { wholeDuration } from "./wording.js";

/**
 * @typedef {import("./requests.js").Request} Request
 *
 * @typedef {object} Headed
 * @property {number | null} number
 * @property {string} name
 * @property {string} agent
 * @property {string} status
 * @property {string} words  the status in words
 * @property {boolean} live
 * @property {number} created_at
 * @property {string} usage  tokens and cost
 */

export const CANCEL_AFTER_S = 0.2; // a button that disappears again at once would only flicker

/** @param {Element} root @param {string} bodyId  the id of what it folds */
export function addHead(root, bodyId) {
  const head = add(root, "div", "head");
  const fold = addControl(head, "fold");
  fold.setAttribute("aria-controls", bodyId);
  const facts = add(head, "div", "facts");
  const shape = addShape(facts);
  const words = addText(facts, "span", "words");
  words.setAttribute("role", "status"); // alone in it: a screen reader reports changes of status, not the ticking time
  words.setAttribute("aria-live", "polite");
  const name = addText(facts, "bdi", "name");
  const number = add(facts, "span", "number");
  const agent = addText(facts, "bdi", "agent");
  const elapsed = add(facts, "span", "elapsed");
  const usage = add(facts, "span", "usage");
  const cancel = addControl(head, "cancel");
  const answer = add(root, "div", "answer");
  answer.setAttribute("role", "alert");
  return { fold, shape, words, name, number, agent, elapsed, usage, cancel, answer };
}

/** @typedef {ReturnType<typeof addHead>} Head */

/** @param {Head} head @param {Headed} run @param {number | null} seconds  how long it has been live */
export function drawHead(head, run, seconds) {
  head.shape.dataset.shape = run.status;
  head.fold.setAttribute("aria-label", `Details of ${run.name}`);
  write(head.words, run.words);
  writeLabel(head.name, run.name);
  write(head.number, run.number === null ? "" : `#${run.number}`);
  writeLabel(head.agent, run.agent === run.name ? "" : run.agent);
  write(head.elapsed, seconds === null ? "" : wholeDuration(seconds));
  write(head.usage, run.usage);
}

/** @param {Head} head @param {Headed} run @param {Request | undefined} request @param {number} nowS */
export function drawCancel({ cancel, answer }, run, request, nowS) {
  const isCancelling = request?.isOpen || run.status === "cancelling";
  write(cancel, isCancelling ? "Cancelling…" : "Cancel");
  // Not `disabled`: the button would lose the focus right after it was pressed.
  cancel.setAttribute("aria-disabled", String(Boolean(isCancelling)));
  cancel.hidden = !run.live || nowS - run.created_at < CANCEL_AFTER_S;
  write(answer, request?.note ?? "");
}

/** @param {Head} head @param {HTMLElement} body @param {boolean} isFolded */
export function drawFold({ fold }, body, isFolded) {
  fold.setAttribute("aria-expanded", String(!isFolded));
  body.hidden = isFolded;
}
