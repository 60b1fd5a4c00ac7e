// @ts-check
/** Messages to a running agent: a line to write them in, and the receipts of what was sent. */
import { add, leaveKeysTo, write } from "./nodes.js";

/**
 * @typedef {import("./requests.js").Requests} Requests
 * @typedef {{ id: string, text: string, words: string, taken: boolean }} SteerMessage  `id`: its nonce, if it was sent from a page
 * @typedef {{ can: boolean, messages: SteerMessage[] }} Steer  `can`: whether the agent reads messages
 * @typedef {ReturnType<typeof addSteer>} SteerBox
 */

export const STEER = "steer"; // its request
const INVITATION = "Message the agent";
const SHOWN_MESSAGES = 3;
const NOT_SENT = "Not sent: this run takes no messages now.";
const NOT_SENT_AT_END = "Not sent: the run has ended.";

/** Unsent messages, by model: a page may redraw the view together with its output.
 * @type {WeakMap<import("./channels.js").Model, { words: string, hasFocus: boolean }>} */
const DRAFTS = new WeakMap();

/** @param {Element} root */
export function addSteer(root) {
  const box = add(root, "div", "steer");
  const list = add(box, "ul", "steered");
  const form = add(box, "form", "say");
  const text = add(form, "input", "say-text");
  text.type = "text";
  text.autocomplete = "off";
  text.placeholder = INVITATION;
  text.setAttribute("aria-label", INVITATION);
  text.addEventListener("focus", () => (text.dataset.focus = "yes"));
  text.addEventListener("blur", ({ relatedTarget }) => void (relatedTarget && delete text.dataset.focus)); // else the node was removed
  const send = add(form, "button", "send");
  write(send, "Send");
  for (const place of [text, send]) leaveKeysTo(place);
  const note = add(form, "div", "steer-note");
  note.setAttribute("role", "alert");
  return { box, list, form, text, send, note };
}

/** @param {SteerBox} steerBox @param {{ live: boolean, status: string, steer?: Steer }} run @param {Requests} requests */
export function drawSteer({ box, list, form, text, send, note }, { live, status, steer }, requests) {
  const { can, messages } = steer ?? { can: false, messages: [] };
  const request = requests.get(STEER);
  const isHere = messages.some(({ id }) => id === request?.nonce);
  if (isHere) text.value = ""; // only now: what was refused can be sent again
  if (isHere || !live) requests.forget(STEER);
  drawMessages(list, messages.slice(-SHOWN_MESSAGES));
  const isOff = !can || !live;
  const isLeft = isOff && Boolean(text.value); // somebody was writing it: it can still be copied
  const isOpen = Boolean(requests.get(STEER)?.isOpen);
  form.hidden = isOff && !isLeft;
  text.readOnly = isOpen;
  send.disabled = isOpen || isOff;
  const whyNot = live || status === "lost" ? NOT_SENT : NOT_SENT_AT_END;
  write(note, isLeft ? whyNot : (requests.get(STEER)?.note ?? ""));
  box.hidden = form.hidden && list.hidden;
}

/** @param {HTMLElement} list @param {SteerMessage[]} messages */
function drawMessages(list, messages) {
  while (list.children.length > messages.length) list.lastElementChild?.remove();
  while (list.children.length < messages.length) {
    const row = add(list, "li", "steered-row");
    for (const part of ["text", "words"]) add(row, "span", `steered-${part}`);
  }
  messages.forEach((message, at) => {
    const [text, words] = /** @type {HTMLCollectionOf<HTMLElement>} */ (list.children[at]?.children ?? []);
    if (text) write(text, `You: ${message.text}`);
    if (words) write(words, message.words);
  });
  list.hidden = !messages.length;
}

/** Takes over what was typed to a question that is no longer asked. @param {SteerBox} steerBox @param {string} words */
export function rescueDraft({ text }, words) {
  text.value ||= words;
}

/** Keeps an unsent message for the next view. @param {import("./channels.js").Model} model @param {SteerBox} steerBox */
export function keepDraft(model, { text }) {
  const hasFocus = Boolean(text.dataset.focus);
  if (text.value && !text.readOnly) DRAFTS.set(model, { words: text.value, hasFocus });
}

/** Restores it. @param {import("./channels.js").Model} model @param {SteerBox} steerBox */
export function takeDraft(model, { text }) {
  const draft = DRAFTS.get(model);
  if (!draft) return;
  DRAFTS.delete(model);
  text.value = draft.words;
  if (draft.hasFocus && document.activeElement === document.body) text.focus({ preventScroll: true });
}

/** Sends what was written. @param {Event} event @param {SteerBox} steerBox @param {string} runId @param {Requests} requests */
export function sendSteer(event, { text }, runId, requests) {
  event.preventDefault(); // else the browser would leave the page
  text.focus(); // the button loses it when it is disabled
  if (!text.value.trim() || requests.get(STEER)?.isOpen) return;
  requests.ask(STEER, { op: "steer", run_id: runId, text: text.value });
}
