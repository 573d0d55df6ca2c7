// Search, filters, groups and order. They are kept in the fragment of the page's address, with the open pair.

const state = { q: "", status: "", mark: "", style: "", folder: "", reason: "", sort: "", group: "", pair: "" };
const FILTERS = ["q", "status", "mark", "style", "folder", "reason"];
const controls = byId("controls").elements;

const STATUS = {
  "": ["all", () => true],
  failed: ["failed", (i) => !pairs.ok[i]],
  ok: ["painted", (i) => pairs.ok[i]],
  again: ["painted again", (i) => Boolean(pairs.before[i])],
  retried: ["tried several times", (i) => pairs.attempt[i] > 1],
  rescued: ["rescued after divergence", (i) => pairs.rescued[i]],
  outlier: ["unusual loss", (i) => isUnusual(i)],
};
const MARK = {
  "": ["all", () => true],
  none: ["not marked", (i) => !markOf(i)],
  ...Object.fromEntries(["keep", "again", "reject"].map((name) => [name, [name, (i) => markOf(i)?.mark === name]])),
};
const numberOr = (name, i, other) => pairs[name]?.[i] ?? other;
const down = (name) => (a, b) => numberOr(name, b, -Infinity) - numberOr(name, a, -Infinity) || a - b;
const ORDER = {
  "": (a, b) => a - b,
  unusual: (a, b) => Math.abs(unusual(b)) - Math.abs(unusual(a)) || a - b,
  rescued: (a, b) => pairs.rescued[b] - pairs.rescued[a] || pairs.attempt[b] - pairs.attempt[a] || a - b,
  loud: down("loud"),
  "loss-down": down("loss"),
  "loss-up": (a, b) => numberOr("loss", a, Infinity) - numberOr("loss", b, Infinity) || a - b,
  seconds: down("seconds"),
  ended: down("ended"),
  name: (a, b) => title(a).localeCompare(title(b)) || a - b,
};
const GROUP = {
  "": ["nothing", () => null],
  folder: ["folder", (i) => folders.name(pairs.content[i])],
  style: ["style", styleNames],
};

// The folder of each photograph, without what all of them have in common.
const folders = {
  names: [],
  name: (address) => folders.names[address],
  find() {
    const parents = [...new Set(pairs.content)].map((number) => [number, addresses[number].split("/").slice(0, -1)]);
    if (!parents.length) return; // a live page before its first pair
    const least = Math.min(...parents.map(([, parts]) => parts.length));
    let common = 0;
    while (common < least && parents.every(([, parts]) => parts[common] === parents[0][1][common])) common++;
    const all = parents.some(([, parts]) => parts.length === common) ? common - 1 : common;
    parents.forEach(([number, parts]) => { folders.names[number] = parts.slice(Math.max(0, all)).join("/") || "/"; });
  },
};

let searchTexts = null;

function searchText(i) {
  const inputs = [pairs.content[i], ...pairs.styles[i]].map((number) => addresses[number]);
  const reason = reasons[pairs.reason[i]] ?? "";
  return [pairs.id[i], pairs.output[i], ...inputs, reason, pairs.error[i] ?? ""].join("\n").toLowerCase();
}

function matches(i) {
  if (!STATUS[state.status][1](i) || !MARK[state.mark][1](i)) return false;
  if (state.style !== "" && !pairs.styles[i].includes(Number(state.style))) return false;
  if (state.folder !== "" && folders.name(pairs.content[i]) !== state.folder) return false;
  if (state.reason !== "" && pairs.reason[i] !== Number(state.reason)) return false;
  return !state.q || state.q.toLowerCase().split(/\s+/).every((word) => searchTexts[i].includes(word));
}

// The pairs in groups, by the names of these.
function grouped(members) {
  const nameOf = GROUP[state.group][1];
  const byName = new Map();
  for (const i of members) {
    const name = nameOf(i);
    if (!byName.has(name)) byName.set(name, []);
    byName.get(name).push(i);
  }
  return [...byName].map(([name, part]) => ({ name, members: part })).sort((a, b) => a.name?.localeCompare(b.name));
}

