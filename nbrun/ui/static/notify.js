// @ts-check
/** The browser's notification that a long run has ended, for when its tab is hidden. */
import { add, leaveKeysTo, write } from "./nodes.js";
import { wholeDuration } from "./wording.js";

/**
 * @typedef {{ id: string, name: string, number: number | null, words: string, live: boolean }} Named
 * @typedef {Named & { created_at: number, started_at: number | null, ended_at: number | null, now: number }} Timed
 * @typedef {ReturnType<typeof addNotify>} NotifyBox
 */

const OFFERED_AFTER_S = 5; // a run that has ended by then needs no offer

/** Without notifications (in a webview, on a page without https), nothing is offered. */
const permission = () => (typeof Notification === "undefined" ? "denied" : Notification.permission);

/** @param {Element} root */
export function addNotify(root) {
  const box = add(root, "div", "notify");
  const button = add(box, "button", "link");
  button.type = "button";
  leaveKeysTo(button);
  write(button, "Notify me when it ends");
  const note = add(box, "span", "notify-note");
  note.setAttribute("role", "status");
  return { box, button, note };
}

/** @param {NotifyBox} notifyBox @param {number | undefined} afterS  0: never @param {number | null} seconds  it has taken, while live */
export function drawNotify({ box, button, note }, afterS, seconds) {
  const isOffered = seconds !== null && !!afterS && seconds >= Math.min(afterS, OFFERED_AFTER_S);
  button.hidden = permission() !== "default";
  note.hidden = !note.textContent;
  box.hidden = !isOffered || (button.hidden && note.hidden);
}

/** Asks for the browser's permission, which takes a click. @param {NotifyBox} notifyBox @param {number} afterS @param {() => void} onDone */
export async function askToNotify({ note }, afterS, onDone) {
  const answer = await Notification.requestPermission();
  const words = `The browser will notify you when a run longer than ${wholeDuration(afterS)} ends while this tab is hidden.`;
  if (answer === "granted") write(note, words);
  if (answer === "denied") write(note, "The browser blocks notifications for this page; allow them in its site settings.");
  onDone();
}

/** One line of a text from anybody: nothing invisible, nothing that turns its direction, and not too long. @param {string} text */
const safeLine = (text) => [...text.replace(/[\p{C}\p{Z}]+/gu, " ").trim()].slice(0, 80).join("");

/** Notifies of a run's end, if the run was long and the tab is hidden. @param {Timed} run @param {number | undefined} afterS */
export function notifyEnd(run, afterS) {
  const tookS = (run.ended_at ?? run.now) - (run.started_at ?? run.created_at);
  if (!afterS || tookS <= afterS || document.visibilityState !== "hidden" || permission() !== "granted") return;
  const body = `${safeLine(run.name)}${run.number === null ? "" : ` #${run.number}`}`;
  try {
    const notification = new Notification(safeLine(run.words), { body, tag: run.id }); // one, however many views there are
    notification.onclick = () => {
      window.focus();
      notification.close();
    };
  } catch (error) {
    console.warn("nbrun: the browser could not show a notification", error); // on phones only a service worker may
  }
}
