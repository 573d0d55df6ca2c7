// The table of pictures: where the focus is, its marks, and the chosen setting below.

const table = document.querySelector("table");
const places = new Map([...table.querySelectorAll("[data-row]")].map((node) => [`${node.dataset.row} ${node.dataset.column}`, node]));
let at = [0, 0]; // row and column that have the focus, or had it last
const placeOf = (node) => [Number(node.dataset.row), Number(node.dataset.column)];
const nodeAt = (row, column) => places.get(`${row} ${column}`);

// The place that a key leads to from another, with rows from `top` on.
function placeAfter(key, [row, column], top) {
  if (key === "Home") return [row, 0];
  if (key === "End") return [row, columns.length - 1];
  const [down, right] = ARROWS[key];
  return [clamp(row + down, top, pairs.length - 1), clamp(column + right, 0, columns.length - 1)];
}

function moveTo(place, focus = true) {
  nodeAt(...at).tabIndex = -1;
  at = place;
  const node = nodeAt(...at);
  node.tabIndex = 0;
  if (focus) node.focus();
  if (focus) node.scrollIntoView({ block: "nearest", inline: "nearest" });
}

// Mark, reject or undo by a key; return true if the key was one of these.
function markByKey(key, place) {
  if (/^[1-5]$/.test(key)) give(...place, Number(key));
  else if (key.toLowerCase() === "x") give(...place, REJECTED);
  else if (key.toLowerCase() === "u") undo();
  else return false;
  return true;
}

function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const node = event.target.closest("[data-row]");
  if (!node) return;
  const place = placeOf(node);
  if (event.key in ARROWS || event.key === "Home" || event.key === "End") moveTo(placeAfter(event.key, place, -1));
  else if (event.key === "Enter" && event.target === node) activate(place);
  else if (!markByKey(event.key, place)) return;
  event.preventDefault();
}

function activate([row, column]) {
  if (row < 0) choose(column);
  else openCell(row, column);
}

function showMarks() {
  const best = chosenColumn();
  for (const node of places.values()) {
    const [row, column] = placeOf(node);
    const mark = marks.get(keyOf(row, column));
    showRating(node, mark);
    node.classList.toggle("rejected", mark === REJECTED || marks.get(keyOf(-1, column)) === REJECTED);
    node.classList.toggle("best", column === best);
    if (row < 0) showColumn(node, column, best);
    else node.setAttribute("aria-label", labelOf(row, column));
  }
  showChosen(best);
  byId("undo").disabled = !marks.steps.length;
  showPaneMarks();
}

const labelOf = (row, column) => {
  const text = nodeAt(row, column).querySelector(".failure")?.innerText ?? cells[row * columns.length + column].caption;
  return [pairs[row].title, columnName(column), text, describe(marks.get(keyOf(row, column)))].join(", ");
};

function showColumn(node, column, best) {
  const { sum, rejected } = totals(column);
  node.querySelector(".sum").textContent = `Σ ${sum}${rejected ? ` · ${rejected} rejected` : ""}`;
  const button = node.querySelector(".choose");
  button.textContent = column === best ? "Chosen" : "Choose";
  button.setAttribute("aria-pressed", column === best);
}

function showChosen(best) {
  const column = columns[best];
  byId("choice").textContent = column ? columnName(best) : "Mark pictures, or choose a setting.";
  byId("text").textContent = column ? column.options || "the defaults: no option is needed" : "";
  byId("text").hidden = !column;
  byId("copy-options").disabled = byId("copy-toml").disabled = !column;
}

function addControls() {
  for (const node of places.values()) {
    const place = placeOf(node);
    const rating = ratingButtons(() => place, -1);
    if (place[0] >= 0) {
      node.append(rating);
      continue;
    }
    const button = element("button", { type: "button", tabIndex: -1, className: "choose" });
    button.addEventListener("click", () => choose(place[1]));
    node.append(rating, element("span", { className: "verdict" }, element("span", { className: "sum" }), button));
  }
}

table.addEventListener("keydown", pressed);
table.addEventListener("focusin", ({ target }) => {
  const node = target.closest("[data-row]");
  if (node) moveTo(placeOf(node), false);
});
table.addEventListener("click", ({ target }) => {
  const node = target.closest("td[data-row]");
  if (node && !target.closest("button")) openCell(...placeOf(node));
});
byId("undo").addEventListener("click", undo);
byId("copy-options").addEventListener("click", () => copy(columns[chosenColumn()].options, "Options", byId("text")));
byId("copy-toml").addEventListener("click", () => copy(columns[chosenColumn()].toml || "# the default recipe\n", "Recipe", byId("text")));
