// @ts-check
/**
 * The module of each card; what draws it is code that the kernel sends once for all its cards. A page never unloads a
 * module, so with a large one for each card it would grow all day.
 */

/**
 * @typedef {import("./channels.js").Model} Model
 * @typedef {{ text: string, style: string }} Code
 *
 * @typedef {object} Drawing
 * @property {(widget: { model: Model }) => () => void} initialize
 * @property {(view: { model: Model, el: HTMLElement }) => () => void} render
 */

const DRAWINGS = Symbol.for("nbrun.drawings");

/** The drawing code of this page, by its text: two kernels may have two versions. @returns {Map<string, Promise<Drawing>>} */
const drawingsOfPage = () => (/** @type {any} */ (globalThis)[DRAWINGS] ??= new Map());

/** @param {Model} model @returns {Promise<Drawing>} */
async function drawingOf(model) {
  const code = await codeOf(model);
  const drawings = drawingsOfPage();
  const drawing = drawings.get(code.text) ?? loaded(code);
  drawings.set(code.text, drawing);
  return drawing;
}

/** @param {Code} code @returns {Promise<Drawing>} */
async function loaded({ text, style }) {
  document.head.appendChild(document.createElement("style")).textContent = style;
  const url = URL.createObjectURL(new Blob([text], { type: "text/javascript" }));
  try {
    return (await import(url)).default;
  } finally {
    URL.revokeObjectURL(url);
  }
}

/** Gets the code from its model, without asking the kernel; undocumented. @param {Model} model @returns {Promise<Code>} */
async function codeOf(model) {
  try {
    const code = await model.widget_manager?.get_model?.(model.get("code_id"));
    if (code) return { text: code.get("text"), style: code.get("style") };
  } catch (error) {
    console.warn("nbrun: requesting the code of the cards", error);
  }
  return askForCode(model);
}

/** @param {Model} model @returns {Promise<Code>} */
function askForCode(model) {
  return new Promise((resolve) => {
    /** @param {{ op?: string } & Code | undefined} message */
    const onMessage = (message) => {
      if (message?.op !== "code") return;
      model.off("msg:custom", onMessage);
      resolve(message);
    };
    model.on("msg:custom", onMessage);
    model.send({ op: "code" });
  });
}

/** @param {{ model: Model }} widget */
const initialize = async ({ model }) => (await drawingOf(model)).initialize({ model });

/** @param {{ model: Model, el: HTMLElement }} view */
const render = async ({ model, el }) => (await drawingOf(model)).render({ model, el });

export default { initialize, render };
