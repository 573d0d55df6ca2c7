// Marks of pairs: keep, again with a change, or reject. A mark belongs to the attempt that was looked at: once a pair
// is painted again, its new picture has no mark. They are kept in this browser, by OUT and run.

const MARKS = ["keep", "again", "reject"];
const FACTORS = [0.25, 0.5, 2, 4]; // of the style weight
const store = new Marks(`batchnst-report-${data.key}`);

// What a key or a button does, its sign and its name.
const ACTS = {
  keep: ["1", "✓", "Keep"],
  half: ["2", "½", "Again with half the style weight"],
  double: ["3", "2×", "Again with twice the style weight"],
  seed: ["4", "⚄", "Again with another seed"],
  other: ["5", "…", "Again with another change"],
  reject: ["x", "✕", "Reject"],
};
const actOfKey = (key) => Object.keys(ACTS).find((act) => ACTS[act][0] === key.toLowerCase());

// The mark of pair `i`, if it was given to the attempt that the page shows.
function markOf(i) {
  const mark = readMark(store.get(pairs.id[i]));
  return mark?.made === pairs.made[i] ? mark : null;
}

const isSize = (value) => value === "original" || (Number.isInteger(value) && value >= 16 && value <= 65536);

// A mark from storage or a file, without what does not belong there; null if it is none.
function readMark(value) {
  if (!MARKS.includes(value?.mark) || typeof value.made !== "string") return null;
  const { mark, made } = value;
  return mark === "again" ? { mark, made, change: readChange(value.change ?? {}) } : { mark, made };
}

function readChange({ factor, seed, style, size, set }) {
  const change = {};
  if (FACTORS.includes(factor)) change.factor = factor;
  if (Number.isSafeInteger(seed) && seed >= 0) change.seed = seed;
  if (typeof style === "string") change.style = style;
  if (isSize(size)) change.size = size;
  const isSetting = ([key, text]) => data.recipeKeys.includes(key) && typeof text === "string";
  const settings = Object.entries(Object(set)).filter(isSetting);
  if (settings.length) change.set = Object.fromEntries(settings);
  return change;
}

function describeChange({ factor, seed, style, size, set = {} }) {
  const parts = [];
  if (factor) parts.push(`style weight × ${{ 0.25: "¼", 0.5: "½" }[factor] ?? factor}`);
  if (seed !== undefined) parts.push(`seed ${seed}`);
  if (style !== undefined) parts.push(`style ${names[addressNumbers.get(style)] ?? style}`);
  if (size !== undefined) parts.push(`size ${size}`);
  parts.push(...Object.entries(set).map((entry) => entry.join("=")));
  return parts.join(", ");
}

function describe(mark) {
  if (!mark) return "no mark";
  if (mark.mark !== "again") return mark.mark;
  return `again: ${describeChange(mark.change) || "as it was"}`;
}

// Give pairs marks, each a [pair, mark without its attempt], as one step of undo; null takes a mark away.
function give(entries) {
  store.set(entries.map(([i, mark]) => [pairs.id[i], mark ? { ...mark, made: pairs.made[i] } : undefined]));
  showMarks();
  const [[i, mark]] = entries;
  say(entries.length === 1 ? `${title(i)}: ${describe(mark)}` : `${plural(entries.length, "pair")}: ${describe(mark)}`);
}

function undoMark() {
  const ids = store.undo() ?? [];
  showMarks();
  const i = ids.length === 1 ? numbers.get(ids[0]) : undefined;
  if (!ids.length) say("Nothing to undo");
  else if (i === undefined) say(`Undone for ${plural(ids.length, "pair")}`);
  else say(`Undone: ${title(i)}: ${describe(markOf(i))}`);
}

const randomSeed = () => crypto.getRandomValues(new Uint32Array(1))[0];

// The mark that an act gives; undefined if it needs to be asked for.
function markFor(act) {
  if (act === "keep" || act === "reject") return { mark: act };
  if (act === "half" || act === "double") return { mark: "again", change: { factor: act === "half" ? 0.5 : 2 } };
  return act === "seed" ? { mark: "again", change: { seed: randomSeed() } } : undefined;
}

// True if the act gave this mark: then it takes it back.
function isOf(act, mark) {
  if (mark?.mark !== "again") return mark?.mark === act;
  const keys = Object.keys(mark.change);
  const [only] = keys.length === 1 ? keys : [];
  if (act === "half" || act === "double") return only === "factor" && mark.change.factor === (act === "half" ? 0.5 : 2);
  if (act === "seed") return only === "seed";
  return act === "other" && !["half", "double", "seed"].some((other) => isOf(other, mark));
}

