// The list of pairs. Its state (search, filters, order, the open pair) is kept in the fragment of the page's address.

const SVG = "http://www.w3.org/2000/svg";
// The same as SPARK_LEVELS in curves.py.
const LEVELS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

// The small curve of the total loss on the card of pair `i`.
function spark(i) {
  const points = [...pairs.spark[i]].map((letter, k, all) => {
    return `${((k / (all.length - 1)) * 100).toFixed(1)} ${63 - LEVELS.indexOf(letter)}`;
  });
  const svg = document.createElementNS(SVG, "svg");
  const attributes = { class: "spark", viewBox: "0 -3 100 70", preserveAspectRatio: "none", "aria-hidden": "true" };
  Object.entries(attributes).forEach(([name, value]) => svg.setAttribute(name, value));
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", points.length ? `M${points.join("L")}` : "");
  svg.append(path);
  return svg;
}

function result(i) {
  if (pairs.ok[i]) return picture(pairs.result[i], "Result");
  return element("span", { className: "failure" }, element("b", {}, errorType(i)), pairs.error[i] ?? "");
}

function caption(i) {
  const time = duration(pairs.seconds[i]);
  const text = pairs.ok[i] ? `loss ${figure(pairs.loss[i])} · ${time}` : time;
  return element(
    "span",
    { className: "caption", id: `card-${i}` },
    element("span", { className: "name", title: `${title(i)}\n${pairs.id[i]}` }, title(i)),
    element("span", { className: "line" }, text, ...tags(i)),
  );
}

// A link that opens pair `i`.
function link(i, properties, ...children) {
  const node = element("a", { href: `#${new URLSearchParams({ pair: pairs.id[i] })}`, ...properties }, ...children);
  node.dataset.pair = i;
  return node;
}

function card(i, position) {
  const inputs = [pairs.contentPicture[i], ...pairs.stylePictures[i]].slice(0, 3);
  const node = link(
    i,
    { className: "card", "aria-labelledby": `card-${i}` },
    element("span", { className: "inputs" }, ...inputs.map((input, k) => picture(input, k ? "Style" : "Content"))),
    element("span", { className: "result" }, result(i)),
    caption(i),
    spark(i),
  );
  const item = { className: "item", role: "listitem", "aria-posinset": position + 1, "aria-setsize": order.length };
  return element("div", item, node);
}

// Only the rows near the window are in the document. All rows have the same height.

const list = byId("list");
const AHEAD = 900; // pixels above and below the window
const MOST_PRINTED = 300; // pairs
let order = [];
let columns = 1;
let rowHeight = 400;
let rows = new Map();
let width = 0;

function makeRow(number) {
  const members = order.slice(number * columns, (number + 1) * columns);
  const row = element("div", { className: "row", role: "presentation" });
  row.append(...members.map((i, k) => card(i, number * columns + k)));
  row.style.top = `${number * rowHeight}px`;
  return row;
}

// Build the list again for the current order and width.
function layOut() {
  const style = getComputedStyle(list);
  const gap = parseFloat(style.columnGap);
  width = list.clientWidth;
  columns = Math.max(1, Math.floor((width + gap) / (parseFloat(style.getPropertyValue("--card")) + gap)));
  list.style.setProperty("--columns", columns);
  list.replaceChildren();
  rows = new Map();
  if (order.length) {
    rows.set(0, makeRow(0));
    list.append(rows.get(0));
    rowHeight = rows.get(0).offsetHeight;
  }
  list.style.height = `${Math.ceil(order.length / columns) * rowHeight}px`;
  fill();
}

// Add the rows near the window and remove the others, except the first row and the one that has the focus.
function fill() {
  const top = -list.getBoundingClientRect().top;
  const first = Math.max(0, Math.floor((top - AHEAD) / rowHeight));
  const last = Math.min(Math.ceil(order.length / columns) - 1, Math.floor((top + innerHeight + AHEAD) / rowHeight));
  for (const [number, row] of rows) {
    if (number && (number < first || number > last) && !row.contains(document.activeElement)) {
      row.remove();
      rows.delete(number);
    }
  }
  for (let number = first; number <= last; number++) {
    if (rows.has(number)) continue;
    const following = Math.min(...[...rows.keys()].filter((key) => key > number));
    const row = makeRow(number);
    list.insertBefore(row, rows.get(following) ?? null);
    rows.set(number, row);
  }
}

