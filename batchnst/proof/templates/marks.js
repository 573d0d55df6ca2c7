// Marks of pictures and settings: 1 to 5, or 0 for a rejected one. They are kept in this browser, by page.

const data = JSON.parse(byId("data").textContent);
const { pairs, columns, cells } = data;
const REJECTED = 0;
const STORE = `batchnst-proof-${data.key}`;

const marks = new Marks(STORE); // `more.chosen` is the key of the column that was chosen by hand

// The key of a cell, or of a column if `row` is -1: the same in every proof with that pair and these settings.
const keyOf = (row, column) => JSON.stringify([row < 0 ? "" : pairs[row].id, columns[column].name]);
const columnName = (column) => columns[column].name || "settings of the manifest";

// Give a mark; the same one again takes it back.
function give(row, column, mark) {
  const key = keyOf(row, column);
  marks.set([[key, marks.get(key) === mark ? undefined : mark]]);
  const name = row < 0 ? columnName(column) : `${pairs[row].title}, ${columnName(column)}`;
  say(`${describe(marks.get(key))}: ${name}`);
  showMarks();
}

function undo() {
  say(marks.undo() ? "Undone" : "Nothing to undo");
  showMarks();
}

function describe(mark) {
  if (mark === undefined) return "No mark";
  return mark === REJECTED ? "Rejected" : `${mark} of 5`;
}

// The marks of a column: their sum, with the column's own, and the number of rejected pictures.
function totals(column) {
  const all = [-1, ...pairs.keys()].map((row) => marks.get(keyOf(row, column))).filter((mark) => mark !== undefined);
  const rejected = all.filter((mark) => mark === REJECTED).length;
  return { sum: all.reduce((sum, mark) => sum + mark, 0), rejected };
}

// The column that was chosen by hand, else the one with the highest sum; null if there is none.
function chosenColumn() {
  const byHand = columns.findIndex((_, column) => keyOf(-1, column) === marks.more.chosen);
  if (byHand >= 0) return byHand;
  const sums = columns.map((_, column) => (marks.get(keyOf(-1, column)) === REJECTED ? 0 : totals(column).sum));
  const best = Math.max(...sums);
  if (columns.length === 1) return 0;
  return best > 0 ? sums.indexOf(best) : null;
}

function choose(column) {
  const key = keyOf(-1, column);
  marks.more.chosen = marks.more.chosen === key ? null : key;
  marks.save();
  showMarks();
}

// Buttons that mark a cell, or a column if its row is -1. `place` returns its row and column.
function ratingButtons(place, tabIndex) {
  const button = (mark, text, label) => {
    const node = element("button", { type: "button", tabIndex, "aria-label": label, title: label }, text);
    node.dataset.mark = mark;
    node.addEventListener("click", (event) => {
      event.stopPropagation();
      give(...place(), mark);
    });
    return node;
  };
  const stars = [1, 2, 3, 4, 5].map((mark) => button(mark, "★", `Mark ${mark} of 5`));
  return element("span", { className: "rating", role: "group", "aria-label": "Mark" }, ...stars, button(REJECTED, "✕", "Reject"));
}

function showRating(node, mark) {
  node.querySelectorAll("[data-mark]").forEach((button) => {
    const own = Number(button.dataset.mark);
    button.classList.toggle("on", own === REJECTED ? mark === REJECTED : own <= (mark ?? 0));
    button.setAttribute("aria-pressed", mark === own);
  });
}
