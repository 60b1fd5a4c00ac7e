// @ts-check
/** The one way from HTML to nodes of the page. */

const TAGS = new Set(
  "P BR HR BLOCKQUOTE UL OL LI PRE CODE EM STRONG S A TABLE THEAD TBODY TR TH TD".split(" "),
);
const DIRECTED = new Set("P BLOCKQUOTE UL OL LI TH TD".split(" ")); // may have a direction of their own
const DEEPEST = 40;

/**
 * Fills a node with the plain elements of a rendered text's HTML; everything else becomes text.
 *
 * The kernel has cleaned the HTML, but this doesn't rely on it: a message can come from anything that may write to the
 * kernel. Nothing that was parsed gets into the page: the parser's document runs no script and fetches nothing, and each
 * node here is a new one, with no attributes but those set below.
 * @param {HTMLElement} node @param {string} html
 */
export function setSanitised(node, html) {
  const parsed = new DOMParser().parseFromString(html, "text/html");
  node.replaceChildren();
  copyInto(node, parsed.body, 0);
}

/** @param {Node} target @param {Node} source @param {number} depth */
function copyInto(target, source, depth) {
  for (const child of source.childNodes) {
    if (child instanceof Element && TAGS.has(child.tagName) && depth < DEEPEST) {
      copyInto(target.appendChild(emptyCopy(child)), child, depth + 1);
    } else if (child instanceof Element || child instanceof Text) {
      target.appendChild(document.createTextNode(child.textContent ?? ""));
    }
  }
}

/** @param {Element} element */
function emptyCopy(element) {
  const copy = document.createElement(element.tagName);
  if (DIRECTED.has(element.tagName)) copy.dir = "auto";
  if (copy instanceof HTMLAnchorElement) setLink(copy, element.getAttribute("href") ?? "");
  if (copy instanceof HTMLOListElement) copy.start = parseInt(element.getAttribute("start") ?? "1") || 1;
  return copy;
}

/** A link leads to other pages only, and shows where to. @param {HTMLAnchorElement} link @param {string} href */
function setLink(link, href) {
  if (!/^https?:\/\//i.test(href) || !URL.canParse?.(href)) return;
  const url = new URL(href).href;
  Object.assign(link, { href: url, title: url, target: "_blank", rel: "noopener noreferrer nofollow" });
}
