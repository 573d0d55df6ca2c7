// The view of one picture, or of two side by side, whole or enlarged; and the start of the page.

const dialog = byId("dialog");
let zoom = 0; // number in ZOOMS
let panes = []; // those that are shown, as makePane makes them
let active = 0; // number of the pane that keys act on

function makePane(place) {
  const view = element("div", { className: "view", tabIndex: 0, role: "group" });
  const caption = element("p", { className: "numbers" });
  const pane = { view, place, caption };
  const number = () => panes.indexOf(pane);
  pane.rating = ratingButtons(() => pane.place, 0);
  pane.name = element("p", { className: "labels" });
  pane.node = element("figure", { className: "pane" }, view, pane.name, caption, pane.rating);
  pane.node.addEventListener("focusin", () => activatePane(number()));
  pane.node.addEventListener("pointerdown", () => activatePane(number()));
  view.addEventListener("scroll", () => follow(pane));
  addDrag(view, (where) => setZoom(zoom ? 0 : 1, where));
  return pane;
}

function fill(pane) {
  const [row, column] = pane.place;
  const cell = cells[row * columns.length + column];
  const shown = nodeAt(row, column).querySelector(".frame, .failure").cloneNode(true);
  pane.view.replaceChildren(shown);
  pane.view.setAttribute("aria-label", `${pairs[row].title}, ${columnName(column)}`);
  pane.name.textContent = panes.length > 1 && panes[0].place[0] !== panes[1].place[0]
    ? `${columnName(column)} · ${pairs[row].title}`
    : columnName(column);
  const link = cell.link ? element("a", { href: cell.link }, "full picture") : "";
  pane.caption.replaceChildren(cell.caption, cell.shown ? ` · ${cell.shown} ` : "", link);
  showRating(pane.rating, marks.get(keyOf(row, column)));
}

function showPanes() {
  const nodes = panes.map(({ node }) => node);
  const shown = [...byId("panes").children];
  shown.filter((node) => !nodes.includes(node)).forEach((node) => node.remove());
  byId("panes").append(...nodes.filter((node) => !shown.includes(node))); // one that stays keeps the focus
  panes.forEach(fill);
  panes.forEach(({ node }, i) => node.classList.toggle("active", panes.length > 1 && i === active));
  byId("dialog-title").textContent = pairs[panes[active].place[0]].title;
  byId("beside").setAttribute("aria-pressed", panes.length > 1);
  byId("zoom").textContent = ZOOMS[zoom][0];
  applyZoom();
}

// Scroll the other pane like `pane`. The event of the other one then says nothing new: by the time that it comes, the
// first may have been scrolled on, and must not go back.
function follow(pane) {
  if (pane.followed) {
    pane.followed = false;
    return;
  }
  for (const other of panes.filter((candidate) => candidate !== pane)) {
    const before = [other.view.scrollLeft, other.view.scrollTop];
    setPosition(other.view, position(pane.view));
    other.followed ||= other.view.scrollLeft !== before[0] || other.view.scrollTop !== before[1];
  }
}

// One pixel of the picture is one pixel of the screen at 100 %.
function applyZoom() {
  const factor = ZOOMS[zoom][1];
  for (const { view } of panes) {
    const image = view.querySelector("img");
    view.classList.toggle("whole", !factor);
    if (image) image.style.width = factor ? `${(factor * image.getAttribute("width")) / devicePixelRatio}px` : "";
  }
}

function setZoom(number, where = position(panes[active].view)) {
  zoom = number;
  byId("zoom").textContent = ZOOMS[zoom][0];
  applyZoom();
  panes.forEach(({ view }) => setPosition(view, where));
}

function setPlace(place) {
  const where = position(panes[active].view);
  panes[active].place = place;
  showPanes();
  panes.forEach(({ view }) => setPosition(view, where));
}

function activatePane(number) {
  if (number < 0 || number === active) return;
  active = number;
  panes.forEach(({ node }, i) => node.classList.toggle("active", i === active));
}

// Put a second picture beside the first, the same pair in the next setting; or leave only the active one.
function toggleBeside() {
  if (panes.length > 1) {
    panes = [panes[active]];
    active = 0;
  } else {
    const [row, column] = panes[0].place;
    const last = columns.length - 1;
    const next = last ? [row, column < last ? column + 1 : column - 1] : [(row + 1) % pairs.length, 0];
    panes = [panes[0], makePane(next)];
    active = 1;
  }
  showPanes();
  panes[active].view.focus();
}

function pressedInView(event) {
  const { key, target } = event;
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (key in ARROWS && event.shiftKey) pan(panes[active].view, key);
  else if (key in ARROWS) setPlace(placeAfter(key, panes[active].place, 0));
  else if (key.toLowerCase() === "z") setZoom((zoom + 1) % ZOOMS.length);
  else if (key.toLowerCase() === "s") toggleBeside();
  else if (key === "Enter" && !target.closest("button, a")) setZoom(zoom ? 0 : 1);
  else if (!markByKey(key, panes[active].place)) return;
  event.preventDefault();
}

function openCell(row, column) {
  zoom = active = 0;
  panes = [makePane([row, column])];
  dialog.showModal();
  showPanes();
}

function showPaneMarks() {
  panes.forEach(({ rating, place }) => showRating(rating, marks.get(keyOf(...place))));
}

dialog.addEventListener("keydown", pressedInView);
dialog.addEventListener("close", () => {
  moveTo(panes[active].place);
  panes = [];
  byId("panes").replaceChildren();
});
byId("close").addEventListener("click", () => dialog.close());
byId("previous").addEventListener("click", () => setPlace(placeAfter("ArrowLeft", panes[active].place, 0)));
byId("next").addEventListener("click", () => setPlace(placeAfter("ArrowRight", panes[active].place, 0)));
byId("zoom").addEventListener("click", () => setZoom((zoom + 1) % ZOOMS.length));
byId("beside").addEventListener("click", toggleBeside);

addControls();
moveTo(at, false);
document.querySelector(".chosen").hidden = false;
showMarks();
