// Sparklines and loud flat areas on the live page. The server measures those of the pairs that are looked at, and the
// loudness of all while the list is sorted by it.

const ASKED = { spark: 24, loud: 8 }; // pairs asked for at once
const REST = 400; // milliseconds until the page looks again what is missing
const measured = { spark: new Map(), loud: new Map() }; // the attempts that were measured, by pair

const isMeasured = (what, i) => !pairs.ok[i] || measured[what].get(i) === pairs.made[i];

// The first of `members` whose measure is missing.
function missing(what, members) {
  const found = [];
  for (const i of members) {
    if (!isMeasured(what, i)) found.push(i);
    if (found.length === ASKED[what]) break;
  }
  return found;
}

const onScreen = () => [...list.querySelectorAll(".item")].map((node) => Number(node.dataset.item));

// Ask for a measure of pairs; return true if there is an answer.
async function measure(what, members) {
  const ids = new URLSearchParams(members.map((i) => ["id", pairs.id[i]]));
  const answer = await fetch(`${what}?${ids}`).catch(() => null);
  if (!answer?.ok) {
    await pause(WAIT);
    return false;
  }
  const found = new Map(Object.entries(await answer.json()));
  for (const i of members) {
    const { made, value } = found.get(pairs.id[i]) ?? { made: pairs.made[i], value: null };
    if (made !== pairs.made[i]) continue; // it was painted again meanwhile
    measured[what].set(i, made);
    pairs[what][i] = value;
  }
  return true;
}

function showSparks(members) {
  for (const i of members) list.querySelector(`[data-pair="${i}"] .spark`)?.replaceWith(spark(i));
}

// Sort by loudness again, unless somebody reads further down; seldom, however many pairs there are.
let sortable = 0;
let isSorted = true;
function sortAgain(left) {
  byId("measured").textContent = left ? `Flat areas are being measured: ${plural(left, "pair")} to go` : "";
  isSorted = !isReading() && (!left || performance.now() >= sortable);
  if (!isSorted) return;
  const began = performance.now();
  refresh();
  sortable = performance.now() + SHARE * Math.max(REST, performance.now() - began);
}

// Measure what is missing; return true if there may be more.
async function measureNext() {
  const seen = onScreen();
  const curves = missing("spark", seen);
  if (curves.length) {
    const isAnswered = await measure("spark", curves);
    showSparks(curves);
    return isAnswered;
  }
  const byLoudness = state.sort === "loud";
  if (!byLoudness) byId("measured").textContent = "";
  const flat = missing("loud", byLoudness ? [...seen, ...order] : seen);
  const isAnswered = flat.length > 0 && (await measure("loud", flat));
  if (byLoudness && (isAnswered || !isSorted)) sortAgain(order.filter((i) => !isMeasured("loud", i)).length);
  return isAnswered;
}

async function measureAlways() {
  for (;;) {
    if (document.hidden || !(await measureNext())) await pause(REST);
  }
}

measureAlways();
