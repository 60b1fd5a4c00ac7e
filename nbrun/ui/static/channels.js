// @ts-check
/** The two channels from a page to its kernel: widget messages, and the control channel. */

/**
 * @typedef {{ nonce: string, outcome: string, message?: string }} Answer
 * @typedef {(answer: Answer) => void} OnAnswer
 * @typedef {{ op: string, nonce: string }} Asked
 *
 * @typedef {{ onReply: (message: { content: Answer }) => void, dispose: () => void }} Future
 * @typedef {(message: object, expectReply: boolean, disposeOnDone: boolean) => Future} SendControl
 * @typedef {(sender: unknown, status: string) => void} OnStatus
 * @typedef {{ connect: (slot: OnStatus) => void, disconnect: (slot: OnStatus) => void }} StatusSignal
 * @typedef {{ connect: (slot: () => void) => void, disconnect: (slot: () => void) => void }} EndSignal
 * @typedef {{ clientId: string, sendControlMessage?: SendControl, statusChanged?: StatusSignal, disposed?: EndSignal }} Kernel
 * @typedef {(id: string) => Promise<{ get: (trait: string) => any } | undefined>} GetModel
 *
 * @typedef {object} Model
 * @property {(trait: string) => any} get
 * @property {(event: string, callback: (value: any) => void) => void} on
 * @property {(event: string, callback: (value: any) => void) => void} off
 * @property {(content: object) => void} send
 * @property {{ kernel?: Kernel | null, get_model?: GetModel, context?: { model?: { cells?: any } } }} [widget_manager]  undocumented
 */

const KERNEL_IS_GONE = "The kernel restarted or died.";
export const KERNEL_IS_LEFT = "This page now uses another kernel; the run may still be going in its own.";
const ENDS_OF_KERNEL = new Set(["restarting", "autorestarting", "terminating", "dead"]);

/** @returns {string} */
export function newNonce() {
  if (crypto.randomUUID) return crypto.randomUUID(); // only on https and localhost
  const bytes = [...crypto.getRandomValues(new Uint8Array(16))];
  return bytes.map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** One closed channel must not close the other; if both are, the missing answer shows it. @param {() => void} send */
export function trySend(send) {
  try {
    send();
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
export function sendByControl(model, content, onAnswer, signal) {
  const kernel = model.widget_manager?.kernel; // undocumented, as is the method: there in JupyterLab 4 and Notebook 7
  if (!kernel?.sendControlMessage) return sendBySocket(model.get("kernel_id"), content, onAnswer, signal);
  const future = kernel.sendControlMessage(controlMessage(content, kernel.clientId), true, true);
  future.onReply = (message) => onAnswer(message.content);
  signal.addEventListener("abort", () => future.dispose());
}

/**
 * The same channel over a connection of our own, if the page comes from a Jupyter server.
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
    if (typeof data !== "string" || !data.includes(content.nonce)) return; // this socket gets every cell's output, too
    const message = JSON.parse(data);
    if (message.header.msg_type === "nbrun_reply") onAnswer(message.content);
  };
  socket.addEventListener("open", send, { signal });
  socket.addEventListener("message", receive, { signal });
  signal.addEventListener("abort", () => socket.close());
}

/** Report that the page's kernel is gone, so the card can't be updated; or that the page has another kernel, as after
 * "Save Notebook As". @param {Model} model
 * @param {(why: string) => void} onGone @param {AbortSignal} signal */
export function watchKernel(model, onGone, signal) {
  const kernel = model.widget_manager?.kernel; // undocumented, as are its signals: JupyterLab's and Notebook's
  /** @type {OnStatus} */
  const onStatus = (_sender, status) => void (ENDS_OF_KERNEL.has(status) && onGone(KERNEL_IS_GONE));
  const onLeft = () => onGone(KERNEL_IS_LEFT);
  kernel?.statusChanged?.connect?.(onStatus);
  kernel?.disposed?.connect?.(onLeft);
  signal.addEventListener("abort", () => {
    kernel?.statusChanged?.disconnect?.(onStatus);
    kernel?.disposed?.disconnect?.(onLeft);
  });
}

/** @param {Model} model @param {string} event @param {(value: any) => void} callback @param {AbortSignal} signal */
export function listen(model, event, callback, signal) {
  model.on(event, callback);
  signal.addEventListener("abort", () => model.off(event, callback));
}
