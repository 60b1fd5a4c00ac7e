// @ts-check
/** When cards are drawn: with the page's frames, and of many that change at once a few in each, so that typing goes on. */

const WORK_MS = 10; // of a frame; whatever begins within it is done
/** @type {Set<() => void>} */
const DRAWINGS = new Set();
let frameOfAll = 0;

function drawSome() {
  const until = performance.now() + WORK_MS;
  frameOfAll = 0;
  try {
    for (const drawing of DRAWINGS) { // what is added meanwhile comes in the same frame, if there is time
      DRAWINGS.delete(drawing);
      drawing();
      if (performance.now() >= until) break;
    }
  } finally {
    if (DRAWINGS.size) frameOfAll ||= requestAnimationFrame(drawSome);
  }
}

/** Has this done with one of the next frames, once. @param {() => void} drawing */
export function inFrame(drawing) {
  DRAWINGS.add(drawing);
  frameOfAll ||= requestAnimationFrame(drawSome);
}

/** Has it not done, if it still waits. @param {() => void} drawing */
export function notInFrame(drawing) {
  DRAWINGS.delete(drawing);
  if (DRAWINGS.size) return;
  cancelAnimationFrame(frameOfAll);
  frameOfAll = 0;
}
