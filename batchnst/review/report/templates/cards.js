// The card of a pair in the list.

const SVG = "http://www.w3.org/2000/svg";
// The same as SPARK_LEVELS in curves.py.
const LEVELS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

// The small curve of the total loss on the card of pair `i`.
function spark(i) {
  const points = [...(pairs.spark[i] ?? "")].map((letter, k, all) => {
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

// The painted picture, beside the one that it has replaced if there is one, or why there is none.
function result(i) {
  if (!pairs.ok[i]) {
    return [element("span", { className: "failure" }, element("b", {}, errorType(i)), pairs.error[i] ?? "")];
  }
  if (!pairs.before[i]) return [picture(pairs.result[i], "Result")];
  return [["Before", pairs.before[i].picture], ["After", pairs.result[i]]].map(([when, number]) => {
    return element("span", { className: "half" }, picture(number, when), element("i", {}, when.toLowerCase()));
  });
}

function caption(i) {
  const time = duration(pairs.seconds[i]);
  const byLoudness = state.sort === "loud" && pairs.loud[i] !== null;
  const more = byLoudness ? `flat areas ${figure(pairs.loud[i])}` : time;
  const text = pairs.ok[i] ? `loss ${figure(pairs.loss[i])} · ${more}` : time;
  return element(
    "span",
    { className: "caption", id: `card-${i}` },
    element("span", { className: "name", title: `${title(i)}\n${pairs.id[i]}` }, title(i)),
    element("span", { className: "line" }, ...tags(i), text),
    element("span", { className: "line verdict" }),
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
    element("span", { className: pairs.ok[i] && pairs.before[i] ? "result twice" : "result" }, ...result(i)),
    caption(i),
    spark(i),
  );
  const place = { role: "listitem", "aria-posinset": position + 1, "aria-setsize": order.length };
  const item = element("div", { className: "item", ...place }, node, markButtons(i, -1));
  item.dataset.item = i;
  showMark(item, i);
  return item;
}
