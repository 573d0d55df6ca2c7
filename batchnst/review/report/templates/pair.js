// The dialog of a pair.

const dialog = byId("dialog");
const body = byId("dialog-body");
let current = null;

// A figure with picture `i`, which a click enlarges.
function zoomable(kind, i, name, ...more) {
  const image = picture(i, `${kind}: ${name}`);
  const tag = image.alt && pictures.problem[i] ? element("i", { className: "tag" }, pictures.problem[i]) : "";
  const text = element("figcaption", {}, element("b", {}, kind), ` ${name} `, tag, ...more);
  if (!image.alt) return element("figure", {}, image, text);
  const label = { "aria-label": `Enlarge: ${kind}`, "aria-pressed": "false" };
  const button = element("button", { type: "button", className: "zoom", ...label }, image);
  button.addEventListener("click", () => {
    button.setAttribute("aria-pressed", button.closest("figure").classList.toggle("large"));
  });
  return element("figure", {}, button, text);
}

function resultFigure(i) {
  if (!pairs.ok[i]) {
    const placeholder = element("span", { className: "none" }, "not painted");
    return element("figure", {}, placeholder, element("figcaption", {}, element("b", {}, "Result")));
  }
  const full = data.base === null ? "" : element("a", { href: urlOf(`images/${pairs.output[i]}`) }, "full picture");
  const node = zoomable(pairs.before[i] ? "After" : "Result", pairs.result[i], pairs.output[i], full);
  const image = node.querySelector("img");
  if (pairs.snapshots[i].length && image) node.append(slider(i, image));
  return node;
}

// The picture that the result has replaced, with what was asked for otherwise; null if there is none.
function beforeFigure(i) {
  if (!pairs.ok[i] || !pairs.before[i]) return null;
  return zoomable("Before", pairs.before[i].picture, changesText(i));
}

// A slider that shows the snapshots of pair `i` in `image`.
function slider(i, image) {
  const stops = [...pairs.snapshots[i], [null, pairs.result[i]]].filter(([, number]) => hasPicture(number));
  const last = stops.length - 1;
  const range = element("input", { type: "range", min: 0, max: last, "aria-label": "Snapshot" });
  const label = element("output");
  const show = () => {
    const [step, number] = stops[range.value];
    label.textContent = step === null ? "final picture" : `step ${step}`;
    range.setAttribute("aria-valuetext", label.textContent);
    setSource(image, number);
  };
  range.value = last;
  range.addEventListener("input", show);
  show();
  return element("label", { className: "slider" }, element("span", {}, "Snapshots"), range, label);
}

const isPresent = (value) => value !== null && value !== undefined && value !== "" && value !== "{}";

function facts(entries) {
  const present = entries.filter(([, value]) => isPresent(value));
  const items = present.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, String(value))]);
  return element("dl", { className: "facts" }, ...items);
}

function section(heading, ...children) {
  return element("section", {}, element("h3", {}, heading), ...children);
}

const LOSSES = {
  "initial total": "initial_total",
  total: "total_loss",
  content: "content_loss",
  style: "style_loss",
  "total variation": "tv_loss",
};

function lossFacts({ row }) {
  const losses = Object.entries(LOSSES).map(([name, key]) => [name, figure(row[key])]);
  return facts([...losses, ["steps", row.steps], ["stop reason", row.stopped]]);
}

function attemptFacts({ row }) {
  return facts([
    ["size", row.width && `${row.width} × ${row.height} pixels`],
    ["worker", `${row.host} · ${row.pid}`],
    ["device", row.device],
    ["precision", row.precision],
    ["batch", row.batch_size],
    ["peak memory", row.peak_memory_bytes && `${(row.peak_memory_bytes / 2 ** 30).toFixed(2)} GiB`],
    ["started, UTC", row.started_at.slice(0, 19)],
    ["finished, UTC", row.finished_at.slice(0, 19)],
    ["duration", duration(row.seconds)],
    ["duration of the batch", row.batch_size > 1 ? duration(row.batch_seconds) : null],
    ["run", row.run_id],
    ["attempt", row.attempt],
  ]);
}

function requestFacts(i, { row, recipe }) {
  const lines = (values) => (values ?? []).join("\n");
  const versions = Object.entries(row.versions).filter(([, value]) => value);
  return facts([
    ["id", pairs.id[i]],
    ["content", addresses[pairs.content[i]]],
    ["styles", lines(pairs.styles[i].map((style) => addresses[style]))],
    ["style weights", row.style_weights.length > 1 ? row.style_weights.join(" : ") : null],
    ["content masks", lines(row.content_masks)],
    ["style masks", lines(row.style_masks)],
    ["output", `images/${pairs.output[i]}`],
    ...Object.entries(recipe).map(([key, value]) => [key, typeof value === "string" ? value : JSON.stringify(value)]),
    ["loss", row.loss_definition],
    ["seed", row.seed],
    ["SHA-256 of content", row.content_sha256],
    ["SHA-256 of styles", lines(row.style_sha256)],
    ["SHA-256 of masks", lines(row.mask_sha256)],
    ["SHA-256 of init", row.start_sha256],
    ["SHA-256 of output", row.output_sha256],
    ["SHA-256 of weights", row.weights_sha256],
    ["fingerprint", row.fingerprint],
    ["versions", versions.map((entry) => entry.join(" ")).join(", ")],
    ["extra", row.extra],
  ]);
}

