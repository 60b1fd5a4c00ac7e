// @ts-check
/** Presses on a button that is redrawn or moved before it is released: the browser doesn't turn them into clicks. */

const REDRAWN_WITHIN_MS = 150;

/** The owner of each button. @type {WeakMap<Element, object>} */
const OWNERS = new WeakMap();

/**
 * Count a press on a button that is released where it was pressed, whatever has become of the button meanwhile. A front
 * end may redraw outputs or move them at any time, and a press on Cancel must never be lost.
 * @param {HTMLButtonElement} button @param {object} owner  the same for all that replace it
 */
export function keepPress(button, owner) {
  OWNERS.set(button, owner);
  /** @param {EventTarget | null} target */
  const isOwn = (target) => {
    const found = target instanceof Element && target.closest("button");
    return Boolean(found) && OWNERS.get(/** @type {Element} */ (found)) === owner;
  };
  const clickNow = () => {
    const own = button.isConnected ? button : [...document.querySelectorAll("button")].find(isOwn);
    own?.click();
    return Boolean(own);
  };
  const onDown = () => {
    const { left, right, top, bottom } = button.getBoundingClientRect();
    const press = new AbortController();
    const options = { signal: press.signal, capture: true };
    /** @param {PointerEvent} event */
    const onUp = ({ clientX: x, clientY: y }) => {
      if (x < left || x > right || y < top || y > bottom) return press.abort(); // taken back
      const timer = setTimeout(() => {
        press.abort();
        if (!clickNow()) setTimeout(clickNow, REDRAWN_WITHIN_MS);
      }); // a click of the browser's own comes before that
      press.signal.addEventListener("abort", () => clearTimeout(timer));
    };
    document.addEventListener("pointerup", onUp, options);
    document.addEventListener("pointercancel", () => press.abort(), options); // it has become a touch that scrolls
    document.addEventListener("click", ({ target }) => isOwn(target) && press.abort(), options);
  };
  button.addEventListener("pointerdown", onDown);
}
