// @ts-check
/** Buttons that copy: the result, the run's id, the Python code that gets the run. */
import { add, addControl, write } from "./nodes.js";
import { counted } from "./wording.js";

/** @typedef {{ id: string, live: boolean, result?: string, result_cut?: number }} Copied */

const NOTE_FOR_MS = 2000;

/**
 * @param {Element} parent @param {HTMLElement} text  shows the run's text so far
 * @param {() => Copied} getRun @param {AbortSignal} signal  aborted when the view ends
 */
export function addCopies(parent, text, getRun, signal) {
  const bar = add(parent, "div", "copies");
  bar.setAttribute("role", "group");
  bar.setAttribute("aria-label", "Copy");
  const result = addControl(bar, "copy");
  const note = document.createElement("span");
  let timer = 0;

  /** @param {HTMLButtonElement} button @param {() => string} what */
  const listen = (button, what) => {
    const copy = async () => {
      const isCopied = await copyText(what(), button);
      clearTimeout(timer);
      if (signal.aborted) return;
      write(note, isCopied ? "Copied" : "Copy failed: the browser blocked clipboard access");
      timer = setTimeout(() => write(note, ""), NOTE_FOR_MS);
    };
    button.addEventListener("click", copy, { signal });
  };
  /** @param {string} label @param {() => string} what */
  const addOne = (label, what) => {
    const button = addControl(bar, "copy");
    write(button, label);
    listen(button, what);
  };
  listen(result, () => (getRun().live ? text.innerText : (getRun().result ?? "")));
  addOne("Copy id", () => getRun().id);
  addOne("Copy as Python", () => `nbrun.get(${JSON.stringify(getRun().id)})`);
  note.className = "nbrun-card__copied";
  note.setAttribute("aria-live", "polite"); // not the role `status`: that is the run's status
  bar.append(note);
  signal.addEventListener("abort", () => clearTimeout(timer));
  return result;
}

/** Labels the button with what a click copies; hides it if there is nothing. @param {HTMLElement} button @param {Copied} run @param {boolean} hasText */
export function drawCopies(button, { live, result, result_cut = 0 }, hasText) {
  if (live) write(button, hasText ? "Copy text so far" : "");
  else if (result_cut) write(button, `Copy the last ${counted(result?.length ?? 0)} characters`);
  else write(button, result ? "Copy result" : "");
}

/** @param {string} text @param {HTMLElement} button */
async function copyText(text, button) {
  try {
    await navigator.clipboard.writeText(text); // only on https and localhost
    return true;
  } catch {
    return copyBySelection(text, button);
  }
}

/** The old way, which works on every page. @param {string} text @param {HTMLElement} button */
function copyBySelection(text, button) {
  const field = add(/** @type {Element} */ (button.parentElement), "textarea", "copy-field");
  field.value = text;
  field.select();
  const isCopied = document.execCommand("copy"); // deprecated, but there is no other way on plain http
  field.remove();
  button.focus({ preventScroll: true });
  return isCopied;
}
