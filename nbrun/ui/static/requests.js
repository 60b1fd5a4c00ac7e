// @ts-check
/** What became of a view's clicks: each is one nonce down two roads; never what became of the run. */
import { listen, newNonce, sendByControl, tryRoad } from "./roads.js";

/**
 * @typedef {import("./roads.js").Model} Model
 * @typedef {import("./roads.js").Answer} Answer
 *
 * @typedef {{ op: string, [part: string]: unknown }} Content
 *
 * @typedef {object} Request
 * @property {boolean} isOpen
 * @property {string} note  why it was refused, or that no answer has come
 * @property {string} nonce
 * @property {AbortController} waiting  holds what waits for the answer: a timer, a socket
 */

const ANSWER_WITHIN_MS = 1500;
const NO_ANSWER =
  "No answer from the kernel yet; your request is queued. " +
  "If this takes too long, interrupt (■) or restart the kernel. A restart ends its runs.";
const REFUSALS = new Map([
  ["not_found", "The current kernel doesn't have this run. Was the kernel restarted?"],
  ["foreign", "This run belongs to another kernel; it can only be cancelled there."],
]);

/**
 * Requests by what they are for: a question's id, a button's name.
 * @param {Model} model @param {() => void} onChange @param {AbortSignal} signal  of the view's end
 */
export function makeRequests(model, onChange, signal) {
  /** @type {Map<string, Request>} */
  const requests = new Map();

  /** @param {string} key @param {boolean} isOpen @param {string} note */
  const settle = (key, isOpen, note) => {
    const request = requests.get(key);
    if (!request) return;
    request.waiting.abort();
    Object.assign(request, { isOpen, note });
    onChange();
  };
  /** @param {Answer} answer */
  const onAnswer = (answer) => {
    for (const [key, { nonce, waiting }] of requests) {
      if (answer.nonce !== nonce || waiting.signal.aborted) continue;
      const refusal = answer.outcome === "refused" ? answer.message : REFUSALS.get(answer.outcome);
      settle(key, !refusal, refusal ?? ""); // not refused: the button waits for the run's own next state
    }
  };
  /** Sends a request, in place of an earlier one under its key. @param {string} key @param {Content} content */
  const ask = (key, content) => {
    forget(key);
    const [nonce, waiting] = [newNonce(), new AbortController()];
    const request = { isOpen: true, note: "", nonce, waiting };
    requests.set(key, request);
    onChange();
    const asked = { ...content, nonce, session_id: model.get("session_id") };
    tryRoad(() => model.send(asked));
    tryRoad(() => sendByControl(model, asked, onAnswer, waiting.signal));
    const patience = setTimeout(() => {
      request.note = NO_ANSWER;
      onChange();
    }, ANSWER_WITHIN_MS);
    waiting.signal.addEventListener("abort", () => clearTimeout(patience));
  };
  /** @param {string} key */
  const forget = (key) => {
    requests.get(key)?.waiting.abort();
    requests.delete(key);
  };
  const forgetAll = () => [...requests.keys()].forEach(forget);

  listen(model, "msg:custom", (message) => message?.op === "reply" && onAnswer(message), signal);
  signal.addEventListener("abort", forgetAll);
  return { get: requests.get.bind(requests), keys: () => [...requests.keys()], ask, forget, forgetAll };
}

/** @typedef {ReturnType<typeof makeRequests>} Requests */
