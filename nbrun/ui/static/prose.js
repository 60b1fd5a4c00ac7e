// @ts-check
/** What a run says: its text, drawn where a block of it is closed; and its reasoning. */
import { setSanitised } from "./markup.js";
import { add, addBox, addFold, addSaid, followEnd, streamInto, suggest, write } from "./nodes.js";
import { counted, earlier } from "./wording.js";

/**
 * @typedef {{ key: number, html?: string, text?: string }} Block  a key stands for one content, for ever
 *
 * @typedef {object} Said
 * @property {Block[]} [blocks]  the closed blocks of its text
 * @property {string} text  what stands behind them, as it came
 * @property {number} text_cut  characters left out in front
 * @property {string} [output]  what it returned, if that is no text
 * @property {string} [reasoning]  its tail
 * @property {number} [reasoning_count]  characters of it all
 */

/** @param {Element} parent */
export function addProse(parent) {
  const { fold: reasoning, title: reasoningTitle } = addFold(parent, "reasoning");
  const thoughts = addBox(reasoning, "thoughts", "Reasoning");
  const textCut = add(parent, "div", "cut");
  const text = addBox(parent, "text", "Text");
  const blocks = add(text, "div", "blocks");
  const stream = addSaid(text, "div", "stream").appendChild(new Text());
  const output = addBox(parent, "output", "Result");
  const thought = thoughts.appendChild(new Text());
  return { reasoning, reasoningTitle, thoughts, thought, textCut, text, blocks, stream, output };
}

/** @param {ReturnType<typeof addProse>} prose @param {Said} said @param {boolean} isLive */
export function drawProse(prose, said, isLive) {
  const blocks = said.blocks ?? [];
  const hasText = Boolean(blocks.length || said.text);
  drawReasoning(prose, said, isLive && !hasText);
  write(prose.textCut, earlier(said.text_cut, "character"));
  prose.text.hidden = !hasText; // first: a hidden box has no end to follow
  if (prose.stream.data !== said.text || isNew(prose.blocks, blocks)) {
    const change = () => {
      drawBlocks(prose.blocks, blocks);
      streamInto(prose.stream, said.text);
    };
    const isShown = prose.blocks.firstChild || prose.stream.data;
    if (isLive || isShown) followEnd(prose.text, change);
    else change(); // what is over is read from its beginning
  }
  write(prose.output, said.output ?? "");
}

/** @param {ReturnType<typeof addProse>} prose @param {Said} said @param {boolean} isAlone  nothing was said yet */
function drawReasoning({ reasoning, reasoningTitle, thoughts, thought }, said, isAlone) {
  const [text, count] = [said.reasoning ?? "", said.reasoning_count ?? 0];
  reasoning.hidden = !text;
  suggest(reasoning, isAlone && Boolean(text));
  write(reasoningTitle, `Reasoning (${counted(count)} characters)`);
  if (thought.data !== text) followEnd(thoughts, () => streamInto(thought, text));
}

/** @param {HTMLElement} list @param {Block[]} blocks */
function isNew(list, blocks) {
  const [first, last] = /** @type {(HTMLElement | null)[]} */ ([list.firstElementChild, list.lastElementChild]);
  return first?.dataset.key !== keyOf(blocks[0]) || last?.dataset.key !== keyOf(blocks.at(-1));
}

/** @param {Block | undefined} block */
const keyOf = (block) => (block ? String(block.key) : undefined);

/** Leaves what is drawn alone: somebody may have selected a part of it. @param {HTMLElement} list @param {Block[]} blocks */
function drawBlocks(list, blocks) {
  const kept = new Set(blocks.map(keyOf));
  for (const node of /** @type {HTMLElement[]} */ ([...list.children])) if (!kept.has(node.dataset.key)) node.remove();
  const lastKey = Number(/** @type {HTMLElement | null} */ (list.lastElementChild)?.dataset.key ?? -1);
  for (const block of blocks) if (block.key > lastKey) addBlock(list, block);
}

/** @param {HTMLElement} list @param {Block} block */
function addBlock(list, { key, html, text = "" }) {
  const whole = new DocumentFragment(); // so that the page lays it out once
  const node = addSaid(whole, "div", html ? "block" : "raw-block");
  node.dataset.key = String(key);
  if (html) setSanitised(node, html);
  else node.textContent = text;
  list.append(whole);
}
