// The live page: it asks the server for new pairs, and shows the state of the run.

const WAIT = 5000; // milliseconds until a server that answered with an error is asked again
const SHARE = 6; // new pairs are shown at most for one in so many parts of the time, however many pairs there are
const live = { epoch: "", since: 0, asking: false, waiting: [], ready: 0 };

const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

details = async (i) => {
  for (;;) {
    const answer = await fetch(`details?${new URLSearchParams({ id: pairs.id[i] })}`).catch(() => null);
    if (answer?.ok) return answer.json();
    await pause(WAIT);
  }
};

// New pairs wait while somebody reads further down or in a dialog, so that nothing moves away.
const inDialog = () => document.querySelector("dialog[open]") !== null;
const isReading = () => inDialog() || list.getBoundingClientRect().top < -rowHeight / 2;

function showWaiting(always = false) {
  const number = live.waiting.reduce((sum, part) => sum + part.pairs.id.length, 0);
  const hold = !always && pairs.id.length > 0 && isReading();
  byId("fresh").hidden = !(hold && number) || inDialog();
  byId("fresh").textContent = `Show ${plural(number, "new pair")}`;
  if (!number || hold || (!always && performance.now() < live.ready)) return;
  const began = performance.now();
  live.waiting.splice(0).forEach((part, k, all) => addPairs(part, k < all.length - 1));
  showStrip();
  live.ready = performance.now() + SHARE * (performance.now() - began);
}

// The newest pictures at the top of the page.
function showStrip() {
  const painted = pairs.id.map((_, i) => i).filter((i) => pairs.ok[i]);
  const newest = painted.sort((a, b) => pairs.ended[b] - pairs.ended[a] || b - a).slice(0, STRIP);
  const item = (i) => element("div", { role: "listitem" }, link(i, {}, picture(pairs.result[i], title(i))));
  byId("strip").replaceChildren(...newest.map(item));
}

// True if the last event told of pairs that the page does not have.
const isBehind = () => live.run.epoch !== live.epoch || live.run.seq > live.since;

// Ask for all pairs that have changed, those of events that come meanwhile included: there may be no further event.
async function ask() {
  if (live.asking) return;
  live.asking = true;
  while (isBehind()) {
    const address = `pairs?${new URLSearchParams({ epoch: live.epoch, since: live.since })}`;
    const found = await fetch(address).then((answer) => (answer.ok ? answer.json() : null)).catch(() => null);
    if (found === null) {
      await pause(WAIT);
      continue;
    }
    Object.assign(live, { epoch: found.epoch, since: found.next });
    if (found.part.pairs.id) live.waiting.push(found.part);
    showWaiting();
    if (live.epoch !== live.run.epoch) break; // OUT was made anew; the event that says so is on its way
  }
  live.asking = false;
}

function headline({ done, failed, left }) {
  const bad = failed ? element("span", { className: "bad" }, `${whole.format(failed)} failed`) : null;
  const parts = [`${plural(done, "picture")} painted`, bad, left ? `${whole.format(left)} left` : null];
  const shown = parts.filter((part) => part !== null);
  byId("headline").replaceChildren(...shown.flatMap((part, k) => (k ? [", ", part] : [part])));
  document.title = `${whole.format(done)} painted${left ? `, ${whole.format(left)} left` : ""}: batchnst`;
}

function lead({ run_id, manifest, began, last, alive, silent }) {
  const from = `Run ${run_id}, begun ${began} UTC${manifest ? `, from ${manifest}` : ""}`;
  if (alive) return `${from}. It is painting now.`;
  if (silent) return `${from}. It gives no sign of life: run the same command again to go on.`;
  return `${from}. Nobody is painting now; the last pair ended ${last}.`;
}

function workerRow({ name, device, painted, failed, busy }) {
  const bar = element("i", { className: "share", "aria-hidden": "true" });
  bar.style.setProperty("--share", busy);
  const cell = (...content) => element("td", { className: "number" }, ...content);
  const numbers = [cell(whole.format(painted)), cell(whole.format(failed)), cell(bar, `${Math.round(100 * busy)} %`)];
  return element("tr", {}, element("td", {}, name), element("td", {}, device), ...numbers);
}

// Show the state of the run, as `state` in night.py makes it.
function showRun(run) {
  byId("problem").hidden = !run.problem;
  byId("problem").textContent = run.problem;
  if (!run.run_id) {
    byId("headline").textContent = "No run yet";
    byId("lead").textContent = "Pictures appear here as soon as they are painted.";
    return;
  }
  headline(run);
  byId("lead").textContent = lead(run);
  const values = {
    Pairs: run.pairs === null ? null : whole.format(run.pairs),
    "Pairs an hour now": run.alive ? figure(run.rate_now) : null,
    "Pairs an hour, all in all": figure(run.rate),
    "Time to go": run.seconds_left ? duration(run.seconds_left) : null,
    Workers: run.workers.length ? whole.format(run.workers.length) : null,
  };
  const shown = Object.entries(values).filter(([, value]) => value !== null);
  const item = ([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value));
  byId("figures").replaceChildren(...shown.map(item));
  byId("workers-section").hidden = !run.workers.length;
  const errors = run.errors.map(([kind, number]) => `${whole.format(number)} ${kind}`).join(" · ");
  byId("errors").textContent = errors && `Failed: ${errors}`;
  byId("worker-rows").replaceChildren(...run.workers.map(workerRow));
}

function listen() {
  const events = new EventSource("events");
  events.addEventListener("message", ({ data: text }) => {
    const run = JSON.parse(text);
    live.remade ??= run.remade;
    if (run.remade !== live.remade) { // OUT was removed: nothing that is shown is there any more
      location.reload();
      return;
    }
    live.run = run;
    showRun(run);
    if (isBehind()) ask();
    else showWaiting();
  });
  events.addEventListener("error", async () => {
    byId("problem").hidden = false;
    byId("problem").textContent = "The server does not answer; what is shown may be old.";
    if (events.readyState !== EventSource.CLOSED) return; // else the browser tries again by itself
    await pause(WAIT);
    listen();
  });
}

// A picture that is not there, or that is not the one of its row, is not served.
document.addEventListener("error", ({ target }) => {
  if (target.tagName !== "IMG") return;
  const text = "gone, or changed since the run";
  target.replaceWith(element("span", { className: "none", role: "img", "aria-label": `${target.alt}: ${text}` }, text));
}, true);

byId("fresh").addEventListener("click", () => {
  byId("pairs").scrollIntoView({ behavior: "instant" });
  showWaiting(true);
});
dialog.addEventListener("close", () => setTimeout(showWaiting));
setInterval(showWaiting, 1000);
state.sort ||= "ended";
showState();
listen();
