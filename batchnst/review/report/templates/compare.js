// Two pictures, one over the other, with a border that a slider moves: a painting, and its photograph, the picture that
// it has replaced, or the painting of another pair.
//
// The page holds previews. Where the pictures themselves lie beside the page, they are loaded and shown instead.

const comparing = byId("compare");
const stage = byId("stage");
const view = byId("compare-view");
const border = byId("border");
const LAYERS = { before: "Before", content: "Photograph", held: "Held picture" };
let compared = null; // the pair whose painting is shown
let wanted = "content"; // what should be at the left of the border
let under = "content"; // what is there: the first of LAYERS that there is, if what is wanted is not there
let held = null; // the pair that others are compared with
let zoom = 0; // number in ZOOMS
let layers = []; // what is shown at the left and at the right of the border

const urlOf = (path) => data.base + path.split("/").map(encodeURIComponent).join("/");

const paintingOf = (i) => ({
  ...{ number: pairs.result[i], path: `images/${pairs.output[i]}`, name: title(i) },
  ...{ width: pairs.width[i], height: pairs.height[i] },
});

// The layer that is compared with the painting of pair `i`.
function layerUnder(i) {
  if (under === "held") return paintingOf(held);
  if (under === "before") return { ...pairs.before[i], number: pairs.before[i].picture, name: "before" };
  const number = pairs.contentPicture[i];
  const size = { width: pictures.width[number], height: pictures.height[number] };
  return { number, path: null, name: names[pairs.content[i]], ...size };
}

// True if there is a layer of this kind to compare pair `i` with.
function isThere(kind, i) {
  if (kind === "held") return held !== null && held !== i;
  return kind === "content" || Boolean(pairs.before[i]);
}

// Lay two pictures over each other: of one shape in one size, else each in its own, with their middles together.
function place() {
  const [left, right] = layers;
  const alike = Math.abs((left.width / left.height) / (right.width / right.height) - 1) < 0.02;
  const sizes = layers.map(({ width, height }) => [width, height]);
  if (alike) sizes[0] = sizes[1];
  const whole = [0, 1].map((k) => Math.max(...sizes.map((size) => size[k])));
  const fit = Math.min(view.clientWidth / whole[0], view.clientHeight / whole[1]);
  const factor = ZOOMS[zoom][1] ? ZOOMS[zoom][1] / devicePixelRatio : fit;
  Object.assign(stage.style, { width: `${whole[0] * factor}px`, height: `${whole[1] * factor}px` });
  layers.forEach(({ image }, k) => {
    image.style.width = `${sizes[k][0] * factor}px`;
    image.style.height = `${sizes[k][1] * factor}px`;
  });
  view.classList.toggle("whole", !ZOOMS[zoom][1]);
  byId("compare-zoom").textContent = ZOOMS[zoom][0];
  moveBorder();
}

// Put the border where the slider is: between the left and the right end of what can be seen. The slider lies below it.
function moveBorder() {
  const [left, width] = visible();
  const part = Number(border.value) / 100;
  stage.style.setProperty("--border", `${left + part * width - stage.getBoundingClientRect().left}px`);
  const slider = byId("border-label").style;
  slider.marginLeft = `${left - view.getBoundingClientRect().left}px`;
  slider.width = `${width}px`;
  border.setAttribute("aria-valuetext", `${Math.round(100 * part)} % ${layers[0].name}`);
}

// The left end and the width of what can be seen of the two pictures, in pixels of the window.
function visible() {
  const [inside, outside] = [stage.getBoundingClientRect(), view.getBoundingClientRect()];
  const left = Math.max(inside.left, outside.left);
  return [left, Math.max(1, Math.min(inside.right, outside.left + view.clientWidth) - left)];
}

// Drag the border, where the picture is whole and cannot be moved.
function dragBorder({ clientX }) {
  if (ZOOMS[zoom][1]) return false;
  const [left, width] = visible();
  border.value = (100 * (clientX - left)) / width;
  moveBorder();
  return true;
}

// Tell what a layer shows, and how much smaller than the picture a preview is.
function tell(layer, label) {
  const texts = [""];
  const width = pictures.width[layer.number];
  if (layer.path !== null) texts.push(`${layer.width} × ${layer.height} pixels`);
  if (!layer.whole && hasPicture(layer.number)) {
    texts.push(layer.path === null || width < layer.width ? `preview of ${width} pixels` : "preview");
  }
  label.replaceChildren(element("b", {}, layer.name), texts.join(" · "));
}

