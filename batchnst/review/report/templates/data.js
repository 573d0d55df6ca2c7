// The page's data, and functions to show it. Text from the ledger enters the page only as text nodes and attributes.

const data = JSON.parse(byId("data").textContent);
const { charts } = data;

// The pairs and their pictures, in columns: pair `i` has the id `pairs.id[i]`. Columns `content`, `styles` and `reason`
// are numbers in `addresses`, `names` (short ones of the addresses) and `reasons`; those of pictures are numbers in
// `pictures`, where a picture has a `url`, or the length of its `text` in a block of the page.
const pairs = { id: [] };
const pictures = { text: [], url: [], width: [], height: [], problem: [] };
const addresses = [];
const names = [];
const reasons = [];
const numbers = new Map(); // of pairs, by id
const addressNumbers = new Map();
const reasonNumbers = new Map();
const usual = {}; // by number of a group of pairs: median of ln(loss) and factor of a z-score; null for too few pairs
const UNUSUAL = 5; // z-score from which audit calls a loss an outlier

const loaded = new Promise((done) => {
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", done);
  else done();
});

function numberIn(map, list, text) {
  if (!map.has(text)) map.set(text, list.push(text) - 1);
  return map.get(text);
}

// Add pairs, or newer attempts at pairs that are there. `part` is what `part` in cards.py makes, with `pictures`. The
// page calls this once, for all that it holds; a live page may call it again, and the list then shows the changes,
// unless `more` parts follow at once.
function addPairs(part, more = false) {
  const content = part.addresses.map((address, k) => {
    const number = numberIn(addressNumbers, addresses, address);
    names[number] ??= part.names[k];
    return number;
  });
  const reason = part.reasons.map((text) => numberIn(reasonNumbers, reasons, text));
  const first = pictures.text.length;
  const added = Math.max(0, ...Object.values(part.pictures).map((column) => column.length));
  for (const [name, column] of Object.entries(pictures)) {
    const values = part.pictures[name];
    for (let k = 0; k < added; k++) column.push(values?.[k] ?? (name === "text" ? 0 : ""));
  }
  const picture = (number) => (number === null ? null : first + number);
  const change = {
    content: (number) => content[number],
    styles: (list) => list.map((number) => content[number]),
    reason: (number) => (number === null ? null : reason[number]),
    contentPicture: picture,
    stylePictures: (list) => list.map(picture),
    result: picture,
    before: (found) => found && { ...found, picture: picture(found.picture) },
    snapshots: (list) => list.map(([step, number]) => [step, picture(number)]),
  };
  const ids = part.pairs.id ?? [];
  const places = ids.map((id) => numbers.get(id) ?? (numbers.set(id, numbers.size), numbers.size - 1));
  for (const [name, column] of Object.entries(part.pairs)) {
    pairs[name] ??= [];
    column.forEach((value, k) => { pairs[name][places[k]] = change[name] ? change[name](value) : value; });
  }
  Object.assign(usual, part.usual);
  if (!more) dispatchEvent(new CustomEvent("pairs", { detail: places }));
}

// How far the loss of pair `i` is from those of its style, size and recipe: a z-score, 0 if there are too few of them.
function unusual(i) {
  const [median, factor] = usual[pairs.group?.[i]] ?? [0, 0];
  return factor && factor * (Math.log(Math.max(pairs.loss[i], 1e-30)) - median);
}

const isUnusual = (i) => Math.abs(unusual(i)) > UNUSUAL;

const hasPicture = (number) => Boolean(pictures.text[number] || pictures.url[number]);
const styleNames = (i) => pairs.styles[i].map((style) => names[style]).join(" + ");
const title = (i) => `${names[pairs.content[i]]} × ${styleNames(i)}`;
const errorType = (i) => reasons[pairs.reason[i]].split(":")[0];

function tags(i) {
  const texts = [];
  if (!pairs.ok[i]) texts.push("failed");
  if (pairs.rescued[i]) texts.push("rescued");
  if (isUnusual(i)) texts.push("unusual loss");
  if (pairs.attempt[i] > 1) texts.push(`attempt ${pairs.attempt[i]}`);
  return texts.map((text) => element("i", { className: `tag ${text.split(" ")[0]}` }, text));
}

// Previews and details are stored in blocks of text. A block is taken out of the document when it is first needed.

const texts = new Map();
const late = [];
const blockOf = [];
const startOf = [];

function numberBlocks() {
  data.blocks.forEach((first, block) => {
    let start = 0;
    for (let i = first; i < (data.blocks[block + 1] ?? pictures.text.length); i++) {
      blockOf[i] = block;
      startOf[i] = start;
      start += pictures.text[i];
    }
  });
}

// The text of a block; null if the browser has not loaded that part of the page yet.
function blockText(id) {
  const node = byId(id);
  if (node && (node.nextElementSibling || document.readyState !== "loading")) {
    texts.set(id, node.textContent);
    node.remove();
  }
  return texts.get(id) ?? null;
}

// The decompressed text of a block.
async function unpack(id) {
  if (blockText(id) === null) await loaded;
  const letters = atob(blockText(id));
  const packed = new Uint8Array(letters.length);
  for (let k = 0; k < letters.length; k++) packed[k] = letters.charCodeAt(k); // several times as fast as Uint8Array.from
  texts.delete(id);
  return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

const opened = new Map();

// The details of pair `i`, as `details` in cards.py makes them. A live page puts another function in its place.
let details = async (i) => {
  const block = Math.floor(i / data.pairsABlock);
  if (!opened.has(block)) opened.set(block, unpack(`pairs-${block}`).then(JSON.parse));
  return (await opened.get(block))[i % data.pairsABlock];
};

// Show picture `number` in `image`, now or once its block is loaded.
function setSource(image, number) {
  if (pictures.url[number]) {
    image.src = pictures.url[number];
    return;
  }
  const text = blockText(`pictures-${blockOf[number]}`);
  if (text === null) late.push([image, number]);
  else image.src = `data:image/webp;base64,${text.slice(startOf[number], startOf[number] + pictures.text[number])}`;
}

function showLate() {
  late.splice(0).filter(([image]) => image.isConnected).forEach(([image, number]) => setSource(image, number));
}

const waiting = setInterval(showLate, 60);
loaded.then(() => {
  clearInterval(waiting);
  showLate();
});

// An image element of picture `number`, or its problem as text.
function picture(number, alt) {
  if (!hasPicture(number)) {
    const problem = pictures.problem[number];
    return element("span", { className: "none", role: "img", "aria-label": `${alt}: ${problem}` }, problem);
  }
  const image = element("img", { alt, decoding: "async", draggable: false });
  if (pictures.width[number]) {
    image.width = pictures.width[number];
    image.height = pictures.height[number];
  }
  setSource(image, number);
  return image;
}

addPairs(data.part);
numberBlocks();
