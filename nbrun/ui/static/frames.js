// @ts-check
/** When cards are drawn: in the page's frames, and only a few in each, so that typing stays smooth. */

const WORK_MS = 10; // of a frame; a drawing that starts within it is completed
/** @type {Set<() => void>} */
const DRAWINGS = new Set();
let frameOfAll = 0;

function drawSome() {
  const until = performance.now() + WORK_MS;
  frameOfAll = 0;
  try {
    for (const drawing of DRAWINGS) { // what is added meanwhile is drawn in the same frame, if there is time
      DRAWINGS.delete(drawing);
      drawing();
      if (performance.now() >= until) break;
    }
  } finally {
    if (DRAWINGS.size) frameOfAll ||= requestAnimationFrame(drawSome);
  }
}

/** Calls this in one of the next frames, once. @param {() => void} drawing */
export function inFrame(drawing) {
  DRAWINGS.add(drawing);
  frameOfAll ||= requestAnimationFrame(drawSome);
}

/** Withdraws what hasn't been called yet. @param {() => void} drawing */
export function notInFrame(drawing) {
  DRAWINGS.delete(drawing);
  if (DRAWINGS.size) return;
  cancelAnimationFrame(frameOfAll);
  frameOfAll = 0;
}
