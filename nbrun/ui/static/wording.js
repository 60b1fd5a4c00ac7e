// @ts-check
/** Numbers and lengths of time as people say them. */

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

/**
 * What a run has used, with "≥" where a stream was cut: "≥ 1,204 in · 340 out tokens · ≥ $0.0423".
 * @typedef {{ input_tokens: number, output_tokens: number, cost_usd?: number | null, exact: boolean }} Usage
 * @param {Usage} usage
 */
export function usageWords(usage) {
  const { input_tokens, output_tokens, exact } = usage;
  const tokens = `${exact ? "" : "≥ "}${counted(input_tokens)} in · ${counted(output_tokens)} out tokens`;
  return [input_tokens || output_tokens ? tokens : "", costWords(usage)].filter(Boolean).join(" · ");
}

/** In US dollars: whole cents, or what is less than a dollar as far as it counts. @param {Usage} usage */
export function costWords({ cost_usd, exact }) {
  if (cost_usd === null || cost_usd === undefined) return "";
  const [minimumFractionDigits, maximumFractionDigits] = cost_usd >= 1 ? [2, 2] : [0, 6];
  return `${exact ? "" : "≥ "}$${cost_usd.toLocaleString("en-US", { minimumFractionDigits, maximumFractionDigits })}`;
}

/** @param {number} count @param {string} noun */
export const earlier = (count, noun) => (count > 0 ? `… ${counted(count)} earlier ${noun}${count > 1 ? "s" : ""}` : "");
