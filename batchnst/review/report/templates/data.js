// The page's data, and functions to show it. Text from the ledger enters the page only as text nodes and attributes.

const data = JSON.parse(byId("data").textContent);
const { pairs, pictures, charts } = data;
const count = pairs.id.length;
const loaded = new Promise((done) => {
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", done);
  else done();
});

const styleNames = (i) => pairs.styles[i].map((style) => data.names[style]).join(" + ");
const title = (i) => `${data.names[pairs.content[i]]} × ${styleNames(i)}`;
const errorType = (i) => data.reasons[pairs.reason[i]].split(":")[0];

function marks(i) {
  const texts = [];
  if (!pairs.ok[i]) texts.push("failed");
  if (pairs.rescued[i]) texts.push("rescued");
  if (pairs.attempt[i] > 1) texts.push(`attempt ${pairs.attempt[i]}`);
  return texts.map((mark) => element("i", { className: `mark ${mark.split(" ")[0]}` }, mark));
}

// Previews and details are stored in blocks of text. A block is taken out of the document when it is first needed.

const texts = new Map();
const late = [];
const blockOf = new Int32Array(pictures.text.length);
const startOf = new Int32Array(pictures.text.length);
data.blocks.forEach((first, block) => {
  let start = 0;
  for (let i = first; i < (data.blocks[block + 1] ?? pictures.text.length); i++) {
    blockOf[i] = block;
    startOf[i] = start;
    start += pictures.text[i];
  }
});

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
  const packed = Uint8Array.from(atob(blockText(id)), (letter) => letter.charCodeAt(0));
  texts.delete(id);
  return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

const opened = new Map();

// The details of pair `i`, as `_details` in build.py makes them.
async function details(i) {
  const block = Math.floor(i / data.pairsABlock);
  if (!opened.has(block)) opened.set(block, unpack(`pairs-${block}`).then(JSON.parse));
  return (await opened.get(block))[i % data.pairsABlock];
}

// Show picture `i` in `image`, now or once its block is loaded.
function setSource(image, i) {
  const text = blockText(`pictures-${blockOf[i]}`);
  if (text === null) late.push([image, i]);
  else image.src = `data:image/webp;base64,${text.slice(startOf[i], startOf[i] + pictures.text[i])}`;
}

function showLate() {
  late.splice(0).filter(([image]) => image.isConnected).forEach(([image, i]) => setSource(image, i));
}

const waiting = setInterval(showLate, 60);
loaded.then(() => {
  clearInterval(waiting);
  showLate();
});

// An image element of picture `i`, or its problem as text.
function picture(i, alt) {
  if (!pictures.text[i]) {
    const problem = pictures.problem[i];
    return element("span", { className: "none", role: "img", "aria-label": `${alt}: ${problem}` }, problem);
  }
  const image = element("img", { alt, width: pictures.width[i], height: pictures.height[i], decoding: "async" });
  setSource(image, i);
  return image;
}
