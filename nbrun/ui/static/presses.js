// @ts-check
/** Presses on a button that is drawn anew before it is released: the browser makes no click of them. */

const DRAWN_WITHIN_MS = 150;

/** Whose button it is. @type {WeakMap<Element, object>} */
const OWNERS = new WeakMap();

/**
 * Have a press that began on a button count where it is released on the one that has taken its place. A front end draws
 * outputs anew when it likes, and who presses Cancel must not find that nothing has happened.
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
    if (!button.isConnected) setTimeout(finish, DRAWN_WITHIN_MS, event);
  };
  const onDown = () => document.addEventListener("pointerup", onUp, { once: true, capture: true });
  button.addEventListener("pointerdown", onDown);
}
