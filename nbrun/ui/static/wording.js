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
 * What a run has used, with "≥" where a stream was cut: "≥ 1,204 in · 340 out tokens · ≥ 0.042 USD".
 * @typedef {{ input_tokens: number, output_tokens: number, cost_usd?: number | null, exact: boolean }} Usage
 * @param {Usage} usage
 */
export function usageWords({ input_tokens, output_tokens, cost_usd, exact }) {
  const mark = exact ? "" : "≥ ";
  const parts = [];
  if (input_tokens || output_tokens) parts.push(`${mark}${counted(input_tokens)} in · ${counted(output_tokens)} out tokens`);
  if (cost_usd) parts.push(`${mark}${dollars(cost_usd)} USD`);
  return parts.join(" · ");
}

/** Cents, and of less than ten cents two digits that count: "12.30", "0.0042". @param {number} amount */
function dollars(amount) {
  if (amount >= 0.1) return amount.toLocaleString("en-US", { minimumFractionDigits: 2, maximumFractionDigits: 2 });
  return amount.toLocaleString("en-US", { maximumSignificantDigits: 2, maximumFractionDigits: 8 });
}

/** @param {number} count @param {string} noun */
export const earlier = (count, noun) => (count > 0 ? `… ${counted(count)} earlier ${noun}${count > 1 ? "s" : ""}` : "");
