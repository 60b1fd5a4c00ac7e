// @ts-check
/** The line of a card that is always there: how the run stands, which one it is, what it took, Cancel. */
import { add, addControl, addSaid, addShape, write, writeLabel } from "./nodes.js";
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

export const CANCEL_AFTER_S = 0.2; // a button that comes and goes at once is only a flicker

/** @param {Element} root @param {string} bodyId  of what it folds */
export function addHead(root, bodyId) {
  const head = add(root, "div", "head");
  const fold = addControl(head, "fold");
  fold.setAttribute("aria-controls", bodyId);
  const facts = add(head, "div", "facts");
  const shape = addShape(facts);
  const words = addSaid(facts, "span", "words");
  words.setAttribute("role", "status"); // alone in it: a screen reader hears changes of status, and no ticking
  words.setAttribute("aria-live", "polite");
  const name = addSaid(facts, "bdi", "name");
  const number = add(facts, "span", "number");
  const agent = addSaid(facts, "bdi", "agent");
  const elapsed = add(facts, "span", "elapsed");
  const usage = add(facts, "span", "usage");
  const cancel = addControl(head, "cancel");
  const answer = add(root, "div", "answer");
  answer.setAttribute("role", "alert");
  return { fold, shape, words, name, number, agent, elapsed, usage, cancel, answer };
}

/** @typedef {ReturnType<typeof addHead>} Head */

/** @param {Head} head @param {Headed} run @param {number | null} seconds  how long it is being waited for */
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
export function drawCancel({ fold, cancel, answer }, run, request, nowS) {
  const isCancelling = request?.isOpen || run.status === "cancelling";
  write(cancel, isCancelling ? "Cancelling…" : "Cancel");
  // Not `disabled`, which would take the focus from who has just pressed it.
  cancel.setAttribute("aria-disabled", String(Boolean(isCancelling)));
  const isFocused = document.activeElement === cancel;
  cancel.hidden = !run.live || nowS - run.created_at < CANCEL_AFTER_S;
  if (cancel.hidden && isFocused) fold.focus({ preventScroll: true });
  write(answer, request?.note ?? "");
}

/** @param {Head} head @param {HTMLElement} body @param {boolean} isFolded */
export function drawFold({ fold }, body, isFolded) {
  fold.setAttribute("aria-expanded", String(!isFolded));
  body.hidden = isFolded;
}
