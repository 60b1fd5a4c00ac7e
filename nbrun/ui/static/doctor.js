// @ts-check
/** Doctor's lines of the page: asks the kernel by both channels of a cancel, and reports the answers and their times. */
import { newNonce, sendByControl, trySend } from "./channels.js";

/**
 * @typedef {import("./channels.js").Model} Model
 * @typedef {{ sign: "ok" | "note" | "problem", subject: string, text: string, fix: string }} Finding
 * @typedef {{ name: string, silence: string, nonce: string, ms: number | null }} Channel  ms: how long its answer took
 */

const PATIENCE_MS = 3000;
const MARKS = { ok: "✔", note: "•", problem: "✘" };

/** @param {Channel} channel @param {boolean} isOver  whether we stop waiting @returns {Finding} */
function findingOf({ name, silence, ms }, isOver) {
  const subject = "page";
  if (ms === null && !isOver) return { sign: "note", subject, text: `asking the kernel by ${name} …`, fix: "" };
  if (ms === null) return { sign: "problem", subject, text: `no answer by ${name} in ${PATIENCE_MS / 1000} s`, fix: silence };
  const time = ms < PATIENCE_MS ? `${Math.max(1, Math.round(ms))} ms` : `${Math.round(ms / 1000)} s`;
  const text = `reached the kernel by ${name} in ${time}`;
  if (ms < PATIENCE_MS) return { sign: "ok", subject, text, fix: "" };
  return { sign: "note", subject, text, fix: "fine if a cell was running: Cancel uses both channels at once" };
}

/** @param {HTMLElement} root @param {Finding[]} findings */
function drawFindings(root, findings) {
  root.replaceChildren(
    ...findings.map(({ sign, subject, text, fix }) => {
      const line = document.createElement("div");
      line.dataset.sign = sign;
      line.textContent = `${MARKS[sign]} ${sign} ${subject}: ${text}${fix && ` → ${fix}`}`;
      return line;
    }),
  );
}

/** @param {{ model: Model, el: HTMLElement }} view */
function render({ model, el }) {
  const closing = new AbortController();
  const root = el.appendChild(document.createElement("div"));
  root.className = "nbrun-doctor";
  root.setAttribute("role", "status");
  const began = performance.now();
  let isOver = false;
  let isReported = false;
  /** @type {Channel} */
  const message = {
    name: "widget message",
    silence: "it arrives when no cell is running; otherwise run this cell again or restart the kernel",
    nonce: newNonce(),
    ms: null,
  };
  /** @type {Channel} */
  const control = {
    name: "control channel",
    silence: "stop a run with ■ Interrupt while its cell waits: this front end or a proxy blocks these messages",
    nonce: newNonce(),
    ms: null,
  };

  const drawNow = () => {
    const findings = [message, control].map((channel) => findingOf(channel, isOver));
    drawFindings(root, findings);
    // The report is sent as a widget message, so only once those work; it then stays as a static output.
    if (isReported || message.ms === null || (control.ms === null && !isOver)) return;
    isReported = true;
    trySend(() => model.send({ op: "found", findings }));
  };
  /** @param {{ nonce?: unknown }} answer */
  const onAnswer = ({ nonce }) => {
    for (const channel of [message, control]) {
      if (channel.nonce === nonce) channel.ms ??= performance.now() - began;
    }
    drawNow();
  };

  model.on("msg:custom", onAnswer);
  const timer = setTimeout(() => {
    isOver = true;
    drawNow();
  }, PATIENCE_MS);
  closing.signal.addEventListener("abort", () => {
    model.off("msg:custom", onAnswer);
    clearTimeout(timer);
    root.remove();
  });
  drawNow();
  trySend(() => model.send({ op: "ping", nonce: message.nonce }));
  trySend(() => sendByControl(model, { op: "ping", nonce: control.nonce }, onAnswer, closing.signal));
  return () => closing.abort();
}

export default { render };
