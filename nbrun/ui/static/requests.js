// @ts-check
/** The requests of a view, such as clicks: each is sent over two channels with one nonce. A run's state isn't kept here. */
import { listen, newNonce, sendByControl, trySend } from "./channels.js";

/**
 * @typedef {import("./channels.js").Model} Model
 * @typedef {import("./channels.js").Answer} Answer
 *
 * @typedef {{ op: string, [part: string]: unknown }} Content
 *
 * @typedef {object} Request
 * @property {boolean} isOpen
 * @property {string} note  why it was refused, or that there is no answer yet
 * @property {string} nonce
 * @property {AbortController} waiting  ends what waits for the answer: a timer, a socket
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
 * Requests by their purpose: a question's id, a button's name.
 * @param {Model} model @param {() => void} onChange @param {AbortSignal} signal  aborted when the view ends
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
      settle(key, !refusal, refusal ?? ""); // not refused: the button waits for the run's next state
    }
  };
  /** Sends a request; it replaces an earlier one of its key. @param {string} key @param {Content} content */
  const ask = (key, content) => {
    forget(key);
    const [nonce, waiting] = [newNonce(), new AbortController()];
    const request = { isOpen: true, note: "", nonce, waiting };
    requests.set(key, request);
    onChange();
    const asked = { ...content, nonce, session_id: model.get("session_id") };
    trySend(() => model.send(asked));
    trySend(() => sendByControl(model, asked, onAnswer, waiting.signal));
    const timer = setTimeout(() => {
      request.note = NO_ANSWER;
      onChange();
    }, ANSWER_WITHIN_MS);
    waiting.signal.addEventListener("abort", () => clearTimeout(timer));
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