// Apply the state to the list.
function apply() {
  if (state.q) searchTexts ??= pairs.id.map((_, i) => searchText(i));
  groups = grouped(pairs.id.map((_, i) => i).filter(matches).sort(ORDER[state.sort]));
  order = groups.flatMap(({ members }) => members);
  const part = order.length === pairs.id.length ? "" : `${whole.format(order.length)} of `;
  const reason = state.reason === "" ? "" : ` that failed with ${reasons[state.reason]}`;
  byId("shown").textContent = part + plural(pairs.id.length, "pair") + reason;
  byId("clear").hidden = !FILTERS.some((name) => state[name]);
  showBulk();
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
  const known = { status: STATUS, mark: MARK, sort: ORDER, group: GROUP, style: addresses, reason: reasons };
  for (const [name, values] of Object.entries(known)) if (!Object.hasOwn(values, state[name])) state[name] = "";
  if (!folders.names.includes(state.folder)) state.folder = "";
  return before !== hashWith({ pair: "" });
}

function showState() {
  for (const name of ["q", "status", "mark", "style", "folder", "sort", "group"]) controls[name].value = state[name];
}

const option = (value, name, number) => element("option", { value }, `${name} (${whole.format(number)})`);

// Fill a select with choices, each a name and a test of a pair, and how many pairs there are of each.
function fillChoices(select, choices, always = false) {
  select.replaceChildren();
  for (const [value, [name, test]] of Object.entries(choices)) {
    const number = pairs.id.filter((_, i) => test(i)).length;
    if (number || always) select.append(option(value, name, number));
  }
}

// Fill a select with the values that pairs have, and how many pairs have each.
function fillUses(select, values, nameOf) {
  const uses = new Map();
  values.forEach((value) => uses.set(value, (uses.get(value) ?? 0) + 1));
  const sorted = [...uses.keys()].sort((a, b) => nameOf(a).localeCompare(nameOf(b)));
  select.replaceChildren(option("", "all", sorted.length));
  select.append(...sorted.map((value) => option(value, nameOf(value), uses.get(value))));
  return sorted.length;
}

function fillMarks() {
  fillChoices(controls.mark, MARK, true);
  controls.mark.value = state.mark;
}

function fillControls() {
  folders.find();
  fillChoices(controls.status, STATUS);
  fillMarks();
  fillUses(controls.style, pairs.styles.flat(), (style) => names[style]);
  const number = fillUses(controls.folder, pairs.content.map(folders.name), (name) => name);
  controls.folder.closest("label").hidden = number < 2;
  const ways = Object.entries(GROUP).filter(([name]) => name !== "folder" || number > 1);
  controls.group.replaceChildren(...ways.map(([value, [name]]) => element("option", { value }, name)));
}

// Apply the state again; the pair that has the focus keeps it.
function refresh() {
  const focused = list.contains(document.activeElement) ? Number(document.activeElement.dataset.pair) : null;
  apply();
  if (focused !== null) list.querySelector(`[data-pair="${focused}"]`)?.focus({ preventScroll: true });
}

// Show pairs that were added after the page was opened.
addEventListener("pairs", () => {
  searchTexts = null;
  fillControls();
  showState();
  refresh();
  showCounts();
});

const noFilters = () => Object.fromEntries(FILTERS.map((name) => [name, ""]));

let typing = 0;
byId("controls").addEventListener("input", ({ target }) => {
  clearTimeout(typing);
  typing = setTimeout(() => change({ [target.name]: target.value }), target.name === "q" ? 150 : 0);
});
byId("controls").addEventListener("submit", (event) => event.preventDefault());
byId("controls").addEventListener("reset", (event) => {
  event.preventDefault();
  change(noFilters());
  controls.q.focus();
});
document.querySelectorAll("[data-reason]").forEach((button) => {
  button.addEventListener("click", () => {
    change({ ...noFilters(), status: "failed", reason: button.dataset.reason });
    byId("pairs").scrollIntoView();
    byId("pairs").focus({ preventScroll: true });
  });
});