// Show a layer: its preview, then the picture itself if it lies beside the page.
function showLayer(layer, side) {
  const label = byId(`compare-${side}`);
  layer.image = picture(layer.number, layer.name);
  layer.side = element("span", { className: `side ${side}` }, layer.image);
  tell(layer, label);
  if (layer.path === null || data.base === null || !hasPicture(layer.number)) return;
  const whole = new Image();
  whole.addEventListener("load", () => {
    if (!layers.includes(layer)) return;
    layer.whole = true;
    layer.image.src = whole.src;
    tell(layer, label);
  });
  whole.src = urlOf(layer.path);
}

function showCompared() {
  const i = compared;
  under = isThere(wanted, i) ? wanted : Object.keys(LAYERS).find((kind) => isThere(kind, i));
  layers = [layerUnder(i), paintingOf(i)];
  showLayer(layers[0], "left");
  showLayer(layers[1], "right");
  const line = element("span", { className: "border", "aria-hidden": "true" });
  stage.replaceChildren(...layers.map(({ side }) => side), line);
  stage.dataset.item = i;
  byId("compare-title").replaceChildren(title(i), ...tags(i));
  byId("compare-verdict").dataset.item = i;
  byId("compare-verdict").replaceChildren(element("span", { className: "verdict" }), markButtons(i, 0));
  showMark(byId("compare-verdict"), i);
  byId("with").replaceChildren(...Object.keys(LAYERS).filter((kind) => isThere(kind, i)).map(layerButton));
  byId("hold").setAttribute("aria-pressed", held === i);
  byId("compare-changes").textContent = under === "before" ? changesText(i) : "";
  place();
}

function layerButton(kind) {
  const name = kind === "held" ? title(held) : LAYERS[kind];
  const button = element("button", { type: "button", "aria-pressed": under === kind, title: LAYERS[kind] }, name);
  button.addEventListener("click", () => {
    wanted = kind;
    showCompared();
    byId("with").querySelector('[aria-pressed="true"]').focus();
  });
  return button;
}

// What was asked for otherwise than before.
function changesText(i) {
  const text = (value) => (value === null ? "–" : typeof value === "string" ? value : JSON.stringify(value));
  return pairs.before[i].changes.map(([key, before, after]) => `${key} ${text(before)} → ${text(after)}`).join(", ");
}

function openCompare(i) {
  if (!pairs.ok[i]) {
    say(`${title(i)}: there is no picture to compare`);
    return;
  }
  compared = i;
  zoom = 0;
  if (held !== null && held !== i) wanted = "held";
  else if (pairs.before[i]) wanted = "before";
  say("");
  comparing.showModal();
  showCompared();
  border.focus();
}

// Go on to the next pair of the list that has a picture, or the previous one if `by` is -1.
function compareNext(by) {
  let at = order.indexOf(compared) + by;
  while (order[at] !== undefined && !pairs.ok[order[at]]) at += by;
  if (order[at] === undefined) return;
  compared = order[at];
  showCompared();
}

function toggleHold() {
  held = held === compared ? null : compared;
  if (held !== null) wanted = "held";
  say(held === null ? "No picture is held" : `Held: ${title(held)}. Go to another pair to compare it`);
  showCompared();
}

function nextLayer() {
  const there = Object.keys(LAYERS).filter((kind) => isThere(kind, compared));
  wanted = there[(there.indexOf(under) + 1) % there.length];
  showCompared();
}

function setZoom(number, where = position(view)) {
  zoom = number;
  place();
  setPosition(view, where);
  moveBorder();
}

function pressedInCompare(event) {
  const { key, target } = event;
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (key in ARROWS && event.shiftKey) pan(view, key);
  else if (key === "ArrowLeft" && target !== border) compareNext(-1);
  else if (key === "ArrowRight" && target !== border) compareNext(1);
  else if (key === "PageUp" || key === "PageDown") compareNext(key === "PageUp" ? -1 : 1);
  else if (key.toLowerCase() === "z") setZoom((zoom + 1) % ZOOMS.length);
  else if (key.toLowerCase() === "h") toggleHold();
  else if (key.toLowerCase() === "w") nextLayer();
  else if (actOfKey(key)) act(compared, actOfKey(key));
  else return;
  event.preventDefault();
}

border.addEventListener("input", moveBorder);
view.addEventListener("scroll", () => { if (layers.length) moveBorder(); });
addDrag(view, (where) => setZoom(zoom ? 0 : 1, where), dragBorder);
comparing.addEventListener("keydown", pressedInCompare);
comparing.addEventListener("close", () => {
  stage.replaceChildren();
  layers = [];
  if (!dialog.open) focusCard(compared);
});
new ResizeObserver(() => { if (layers.length) place(); }).observe(view);
byId("compare-close").addEventListener("click", () => comparing.close());
byId("compare-previous").addEventListener("click", () => compareNext(-1));
byId("compare-next").addEventListener("click", () => compareNext(1));
byId("compare-zoom").addEventListener("click", () => setZoom((zoom + 1) % ZOOMS.length));
byId("hold").addEventListener("click", toggleHold);
