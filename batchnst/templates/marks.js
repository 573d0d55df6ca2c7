// Marks with undo, texts to copy and files to download, for all pages that let one choose.

// Marks by key. They are kept in this browser under `name`, with what else is in `more`.
class Marks {
  constructor(name) {
    this.name = name;
    this.all = new Map();
    this.more = {};
    this.steps = []; // of undo: what each mark of a step was before
    try {
      const { marks, ...more } = JSON.parse(localStorage.getItem(name) ?? "{}");
      this.all = new Map(Object.entries(marks ?? {}));
      this.more = more;
    } catch {
      // Without storage, marks last as long as the page is open.
    }
  }

  get(key) {
    return this.all.get(key);
  }

  save() {
    try {
      localStorage.setItem(this.name, JSON.stringify({ marks: Object.fromEntries(this.all), ...this.more }));
    } catch {
      // As above.
    }
  }

  put(entries) {
    for (const [key, mark] of entries) {
      if (mark === undefined) this.all.delete(key);
      else this.all.set(key, mark);
    }
    this.save();
  }

  // Give marks, each a [key, mark], as one step of undo; undefined takes a mark away.
  set(entries) {
    this.steps.push(entries.map(([key]) => [key, this.all.get(key)]));
    this.put(entries);
  }

  // Undo the last step; return its keys, or null if there is none.
  undo() {
    const step = this.steps.pop();
    if (!step) return null;
    this.put(step);
    return step.map(([key]) => key);
  }
}

// Tell what was done, on the page and to screen readers. Each dialog has a place for it, as it hides what is behind it.
function say(text) {
  document.querySelectorAll(".said").forEach((node) => { node.textContent = text; });
}

// Copy `text`, which the element `node` shows.
async function copy(text, name, node) {
  node.textContent = text;
  try {
    const tooLong = new Promise((_, reject) => setTimeout(reject, 2000)); // some browsers never answer
    await Promise.race([navigator.clipboard.writeText(text), tooLong]);
    say(`${name} copied`);
  } catch {
    getSelection().selectAllChildren(node);
    say(document.execCommand("copy") ? `${name} copied` : "This browser does not let a page copy: the text is selected");
  }
}
