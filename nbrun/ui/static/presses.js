// @ts-check
/** Presses on a button that is redrawn or moved before it is released: the browser doesn't turn them into clicks. */

const REDRAWN_WITHIN_MS = 150;

/** The owner of each button. @type {WeakMap<Element, object>} */
const OWNERS = new WeakMap();

/**
 * Count a press on a button that is released on its replacement, or on itself in another place. A front end may redraw
 * outputs at any time, and a press on Cancel must never be lost.
 * @param {HTMLElement} button @param {object} owner  the same for both
 */
export function keepPress(button, owner) {
  OWNERS.set(button, owner);
  /** @param {PointerEvent} event */
  const finish = (event) => {
    const under = document.elementFromPoint(event.clientX, event.clientY)?.closest("button");
    if (under && OWNERS.get(under) === owner) under.click();
  };
  const onDown = () => {
    const place = button.closest(".nbrun-place");
    /** @param {PointerEvent} event */
    const onUp = (event) => {
      const isSame = button.isConnected && button.closest(".nbrun-place") === place;
      if (!isSame) setTimeout(finish, REDRAWN_WITHIN_MS, event);
    };
    document.addEventListener("pointerup", onUp, { once: true, capture: true });
  };
  button.addEventListener("pointerdown", onDown);
}
