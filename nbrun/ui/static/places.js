// @ts-check
/**
 * Where a live card is drawn: over the static card in the notebook's file. Of a widget's own output, a file keeps only
 * a name; JupyterLab prefers this to the rest of the output, and would later say "model not found".
 */
import { inFrame } from "./frames.js";
import { KERNEL_IS_LEFT, listen, trySend, watchKernel } from "./channels.js";

/**
 * @typedef {import("./channels.js").Model} Model
 * @typedef {(view: { model: Model, el: HTMLElement }) => () => void} Render
 * @typedef {object} Place  `show` gets all its nodes; `isLost` says whether one of its views is in none of them any more
 * @property {(nodes: Element[]) => void} show
 * @property {() => boolean} isLost
 *
 * @typedef {{ data: Record<string, unknown> }} Output
 * @typedef {{ length: number, get: (at: number) => Output, set: (at: number, output: object) => void }} Outputs
 * @typedef {{ length: number, get: (at: number) => { outputs?: Outputs } }} Cells
 */

/** One for all cards of a page: each kernel brings this module, and so does each panel. */
const WATCH = Symbol.for("nbrun.watch of places");

/** By then the kernel's own update has arrived, unless the page was reloaded: then it can't. */
const UPDATE_WITHIN_MS = 1000;

/** Reports the nodes of each place in the page, whenever they may have changed. */
function makeWatch() {
  /** @type {Map<string, Place>} */
  const places = new Map();
  const look = () => {
    const nodes = [...document.querySelectorAll(".nbrun-place")];
    for (const [name, place] of places) place.show(nodes.filter((node) => node.classList.contains(name)));
  };
  const lookSoon = () => inFrame(look);
  // A view is back before the page is drawn without it, or anything moves.
  const observer = new MutationObserver(() => ([...places.values()].some((place) => place.isLost()) ? look() : lookSoon()));
  /** @param {string} name @param {Place} place @param {AbortSignal} signal */
  const add = (name, place, signal) => {
    observer.observe(document.body, { childList: true, subtree: true });
    places.set(name, place);
    lookSoon();
    signal.addEventListener("abort", () => {
      places.delete(name);
      if (!places.size) observer.disconnect();
    });
  };
  return { add };
}

/** @returns {ReturnType<typeof makeWatch>} */
function watchOfPage() {
  const page = /** @type {any} */ (globalThis);
  return (page[WATCH] ??= makeWatch());
}

/** The cells of the notebook. Undocumented; JupyterLab 4 and Notebook 7 have them.
 * @param {Model} model @returns {Cells | undefined} */
function cellsOf(model) {
  const cells = model.widget_manager?.context?.model?.cells;
  return typeof cells?.get === "function" ? cells : undefined;
}

/** The outputs that hold the static card of a place. @param {Cells | undefined} cells @param {string} place */
function outputsAt(cells, place) {
  const found = [];
  for (let index = 0; index < (cells?.length ?? 0); index++) {
    const outputs = cells?.get(index).outputs;
    for (let at = 0; outputs && at < outputs.length; at++) {
      if (String(outputs.get(at).data["text/html"] ?? "").includes(`nbrun-place ${place}"`)) found.push({ outputs, at });
    }
  }
  return found;
}

/**
 * A view over the static card. It can move to another node, as when the front end redraws the output: what is typed,
 * folded, scrolled and focused in it stays.
 * @param {HTMLElement} node @param {Model} model @param {Render} render
 */
function makeView(node, model, render) {
  const el = document.createElement("div");
  const held = holdPlaceIn(el);
  let leave = () => {};
  /** @param {HTMLElement} node */
  const enter = (node) => {
    leave();
    const hidden = /** @type {HTMLElement[]} */ ([...node.children]);
    for (const child of hidden) child.style.display = "none";
    // JupyterLab's style of HTML is for texts; a widget's output doesn't have it either.
    const styled = node.closest(".jp-RenderedHTMLCommon");
    styled?.classList.remove("jp-RenderedHTMLCommon");
    node.appendChild(el);
    held.restore();
    leave = () => {
      styled?.classList.add("jp-RenderedHTMLCommon");
      for (const child of hidden) child.style.removeProperty("display");
    };
  };
  enter(node);
  /** JupyterLab leaves the focus in an output when its own cell is clicked, and then takes no keys from there. */
  const leaveFocus = (/** @type {PointerEvent} */ { target }) => {
    const focused = document.activeElement;
    if (focused instanceof HTMLElement && el.contains(focused) && target instanceof Node && !el.contains(target)) focused.blur();
  };
  document.addEventListener("pointerdown", leaveFocus, { capture: true });
  const endView = render({ model, el });
  const end = () => {
    document.removeEventListener("pointerdown", leaveFocus, { capture: true });
    endView();
    el.remove();
    leave();
  };
  return { el, enter, end };
}