function focusCard(i) {
  const position = order.indexOf(i);
  if (position < 0) return;
  const top = list.getBoundingClientRect().top + Math.floor(position / columns) * rowHeight;
  if (top < 0 || top + rowHeight > innerHeight) scrollBy({ top: top - innerHeight / 4, behavior: "instant" });
  fill();
  list.querySelector(`[data-pair="${i}"]`).focus({ preventScroll: true });
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

// Search, filters and order.

const state = { q: "", status: "", style: "", reason: "", sort: "", pair: "" };
const controls = byId("controls").elements;
const STATUS = {
  "": ["all", () => true],
  failed: ["failed", (i) => !pairs.ok[i]],
  ok: ["painted", (i) => pairs.ok[i]],
  retried: ["tried several times", (i) => pairs.attempt[i] > 1],
  rescued: ["rescued after divergence", (i) => pairs.rescued[i]],
};
const down = (name) => (a, b) => (pairs[name][b] ?? -Infinity) - (pairs[name][a] ?? -Infinity) || a - b;
const ORDER = {
  "": (a, b) => a - b,
  "loss-down": down("loss"),
  "loss-up": (a, b) => (pairs.loss[a] ?? Infinity) - (pairs.loss[b] ?? Infinity) || a - b,
  seconds: down("seconds"),
  ended: down("ended"),
  name: (a, b) => title(a).localeCompare(title(b)) || a - b,
};
let searchTexts = null;

function searchText(i) {
  const inputs = [pairs.content[i], ...pairs.styles[i]].map((number) => addresses[number]);
  const reason = reasons[pairs.reason[i]] ?? "";
  return [pairs.id[i], pairs.output[i], ...inputs, reason, pairs.error[i] ?? ""].join("\n").toLowerCase();
}

function matches(i) {
  if (!STATUS[state.status][1](i)) return false;
  if (state.style !== "" && !pairs.styles[i].includes(Number(state.style))) return false;
  if (state.reason !== "" && pairs.reason[i] !== Number(state.reason)) return false;
  return !state.q || state.q.toLowerCase().split(/\s+/).every((word) => searchTexts[i].includes(word));
}

// Apply the state to the list.
function apply() {
  if (state.q) searchTexts ??= pairs.id.map((_, i) => searchText(i));
  order = pairs.id.map((_, i) => i).filter(matches).sort(ORDER[state.sort]);
  const part = order.length === pairs.id.length ? "" : `${whole.format(order.length)} of `;
  const reason = state.reason === "" ? "" : ` that failed with ${reasons[state.reason]}`;
  byId("shown").textContent = part + plural(pairs.id.length, "pair") + reason;
  byId("clear").hidden = !(state.q || state.status || state.style || state.reason);
  layOut();
}

// The fragment of the page's address for the state with these changes.
function hashWith(changes) {
  return `#${new URLSearchParams(Object.entries({ ...state, ...changes }).filter(([, value]) => value !== ""))}`;
}

function change(changes) {
  Object.assign(state, changes);
  history.replaceState(null, "", hashWith({}));
  showState();
  apply();
}

// Read the state from the address; return true if this changes the list.
function readHash() {
  if (location.hash && !location.hash.includes("=")) return false;
  const parameters = new URLSearchParams(location.hash.slice(1));
  const before = hashWith({ pair: "" });
  for (const name of Object.keys(state)) state[name] = parameters.get(name) ?? "";
  const known = { status: STATUS, sort: ORDER, style: addresses, reason: reasons };
  for (const [name, values] of Object.entries(known)) if (!Object.hasOwn(values, state[name])) state[name] = "";
  return before !== hashWith({ pair: "" });
}

function showState() {
  for (const name of ["q", "status", "style", "sort"]) controls[name].value = state[name];
}

function fillControls() {
  controls.status.replaceChildren();
  controls.style.replaceChildren();
  const option = (value, name, number) => element("option", { value }, `${name} (${whole.format(number)})`);
  for (const [value, [name, test]] of Object.entries(STATUS)) {
    const number = pairs.id.filter((_, i) => test(i)).length;
    if (number) controls.status.append(option(value, name, number));
  }
  const uses = new Map();
  pairs.styles.flat().forEach((style) => uses.set(style, (uses.get(style) ?? 0) + 1));
  const styles = [...uses.keys()].sort((a, b) => names[a].localeCompare(names[b]));
  controls.style.append(option("", "all", styles.length));
  controls.style.append(...styles.map((style) => option(style, names[style], uses.get(style))));
}

// Show pairs that were added after the page was opened; what has the focus keeps it.
addEventListener("pairs", () => {
  const focused = list.contains(document.activeElement) ? Number(document.activeElement.dataset.pair) : null;
  searchTexts = null;
  fillControls();
  showState();
  apply();
  if (focused !== null) list.querySelector(`[data-pair="${focused}"]`)?.focus({ preventScroll: true });
});

let typing = 0;
byId("controls").addEventListener("input", ({ target }) => {
  clearTimeout(typing);
  typing = setTimeout(() => change({ [target.name]: target.value }), target.name === "q" ? 150 : 0);
});
byId("controls").addEventListener("submit", (event) => event.preventDefault());
byId("controls").addEventListener("reset", (event) => {
  event.preventDefault();
  change({ q: "", status: "", style: "", reason: "" });
  controls.q.focus();
});
document.querySelectorAll("[data-reason]").forEach((button) => {
  button.addEventListener("click", () => {
    change({ q: "", status: "failed", style: "", reason: button.dataset.reason });
    byId("pairs").scrollIntoView();
    byId("pairs").focus({ preventScroll: true });
  });
});
