// Charts. Each is drawn by Plotly once it comes near the window: evaluating Plotly takes a second of processor time.

const NEAR = "40px 0px";
const waitingCharts = new Map(); // nodes of charts, and the functions that make their traces and layout
const drawn = new Map();
let code = null; // Plotly's, once it is unpacked
let unpacking = null;

const near = new IntersectionObserver(
  (entries) => entries.filter(({ isIntersecting }) => isIntersecting).forEach(({ target }) => drawWaiting(target)),
  { rootMargin: NEAR },
);

// Draw the traces and layout that `make` returns in `node`, when it comes near the window or the page is printed, and
// again whenever the colours change.
function draw(node, make) {
  waitingCharts.set(node, make);
  unpacking ??= unpack("plotly").then((text) => { code = text; });
  unpacking.then(() => near.observe(node));
}

// This does not wait for anything, so that it is done in time before the page is printed.
function drawWaiting(node) {
  near.unobserve(node);
  const make = waitingCharts.get(node);
  if (!make) return;
  if (!window.Plotly) document.head.append(element("script", { textContent: code }));
  waitingCharts.delete(node);
  drawn.set(node, make);
  redraw(make, node);
}

function redraw(make, node) {
  const { traces, layout } = make();
  const modeBarButtonsToRemove = ["select2d", "lasso2d", "autoScale2d"];
  window.Plotly.react(node, traces, withStyle(layout), { responsive: true, displaylogo: false, modeBarButtonsToRemove });
}

function erase(node) {
  near.unobserve(node);
  waitingCharts.delete(node);
  if (drawn.delete(node)) window.Plotly.purge(node);
}

addEventListener("beforeprint", () => {
  if (code !== null) [...waitingCharts.keys()].filter((node) => !node.closest("dialog")).forEach(drawWaiting);
});
for (const query of ["(prefers-color-scheme: dark)", "print"]) {
  matchMedia(query).addEventListener("change", () => drawn.forEach(redraw));
}

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

function withStyle({ xaxis, yaxis, ...more }) {
  const axis = { gridcolor: colour("line"), linecolor: colour("line"), zeroline: false, automargin: true };
  const font = { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("muted") };
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font,
    margin: { l: 44, r: 8, t: 30, b: 36 },
    colorway: colour("series").split(/\s+/),
    hoverlabel: { bgcolor: colour("raised"), bordercolor: colour("line"), font: { ...font, color: colour("ink") } },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("muted"), activecolor: colour("ink") },
    legend: { orientation: "h", x: 0, y: -0.24, yanchor: "top", traceorder: "normal" },
    xaxis: { ...axis, ...xaxis },
    yaxis: { ...axis, ...yaxis },
    ...more,
  };
}

// Escape a text, because Plotly renders some HTML tags.
const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
const short = (text) => plain(text.length > 28 ? `${text.slice(0, 27)}…` : text);

// A dotted vertical line at `x`.
function verticalLine(x) {
  const line = { color: colour("muted"), width: 1, dash: "dot" };
  return { type: "line", x0: x, x1: x, yref: "paper", y0: 0, y1: 1, line };
}

function throughputChart() {
  const { width: seconds, times, breaks, workers } = charts.throughput;
  const x = times.map((time) => new Date(time * 1000).toISOString().slice(0, 19).replace("T", " "));
  const most = Math.max(2, Math.floor(byId("throughput").clientWidth / 110));
  const ticks = x.filter((_, k) => k % Math.ceil(x.length / most) === 0);
  const hours = ticks.map((text, k) => {
    const [day, hour] = text.split(" ");
    const newDay = !k || !ticks[k - 1].startsWith(day);
    return (seconds < 60 ? hour : hour.slice(0, 5)) + (newDay ? `<br>${day}` : "");
  });
  const common = { type: "bar", x, marker: { line: { width: 0 } }, hovertemplate: "%{y:.0f}" };
  return {
    traces: workers.map(({ name, rates }) => ({ ...common, name: short(name), y: rates })),
    layout: {
      barmode: "stack",
      bargap: 0,
      hovermode: "x unified",
      showlegend: workers.length > 1,
      xaxis: { type: "category", tickvals: ticks, ticktext: hours, tickangle: 0, showgrid: false },
      yaxis: { rangemode: "tozero" },
      shapes: breaks.map((k) => verticalLine(k - 0.5)),
    },
  };
}

// Traces of one style: its baseline at height `k`, its histogram and a mark at its median.
function distribution({ name, counts, median }, k, x) {
  const padded = [0, ...counts, 0];
  const y = padded.map((number) => k + (0.86 * number) / Math.max(...counts));
  const common = { mode: "lines", showlegend: false, text: padded.map(() => plain(name)) };
  const line = { shape: "hvh", width: 1.2, color: colour("accent") };
  const mark = { width: 2, color: colour("ink") };
  const countText = "%{text}: %{customdata} at %{x:.3s}<extra></extra>";
  const medianText = "%{text}: median %{x:.4s}<extra></extra>";
  return [
    { ...common, x, y: x.map(() => k), line: { width: 0 }, hoverinfo: "skip" },
    { ...common, x, y, line, fill: "tonexty", fillcolor: colour("soft"), customdata: padded, hovertemplate: countText },
    { ...common, x: [median, median], y: [k, k + 0.5], line: mark, hovertemplate: medianText },
  ];
}

function distributionChart() {
  const { edges, styles } = charts.losses;
  const ratio = edges[1] / edges[0];
  const x = [edges[0] / ratio, ...edges].map((edge) => edge * Math.sqrt(ratio));
  const wide = Math.log10(edges.at(-1) / edges[0]) > 2;
  return {
    traces: styles.flatMap((style, k) => distribution(style, k, x)),
    layout: {
      hovermode: "closest",
      xaxis: { type: "log", tickformat: "~s", dtick: wide ? 1 : "D2" },
      yaxis: {
        tickvals: styles.map((_, k) => k),
        ticktext: styles.map(({ name }) => `${short(name)} `),
        range: [-0.15, styles.length],
        fixedrange: true,
      },
    },
  };
}

// Curves of `values` (losses by name) over the steps; the one named `bold` is drawn thicker.
function curveChart({ step, scales }, values, bold) {
  const traces = Object.entries(values).map(([name, losses]) => ({
    type: "scatter",
    mode: step.length > 2 ? "lines" : "lines+markers",
    name: plain(name),
    x: step,
    y: losses.map((loss) => (loss > 0 ? loss : null)),
    line: { width: name === bold ? 2.5 : 1.4 },
    hovertemplate: "%{y:.4s}",
  }));
  const position = { y: 1, yref: "paper", yanchor: "bottom", xanchor: "left", showarrow: false, font: { size: 11 } };
  return {
    traces,
    layout: {
      hovermode: "x unified",
      shapes: scales.slice(1).map(([first]) => verticalLine(first)),
      annotations: scales.map(([first, scale]) => ({ ...position, x: first, text: `${scale} px` })),
      xaxis: { title: { text: "step", standoff: 4, font: { size: 12 } }, hoverformat: "d" },
      yaxis: { type: "log", tickformat: "~s", dtick: 1 },
    },
  };
}