/** @typedef {ReturnType<typeof makeView>} View */

/** Remembers what a node loses when it is moved: the focus, and how far its boxes are scrolled. @param {HTMLElement} el */
function holdPlaceIn(el) {
  /** @type {HTMLElement | null} */
  let focused = null;
  /** @type {Map<Element, number>} */
  const scrolled = new Map();
  const forget = () => {
    if (el.isConnected && !el.contains(document.activeElement)) focused = null; // else it was removed
  };
  el.addEventListener("focusin", ({ target }) => void (focused = /** @type {HTMLElement} */ (target)));
  el.addEventListener("focusout", () => queueMicrotask(forget));
  const onScroll = (/** @type {Event} */ { target }) => void (target instanceof Element && scrolled.set(target, target.scrollTop));
  el.addEventListener("scroll", onScroll, { capture: true, passive: true });
  const restore = () => {
    for (const [box, top] of scrolled) box.scrollTop = top;
    if (document.activeElement === document.body) focused?.focus({ preventScroll: true });
  };
  return { restore };
}

/**
 * Draw the card wherever the page shows its static one, as long as the model exists. Tell the kernel that this works
 * here, and ask it for the final static card if the run has ended and the notebook still has an earlier one.
 * @param {Model} model @param {Render} render @param {AbortSignal} signal
 * @param {() => boolean} isEnded  whether there is a final one @param {string} trait  what has the card's state
 */
export function mountInPlace(model, render, signal, isEnded, trait = "run") {
  const place = /** @type {string} */ (model.get("place"));
  const cells = cellsOf(model);
  if (!place || !cells) return;
  /** @type {Map<Element, View>} */
  const views = new Map();
  /** @type {Element[]} */
  let places = [];
  let timer = 0;
  let isGone = false;

  const mountAll = () => {
    for (const node of places) {
      if (!isGone && !views.has(node)) views.set(node, makeView(/** @type {HTMLElement} */ (node), model, render));
    }
  };
  /** @param {Element[]} nodes */
  const show = (nodes) => {
    const left = [...views].filter(([node]) => !nodes.includes(node));
    const bare = isGone ? [] : nodes.filter((node) => !views.has(node));
    for (const [node, view] of left) {
      const next = /** @type {HTMLElement | undefined} */ (bare.shift());
      views.delete(node);
      if (next) view.enter(next);
      else view.end();
      if (next) views.set(next, view);
    }
    places = nodes;
    if (nodes.some((node) => !views.has(node))) inFrame(mountAll);
  };
  const askForEnd = () => {
    if (outputsAt(cells, place).length) trySend(() => model.send({ op: "static" }));
  };
  const onRun = () => {
    clearTimeout(timer);
    if (isEnded()) timer = setTimeout(askForEnd, UPDATE_WITHIN_MS);
  };
  /** @param {{ op?: string, data?: object } | undefined} message */
  const onMessage = (message) => {
    if (message?.op !== "static") return;
    const output = { output_type: "display_data", metadata: {}, data: message.data };
    for (const { outputs, at } of outputsAt(cells, place)) outputs.set(at, output);
  };

  /** Cards that are drawn show it; new ones wouldn't know, so there are none. @param {string} why */
  const onGone = (why) => {
    isGone = true;
    if (why === KERNEL_IS_LEFT) show([]);
  };

  watchKernel(model, onGone, signal);
  const isLost = () => [...views.values()].some(({ el }) => !el.isConnected);
  watchOfPage().add(place, { show, isLost }, signal);
  listen(model, `change:${trait}`, onRun, signal);
  listen(model, "msg:custom", onMessage, signal);
  signal.addEventListener("abort", () => {
    clearTimeout(timer);
    show([]);
  });
  trySend(() => model.send({ op: "placed" }));
  onRun();
}
