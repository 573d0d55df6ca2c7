// The start of the page.

const STRIP = 12; // pictures at the top of the page

function fillStrip() {
  const painted = pairs.result.map((_, i) => i).filter((i) => hasPicture(pairs.result[i]));
  const most = Math.min(STRIP, painted.length);
  const chosen = Array.from({ length: most }, (_, k) => painted[Math.floor(((k + 0.5) * painted.length) / most)]);
  const item = (i) => element("div", { role: "listitem" }, link(i, {}, picture(pairs.result[i], title(i))));
  byId("strip").append(...chosen.map(item));
}

function drawCharts() {
  if (charts.throughput.times.length) draw(byId("throughput"), throughputChart);
  const node = byId("distribution");
  if (!node) return;
  node.style.height = `${90 + 40 * charts.losses.styles.length}px`;
  draw(node, distributionChart);
}

fillControls();
readHash();
showState();
fillStrip();
apply();
showCounts();
followHash();
performance.mark("cards");
loaded.then(() => setTimeout(drawCharts, 100));
