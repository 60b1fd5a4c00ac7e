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
 * @typedef {(nodes: Element[]) => void} OnNodes
 *
 * @typedef {{ data: Record<string, unknown> }} Output
 * @typedef {{ length: number, get: (at: number) => Output, set: (at: number, output: object) => void }} Outputs
 * @typedef {{ length: number, get: (at: number) => { outputs?: Outputs } }} Cells
 */

/** One for all cards of a page: each kernel brings this module, and so does each panel. */
const WATCH = Symbol.for("nbrun.places");

/** By then the kernel's own update has arrived, unless the page was reloaded: then it can't. */
const UPDATE_WITHIN_MS = 1000;

/** Reports the nodes of each place in the page, whenever they may have changed. */
function makeWatch() {
  /** @type {Map<string, OnNodes>} */
  const places = new Map();
  const look = () => {
    const nodes = [...document.querySelectorAll(".nbrun-place")];
    for (const [place, onNodes] of places) onNodes(nodes.filter((node) => node.classList.contains(place)));
  };
  const lookSoon = () => inFrame(look);
  const observer = new MutationObserver(lookSoon);
  /** @param {string} place @param {OnNodes} onNodes @param {AbortSignal} signal */
  const add = (place, onNodes, signal) => {
    observer.observe(document.body, { childList: true, subtree: true });
    places.set(place, onNodes);
    lookSoon();
    signal.addEventListener("abort", () => {
      places.delete(place);
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

/** Draw the card over the static one. @param {HTMLElement} node @param {Model} model @param {Render} render */
function mount(node, model, render) {
  const hidden = /** @type {HTMLElement[]} */ ([...node.children]);
  for (const child of hidden) child.style.display = "none";
  // JupyterLab's style of HTML is for texts; a widget's output doesn't have it either.
  const styled = node.closest(".jp-RenderedHTMLCommon");
  styled?.classList.remove("jp-RenderedHTMLCommon");
  const el = node.appendChild(document.createElement("div"));
  const end = render({ model, el });
  return () => {
    end();
    el.remove();
    styled?.classList.add("jp-RenderedHTMLCommon");
    for (const child of hidden) child.style.removeProperty("display");
  };
}

/**
 * Draw the card wherever the page shows its static one, as long as the model exists. Tell the kernel that this works
 * here, and ask it for the final static card if the run has ended and the notebook still has an earlier one.
 * @param {Model} model @param {Render} render @param {AbortSignal} signal
 */
export function mountInPlace(model, render, signal) {
  const place = /** @type {string} */ (model.get("place"));
  const cells = cellsOf(model);
  if (!place || !cells) return;
  /** @type {Map<Element, () => void>} */
  const views = new Map();
  /** @type {Element[]} */
  let places = [];
  let timer = 0;
  let isGone = false;

  const mountAll = () => {
    for (const node of places) {
      if (!isGone && !views.has(node)) views.set(node, mount(/** @type {HTMLElement} */ (node), model, render));
    }
  };
  /** @param {Element[]} nodes */
  const show = (nodes) => {
    for (const [node, end] of views) {
      if (nodes.includes(node)) continue;
      end();
      views.delete(node);
    }
    places = nodes;
    if (nodes.some((node) => !views.has(node))) inFrame(mountAll);
  };
  const askForEnd = () => {
    if (outputsAt(cells, place).length) trySend(() => model.send({ op: "static" }));
  };
  const onRun = () => {
    clearTimeout(timer);
    if (!model.get("run").live) timer = setTimeout(askForEnd, UPDATE_WITHIN_MS);
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
  watchOfPage().add(place, show, signal);
  listen(model, "change:run", onRun, signal);
  listen(model, "msg:custom", onMessage, signal);
  signal.addEventListener("abort", () => {
    clearTimeout(timer);
    show([]);
  });
  trySend(() => model.send({ op: "placed" }));
  onRun();
}