const NO_NOISE = "a seed changes nothing, as it does not start from noise; 5 offers other changes";

// Mark pair `i` by an act; the same act again takes the mark back.
function act(i, name) {
  if (name === "other") openAgain([i]);
  else if (name === "seed" && !pairs.noise[i]) say(`${title(i)}: ${NO_NOISE}`);
  else give([[i, isOf(name, markOf(i)) ? null : markFor(name)]]);
}

// Buttons that mark pair `i`.
function markButtons(i, tabIndex) {
  const all = Object.entries(ACTS).filter(([name]) => name !== "seed" || pairs.noise[i]);
  const buttons = all.map(([name, [key, sign, label]]) => {
    const names = { "aria-label": label, title: `${label} (${key})` };
    const node = element("button", { type: "button", tabIndex, ...names }, sign);
    node.dataset.act = name;
    return node;
  });
  const group = element("span", { className: "marks", role: "group", "aria-label": "Mark" }, ...buttons);
  group.addEventListener("click", ({ target }) => {
    const name = target.closest("[data-act]")?.dataset.act;
    if (name) act(i, name);
  });
  return group;
}

// Show the mark of pair `i` in `node`, which has its buttons.
function showMark(node, i) {
  const mark = markOf(i);
  MARKS.forEach((name) => node.classList.toggle(name, mark?.mark === name));
  node.querySelectorAll("[data-act]").forEach((button) => {
    button.setAttribute("aria-pressed", isOf(button.dataset.act, mark));
  });
  const verdict = node.querySelector(".verdict");
  if (verdict) verdict.textContent = verdict.title = mark ? describe(mark) : "";
}

// Show all marks, wherever they are to be seen.
function showMarks() {
  document.querySelectorAll("[data-item]").forEach((node) => showMark(node, Number(node.dataset.item)));
  fillMarks();
  showCounts();
}

// The pairs that are marked, by mark.
function marked() {
  const found = { keep: [], again: [], reject: [] };
  pairs.id.forEach((_, i) => found[markOf(i)?.mark]?.push(i));
  return found;
}

// Again without a change is a request only where there is no picture: a painted one would count as done.
const isRequest = (i) => !pairs.ok[i] || Object.keys(markOf(i).change).length > 0;

function showCounts() {
  const found = marked();
  const requests = found.again.filter(isRequest);
  const given = MARKS.filter((name) => found[name].length);
  const counts = given.map((name) => `${whole.format(found[name].length)} ${name}`);
  byId("counts").textContent = counts.join(" · ") || "Nothing is marked yet";
  byId("undo").disabled = !store.steps.length;
  byId("save-redo").disabled = !requests.length;
  byId("save-redo").textContent = `Download redo.jsonl${requests.length ? ` (${whole.format(requests.length)})` : ""}`;
  byId("save-marks").disabled = !counts.length;
  byId("command").hidden = !requests.length;
  byId("copy-command").hidden = !requests.length;
  byId("command").textContent = command(requests);
}

// Buttons that mark all pairs that are shown.
function showBulk() {
  byId("bulk").hidden = !order.length;
  const isAll = order.length === pairs.id.length;
  byId("bulk-name").textContent = isAll ? "Mark all" : `Mark these ${whole.format(order.length)}`;
}

byId("bulk").addEventListener("click", ({ target }) => {
  const name = target.dataset.bulk;
  if (!name) return;
  if (name === "other") openAgain(order);
  else give(order.map((i) => [i, name === "none" ? null : { mark: name }]));
});
byId("undo").addEventListener("click", undoMark);

// Keys in the list, where a card has the focus; `u` and Ctrl+Z wherever nothing is typed.
list.addEventListener("keydown", (event) => {
  const i = Number(event.target.closest("[data-pair]")?.dataset.pair);
  if (Number.isNaN(i) || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key in ARROWS || event.key === "Home" || event.key === "End") focusCard(pairAfter(event.key, i));
  else if (actOfKey(event.key)) act(i, actOfKey(event.key));
  else if (event.key.toLowerCase() === "c") openCompare(i);
  else return;
  event.preventDefault();
});
addEventListener("keydown", (event) => {
  if (event.altKey || event.shiftKey) return;
  if (event.target.matches("input:not([type=range], [type=checkbox]), textarea, select")) return;
  if (event.key.toLowerCase() !== (event.ctrlKey || event.metaKey ? "z" : "u")) return;
  undoMark();
  event.preventDefault();
});