function earlierAttempts(earlier) {
  const items = earlier.map((row) => {
    const why = row.status === "failed" ? `: ${row.error_type}: ${row.error_message}` : "";
    const when = `${row.finished_at.slice(0, 19)}, ${row.host}, run ${row.run_id}`;
    return element("li", {}, `Attempt ${row.attempt}, ${when}: ${row.status}${why}`);
  });
  return section("Earlier attempts", element("ul", {}, ...items));
}

function stepTable({ step, terms, layers }) {
  const losses = { ...terms, ...layers };
  const cell = (tag, text) => element(tag, { className: "number" }, text);
  const node = element("details", {}, element("summary", {}, "All values by step"));
  const fillIn = () => {
    const head = ["step", ...Object.keys(losses)].map((name) => cell("th", name));
    const lines = step.map((number, k) => {
      const values = Object.values(losses).map((column) => cell("td", figure(column[k])));
      return element("tr", {}, cell("td", String(number)), ...values);
    });
    const parts = [element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...lines)];
    node.append(element("div", { className: "scroll" }, element("table", {}, ...parts)));
  };
  node.addEventListener("toggle", fillIn, { once: true });
  return node;
}

function curveFigure(name, note, curve, values, bold) {
  const node = element("div", { role: "img", "aria-label": `${name} by step; the table below has the values` });
  const text = element("figcaption", {}, name, element("small", {}, ` ${note}`));
  draw(node, () => curveChart(curve, values, bold));
  return element("figure", { className: "chart" }, text, node);
}

function curveSection({ curve }) {
  const figures = element(
    "div",
    { className: "columns" },
    curveFigure("Terms", "as weighted in the total", curve, curve.terms, "total"),
    curveFigure("Style layers", "unweighted", curve, curve.layers),
  );
  return section("Loss by step", figures, stepTable(curve));
}

// Fill the dialog with pair `i`, unless another pair was opened meanwhile.
async function show(i) {
  const pair = await details(i);
  if (current !== i) return;
  empty();
  const styles = pairs.stylePictures[i].map((style, k) => zoomable("Style", style, names[pairs.styles[i][k]]));
  const content = zoomable("Content", pairs.contentPicture[i], names[pairs.content[i]]);
  const attempt = section("Attempt", attemptFacts(pair));
  if (!pairs.ok[i]) {
    body.append(element("p", { className: "error" }, element("b", {}, errorType(i)), ` ${pairs.error[i] ?? ""}`));
  }
  body.append(element("div", { className: "trio" }, content, ...styles, beforeFigure(i), resultFigure(i)));
  if (pair.curve) body.append(curveSection(pair));
  const losses = pairs.ok[i] ? section("Losses", lossFacts(pair)) : null;
  body.append(element("div", { className: "columns" }, losses, attempt));
  if (pair.earlier.length) body.append(earlierAttempts(pair.earlier));
  body.append(section("Inputs and settings", requestFacts(i, pair)));
}

function empty() {
  body.querySelectorAll(".chart > div").forEach(erase);
  body.replaceChildren();
}

function openPair(i) {
  if (!dialog.open) say("");
  if (!dialog.open) dialog.showModal();
  if (current === i) return;
  current = i;
  byId("dialog-title").replaceChildren(title(i), ...tags(i));
  byId("dialog-verdict").dataset.item = i;
  byId("dialog-verdict").replaceChildren(element("span", { className: "verdict" }), markButtons(i, 0));
  showMark(byId("dialog-verdict"), i);
  byId("to-compare").disabled = !pairs.ok[i];
  byId("previous").disabled = order.indexOf(i) <= 0;
  byId("next").disabled = order.indexOf(i) === order.length - 1;
  dialog.scrollTop = 0;
  show(i);
}

// Open the next pair of the list, or the previous one if `by` is -1.
function go(by) {
  const next = order[order.indexOf(current) + by];
  if (next === undefined) return;
  state.pair = pairs.id[next];
  history.replaceState(null, "", hashWith({}));
  openPair(next);
}

function closed() {
  if (dialog.open) return; // another pair was opened in the meantime
  const last = current;
  current = null;
  empty();
  state.pair = "";
  const inAddress = new URLSearchParams(location.hash.slice(1)).get("pair");
  if (inAddress && inAddress !== pairs.id[last]) return; // another pair is about to be opened
  history.replaceState(null, "", hashWith({}));
  // The browser has returned the focus to the link that opened the dialog, which may be that of another pair.
  if (document.activeElement.dataset.pair !== String(last)) focusCard(last);
}

function followHash() {
  if (readHash()) {
    showState();
    apply();
  }
  const i = pairs.id.indexOf(state.pair);
  if (i >= 0) openPair(i);
  else if (dialog.open) dialog.close();
}

addEventListener("hashchange", followHash);
document.addEventListener("click", (event) => {
  const cardLink = event.target.closest("[data-pair]");
  if (!cardLink || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  cardLink.focus();
  location.hash = hashWith({ pair: pairs.id[cardLink.dataset.pair] });
});
byId("close").addEventListener("click", () => dialog.close());
byId("previous").addEventListener("click", () => go(-1));
byId("next").addEventListener("click", () => go(1));
dialog.addEventListener("close", closed);
dialog.addEventListener("click", ({ target }) => target === dialog && dialog.close());
dialog.addEventListener("keydown", (event) => {
  const { key, target } = event;
  if (target.type === "range" || event.ctrlKey || event.metaKey || event.altKey) return;
  if (key === "ArrowLeft" || key === "ArrowRight") go(key === "ArrowLeft" ? -1 : 1);
  else if (actOfKey(key)) act(current, actOfKey(key));
  else if (key.toLowerCase() === "c") openCompare(current);
  else return;
  event.preventDefault();
});
byId("to-compare").addEventListener("click", () => openCompare(current));
