// What to paint again: the form for a change, and the files that the page writes and reads.

const form = byId("again-form");
const again = byId("again");
let asked = []; // pairs that the form is for

// Open the form for pairs; it shows the change of their mark if there is only one pair.
function openAgain(members) {
  asked = members;
  const one = members.length === 1 ? members[0] : null;
  const before = one === null ? null : markOf(one)?.change;
  const { factor = "", seed, style = "", size = "", set = {} } = before ?? {};
  const used = [...new Set(pairs.styles.flat())].sort((a, b) => names[a].localeCompare(names[b]));
  form.style.replaceChildren(element("option", { value: "" }, "as it was"));
  form.style.append(...used.map((number) => element("option", { value: addresses[number] }, names[number])));
  byId("again-title").textContent = `Paint again: ${one === null ? plural(members.length, "pair") : title(one)}`;
  const noisy = members.some((i) => pairs.noise[i]);
  Object.assign(form.seed, { checked: seed !== undefined, disabled: !noisy });
  byId("again-seed").textContent = noisy ? "another one" : "changes nothing: no picture starts from noise";
  form.factor.value = factor;
  form.style.value = style;
  form.size.value = size;
  form.set.value = Object.entries(set).map((entry) => entry.join("=")).join("\n");
  byId("again-problem").textContent = "";
  again.showModal();
}

// The change that the form asks for; throws an Error that says what is wrong.
function readForm() {
  const size = form.size.value.trim();
  const change = {
    factor: form.factor.value === "" ? undefined : Number(form.factor.value),
    seed: form.seed.checked ? randomSeed() : undefined,
    style: form.style.value || undefined,
    size: size === "" ? undefined : /^\d+$/.test(size) ? Number(size) : size,
    set: readSettings(form.set.value),
  };
  if (size && !isSize(change.size)) {
    throw new Error(`size: ${size} is not allowed; expected 16 to 65536 pixels, or original`);
  }
  return readChange(change);
}

function readSettings(text) {
  const lines = text.split("\n").map((line) => line.trim()).filter(Boolean);
  return Object.fromEntries(lines.map((line) => {
    const [key, ...rest] = line.split("=");
    if (!rest.length || !rest.join("=").trim()) throw new Error(`${line}: expected KEY=VALUE`);
    if (!data.recipeKeys.includes(key.trim())) {
      throw new Error(`${key.trim()}: no such recipe key; there are ${data.recipeKeys.join(", ")}`);
    }
    return [key.trim(), rest.join("=").trim()];
  }));
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  try {
    const change = readForm();
    if (!Object.keys(change).length && asked.some((i) => pairs.ok[i])) {
      throw new Error("Choose a change: a picture that is there is not painted again for the same request");
    }
    give(asked.map((i) => [i, { mark: "again", change: seedOnlyFor(i, change) }]));
    again.close();
  } catch (error) {
    byId("again-problem").textContent = error.message;
  }
});
byId("again-cancel").addEventListener("click", () => again.close());

// The change for pair `i`: each pair that starts from noise gets a seed of its own, others none.
function seedOnlyFor(i, { seed, ...change }) {
  return seed === undefined || !pairs.noise[i] ? change : { ...change, seed: asked.length === 1 ? seed : randomSeed() };
}

// Set a value of a request, which has JSON texts. Keys whose defaults follow from this one, such as the weights of a
// loss, get those of its new value.
function setKey(request, key, value) {
  const before = data.defaults[key]?.[JSON.parse(request[key] ?? "null")] ?? {};
  for (const [other, usual] of Object.entries(before)) {
    if (JSON.stringify(JSON.parse(request[other] ?? "null")) === JSON.stringify(usual)) delete request[other];
  }
  request[key] = JSON.stringify(value);
}

// The row of a manifest that asks for pair `i` as it was, but for the change of its mark. Its addresses are those of
// the ledger, which are absolute.
async function redoRow(i) {
  const { request: own } = await details(i);
  const request = { ...own, ...data.request, ...own }; // in this order a person finds the pair first
  const { factor, seed, style, size, set = {} } = markOf(i).change;
  if (factor) setKey(request, "style_weight", JSON.parse(request.style_weight) * factor);
  if (style !== undefined) {
    Object.assign(request, { style: JSON.stringify([style]), style_weights: "null", style_mask: "null" });
  }
  for (const [key, value] of Object.entries({ seed, size, ...set })) {
    if (value !== undefined) setKey(request, key, value);
  }
  const present = Object.entries(request).filter(([, text]) => text !== "null" && text !== "[]");
  return `{${present.map(([key, text]) => `${JSON.stringify(key)}: ${text}`).join(", ")}}`;
}

const quoted = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'"'"'`)}'`);

// The command that paints the pairs again.
function command(requests) {
  const retry = requests.some((i) => !pairs.ok[i] && !Object.keys(markOf(i).change).length);
  return `batchnst run redo.jsonl --out ${quoted(data.out)}${retry ? " --retry-failed" : ""}`;
}

function download(name, text) {
  const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

async function saveRedo() {
  const requests = marked().again.filter(isRequest);
  const rows = await Promise.all(requests.map(redoRow));
  download("redo.jsonl", rows.map((row) => `${row}\n`).join(""));
  const hidden = rows.filter((row) => row.includes("***")).length;
  const secret = hidden ? `; ${plural(hidden, "row")} had a secret, which is *** now: put it back` : "";
  say(`redo.jsonl asks for ${plural(rows.length, "pair")}${secret}`);
}

function saveMarks() {
  const marks = pairs.id.map((id, i) => [id, markOf(i)]).filter(([, mark]) => mark);
  const file = { out: data.out, run: data.run, marks: Object.fromEntries(marks) };
  download("marks.json", `${JSON.stringify(file, null, 1)}\n`);
  say(`marks.json has ${plural(marks.length, "mark")}`);
}

// Take over the marks in the text of a file; those of pairs or attempts that the page does not show are left out.
function loadMarks(text, name) {
  let all = [];
  try {
    const { marks } = JSON.parse(text);
    if (Object(marks) !== marks) throw new Error("no marks");
    all = Object.entries(marks).map(([id, value]) => [numbers.get(id), readMark(value)]);
  } catch {
    say(`${name}: no marks could be read; expected a marks.json that this page has written`);
    return;
  }
  const known = all.filter(([i, mark]) => i !== undefined && mark?.made === pairs.made[i]);
  if (known.length) give(known);
  const rest = all.length - known.length;
  const left = rest ? `; ${whole.format(rest)} of other pairs or attempts left out` : "";
  say(`${plural(known.length, "mark")} loaded from ${name}${left}`);
}

byId("save-redo").addEventListener("click", saveRedo);
byId("save-marks").addEventListener("click", saveMarks);
byId("load-marks").addEventListener("click", () => byId("marks-file").click());
byId("marks-file").addEventListener("change", async ({ target }) => {
  const [file] = target.files;
  if (file) loadMarks(await file.text(), file.name);
  target.value = "";
});
byId("copy-command").addEventListener("click", () => copy(byId("command").textContent, "Command", byId("command")));
