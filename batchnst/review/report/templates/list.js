// The list of pairs. Only the lines near the window are in the document: a line is a row of cards, or the heading of a
// group. All rows have the same height.

const list = byId("list");
const AHEAD = 900; // pixels above and below the window
const MOST_PRINTED = 300; // pairs
const HEADING = 64; // height of a heading, in pixels
let groups = []; // of pairs: { name, members }; one without a name if they are not grouped
let order = []; // the pairs of all groups
let lines = []; // { top, group } or { top, first, members }: `first` is the position of the first member in `order`
let columns = 1;
let rowHeight = 400;
let shown = new Map(); // nodes of the lines in the document, by number
let width = 0;

function makeLine(number) {
  const { top, group, first, members } = lines[number];
  const count = group && element("small", {}, ` ${plural(group.members.length, "pair")}`);
  const node = group
    ? element("h3", { className: "group" }, group.name, count)
    : element("div", { className: "row", role: "presentation" }, ...members.map((i, k) => card(i, first + k)));
  node.style.top = `${top}px`;
  return node;
}

// Divide the groups into lines; return the height of all.
function makeLines() {
  lines = [];
  let top = 0;
  let first = 0;
  for (const group of groups) {
    if (group.name !== null) {
      lines.push({ top, group });
      top += HEADING;
    }
    for (let start = 0; start < group.members.length; start += columns) {
      const members = group.members.slice(start, start + columns);
      lines.push({ top, first, members });
      first += members.length;
      top += rowHeight;
    }
  }
  return top;
}

// Build the list again for the current order and width.
function layOut() {
  const style = getComputedStyle(list);
  const gap = parseFloat(style.columnGap);
  width = list.clientWidth;
  columns = Math.max(1, Math.floor((width + gap) / (parseFloat(style.getPropertyValue("--card")) + gap)));
  list.style.setProperty("--columns", columns);
  list.replaceChildren();
  shown = new Map();
  if (order.length) {
    const row = element("div", { className: "row" }, card(order[0], 0));
    list.append(row);
    rowHeight = row.offsetHeight;
    row.remove();
  }
  list.style.height = `${makeLines()}px`;
  fill();
}

// The number of the last line that begins above `top`.
function lineAt(top) {
  let [low, high] = [0, lines.length - 1];
  while (low < high) {
    const middle = Math.ceil((low + high) / 2);
    if (lines[middle].top <= top) low = middle;
    else high = middle - 1;
  }
  return low;
}

// Add the lines near the window and remove the others, except the one that has the focus.
function fill() {
  if (!lines.length) return;
  const top = -list.getBoundingClientRect().top;
  const [first, last] = [lineAt(top - AHEAD), lineAt(top + innerHeight + AHEAD)];
  for (const [number, node] of shown) {
    if ((number < first || number > last) && !node.contains(document.activeElement)) {
      node.remove();
      shown.delete(number);
    }
  }
  for (let number = first; number <= last; number++) {
    if (shown.has(number)) continue;
    const following = Math.min(...[...shown.keys()].filter((key) => key > number));
    const node = makeLine(number);
    list.insertBefore(node, shown.get(following) ?? null);
    shown.set(number, node);
  }
}

const lineOf = (i) => lines.findIndex(({ members }) => members?.includes(i));

function focusCard(i) {
  const number = lineOf(i);
  if (number < 0) return;
  const bar = byId("controls").getBoundingClientRect();
  const above = bar.top <= 0 ? bar.height : 0; // what the controls cover
  const below = byId("tray").offsetHeight;
  const top = list.getBoundingClientRect().top + lines[number].top;
  if (top < above || top + rowHeight > innerHeight - below) scrollBy({ top: top - above - 16, behavior: "instant" });
  fill();
  list.querySelector(`[data-pair="${i}"]`).focus({ preventScroll: true });
}

// The pair that an arrow key leads to from pair `i`; `i` itself at the end of the list.
function pairAfter(key, i) {
  if (key === "Home") return order[0];
  if (key === "End") return order.at(-1);
  const [down, right] = ARROWS[key];
  if (right) return order[order.indexOf(i) + right] ?? i;
  const number = lineOf(i);
  const rows = lines.filter(({ members }) => members);
  const next = rows[rows.indexOf(lines[number]) + down];
  if (!next) return i;
  return next.members[Math.min(lines[number].members.indexOf(i), next.members.length - 1)];
}

let due = false;
addEventListener("scroll", () => {
  if (!due) requestAnimationFrame(() => fill((due = false)));
  due = true;
}, { passive: true });
new ResizeObserver(() => {
  if (list.clientWidth !== width && !list.classList.contains("printed")) layOut();
}).observe(list);
addEventListener("beforeprint", () => {
  list.classList.add("printed");
  list.replaceChildren(...order.slice(0, MOST_PRINTED).map(card));
});
addEventListener("afterprint", () => {
  list.classList.remove("printed");
  layOut();
});
