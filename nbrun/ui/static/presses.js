// @ts-check
/** Presses on a button that is redrawn before it is released: the browser doesn't turn them into clicks. */

const REDRAWN_WITHIN_MS = 150;

/** The owner of each button. @type {WeakMap<Element, object>} */
const OWNERS = new WeakMap();

/**
 * Count a press on a button that is released on its replacement. A front end may redraw outputs at any time, and a
 * press on Cancel must never be lost.
 * @param {HTMLElement} button @param {object} owner  the same for both
 */
export function keepPress(button, owner) {
  OWNERS.set(button, owner);
  /** @param {PointerEvent} event */
  const finish = (event) => {
    const under = document.elementFromPoint(event.clientX, event.clientY)?.closest("button");
    if (under && OWNERS.get(under) === owner) under.click();
  };
  /** @param {PointerEvent} event */
  const onUp = (event) => {
    if (!button.isConnected) setTimeout(finish, REDRAWN_WITHIN_MS, event);
  };
  const onDown = () => document.addEventListener("pointerup", onUp, { once: true, capture: true });
  button.addEventListener("pointerdown", onDown);
}
