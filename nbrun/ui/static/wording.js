// @ts-check
/** Counts and durations that tick in the page; all other amounts come from the kernel as text. */

/** @param {number} count */
export const counted = (count) => count.toLocaleString("en-US");

/** "12 s", "1 min 05 s". @param {number} seconds */
export function wholeDuration(seconds) {
  const [h, min, s] = [seconds / 3600, (seconds / 60) % 60, seconds % 60].map((part) => String(Math.floor(part)));
  if (h !== "0") return `${h} h ${min?.padStart(2, "0")} min`;
  return min === "0" ? `${s} s` : `${min} min ${s?.padStart(2, "0")} s`;
}

/** The same for a tool that has ended, where short times tell something: "140 ms", "3.2 s". @param {number} ms */
export function fineDuration(ms) {
  if (ms < 1000) return `${Math.round(ms)} ms`;
  return ms < 10_000 ? `${(Math.floor(ms / 100) / 10).toFixed(1)} s` : wholeDuration(ms / 1000);
}

/** What is shown of a live run whose kernel is gone. */
export const LOST_WORDS = "Connection to the run lost";

/** @param {number} count @param {string} noun */
export const earlier = (count, noun) => (count > 0 ? `… ${counted(count)} earlier ${noun}${count > 1 ? "s" : ""}` : "");
