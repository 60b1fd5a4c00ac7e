// @ts-check
/** What a run has written: its text, rendered block by block, and its reasoning. */
import { setSanitised } from "./markup.js";
import { add, addBox, addFold, addText, followEnd, streamInto, suggest, write } from "./nodes.js";
import { counted, earlier } from "./wording.js";

/**
 * @typedef {{ key: number, html?: string, text?: string }} Block  the content of a key never changes
 *
 * @typedef {object} Prose
 * @property {Block[]} [blocks]  the closed blocks of its text
 * @property {string} text  what follows them, not rendered
 * @property {number} text_cut  characters left out at the start
 * @property {string} [output]  what it returned, if that isn't text
 * @property {string} [reasoning]  its end
 * @property {number} [reasoning_count]  all of its characters
 */

/** @param {Element} parent */
export function addProse(parent) {
  const { fold: reasoning, title: reasoningTitle } = addFold(parent, "reasoning");
  const thoughts = addBox(reasoning, "thoughts", "Reasoning");
  const textCut = add(parent, "div", "cut");
  const text = addBox(parent, "text", "Text");
  const blocks = add(text, "div", "blocks");
  const stream = addText(text, "div", "stream").appendChild(new Text());
  const output = addBox(parent, "output", "Result");
  const thought = thoughts.appendChild(new Text());
  return { reasoning, reasoningTitle, thoughts, thought, textCut, text, blocks, stream, output };
}

/** @param {ReturnType<typeof addProse>} prose @param {Prose} written @param {boolean} isLive */
export function drawProse(prose, written, isLive) {
  const blocks = written.blocks ?? [];
  const hasText = Boolean(blocks.length || written.text);
  drawReasoning(prose, written, isLive && !hasText);
  write(prose.textCut, earlier(written.text_cut, "character"));
  prose.text.hidden = !hasText; // first: a hidden box has no end to follow
  if (prose.stream.data !== written.text || isNew(prose.blocks, blocks)) {
    const change = () => {
      drawBlocks(prose.blocks, blocks);
      streamInto(prose.stream, written.text);
    };
    const isShown = prose.blocks.firstChild || prose.stream.data;
    if (isLive || isShown) followEnd(prose.text, change);
    else change(); // a text that is complete is read from its beginning
  }
  write(prose.output, written.output ?? "");
}

/** @param {ReturnType<typeof addProse>} prose @param {Prose} written @param {boolean} isAlone  whether there is no text yet */
function drawReasoning({ reasoning, reasoningTitle, thoughts, thought }, written, isAlone) {
  const [text, count] = [written.reasoning ?? "", written.reasoning_count ?? 0];
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

/** Doesn't touch what is drawn: somebody may have selected a part of it. @param {HTMLElement} list @param {Block[]} blocks */
function drawBlocks(list, blocks) {
  const kept = new Set(blocks.map(keyOf));
  for (const node of /** @type {HTMLElement[]} */ ([...list.children])) if (!kept.has(node.dataset.key)) node.remove();
  const lastKey = Number(/** @type {HTMLElement | null} */ (list.lastElementChild)?.dataset.key ?? -1);
  for (const block of blocks) if (block.key > lastKey) addBlock(list, block);
}

/** @param {HTMLElement} list @param {Block} block */
function addBlock(list, { key, html, text = "" }) {
  const whole = new DocumentFragment(); // so that the page lays it out once
  const node = addText(whole, "div", html ? "block" : "raw-block");
  node.dataset.key = String(key);
  if (html) setSanitised(node, html);
  else node.textContent = text;
  list.append(whole);
}
