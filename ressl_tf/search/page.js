"use strict";

const IMAGES_A_PAGE = 60;
const byId = (id) => document.getElementById(id);

let gallery = null; // what gallery.json says
let shown = []; // numbers of the images of the chosen class
let first = 0; // place in `shown` of the first on the page
let running = null; // AbortController of the search that goes on
let upload = null; // {name, result} of the last image from outside
let preview = null; // URL of the image that is being sent

function make(tag, name, text) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text) element.textContent = text;
  return element;
}

function className(label) {
  return label === null ? "" : gallery.class_names[label];
}

function imageName(number) {
  return `image ${number}`;
}

function described(number) {
  const name = className(gallery.labels[number]);
  return imageName(number) + (name && `, ${name}`);
}

function breakable(name) {
  return name.replaceAll("_", "_\u200b"); // long names are of many words
}

function setState(state) {
  document.body.dataset.state = state;
  byId("result").setAttribute("aria-busy", String(state === "busy"));
}

function forgetPreview() {
  if (preview) URL.revokeObjectURL(preview);
  preview = null;
}

function showQuery(source, name, notes) {
  byId("query").hidden = false;
  byId("query-image").src = source;
  byId("query-image").alt = `The image that is searched: ${name}`;
  byId("query-caption").replaceChildren(
    make("strong", "", name),
    ...notes.filter(Boolean).map((note) => make("span", "faint", note)),
  );
}

function markCurrent(number) {
  for (const link of byId("images").querySelectorAll("a")) {
    if (number !== null && link.hash === `#image-${number}`) {
      link.setAttribute("aria-current", "true");
    } else {
      link.removeAttribute("aria-current");
    }
  }
}

function showEmpty() {
  byId("query").hidden = byId("error").hidden = true;
  byId("neighbours").replaceChildren();
  byId("summary").textContent =
    "Nothing is searched yet: choose an image, or click one of the gallery.";
  markCurrent(null);
  setState("empty");
}

function showError(message) {
  forgetPreview();
  byId("query").hidden = true;
  byId("neighbours").replaceChildren();
  byId("summary").textContent = "";
  byId("error").textContent = message;
  byId("error").hidden = false;
  setState("error");
  reveal();
}

function showBusy() {
  byId("error").hidden = true;
  byId("summary").textContent = "Searching.";
  setState("busy");
}

function neighbourTile({ number, similarity, label, same_class: same }) {
  const tile = make("li", same === null ? "" : same ? "same" : "other");
  const link = make("a");
  link.href = `#image-${number}`;
  link.draggable = false;
  const image = make("img");
  image.src = `image/${number}.png`;
  image.alt = imageName(number);
  const caption = make("span", "caption");
  const name = className(label);
  const mark = same === null ? "" : same ? "✓\u00a0" : "✗\u00a0";
  caption.append(
    make("b", "", similarity.toFixed(3)),
    make("span", "class", name && mark + breakable(name)),
  );
  const relation = same === null ? "" : same ? ", same class" : ", other class";
  link.setAttribute(
    "aria-label",
    `${described(number)}, similarity ${similarity.toFixed(3)}${relation}`,
  );
  link.append(image, caption);
  tile.append(link);
  return tile;
}

function showResult({ query, neighbours }, name) {
  forgetPreview();
  const size = gallery.image_size;
  showQuery(query.image, name, [
    className(query.label),
    query.number === null && `as the encoder sees it, ${size} x ${size} pixels`,
  ]);
  const known = neighbours.filter((x) => x.same_class !== null);
  const same = known.filter((x) => x.same_class).length;
  byId("summary").textContent =
    `${neighbours.length} images, by cosine similarity.` +
    (known.length ? ` ${same} of ${known.length} have its class.` : "");
  byId("neighbours").replaceChildren(...neighbours.map(neighbourTile));
  markCurrent(query.number);
  setState("result");
  reveal();
}

function reveal() {
  const heading = byId("result-heading");
  heading.focus({ preventScroll: true });
  // In one column what was searched stands above its neighbours, and what is
  // to be chosen instead above an error.
  const asked = byId("query").hidden ? byId("search-heading") : byId("query");
  const top = (element) => element.getBoundingClientRect().top;
  const target = top(asked) < top(heading) ? asked : heading;
  if (top(target) >= 0 && top(target) < innerHeight / 2) return;
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  target.scrollIntoView({ behavior: still ? "auto" : "smooth" });
}

async function ask(path, options) {
  if (running) running.abort();
  const own = (running = new AbortController());
  showBusy();
  try {
    const response = await fetch(path, { ...options, signal: own.signal });
    const answer = await response.json();
    if (!response.ok) throw new Error(answer.error);
    return answer;
  } catch (error) {
    if (own.signal.aborted) return null; // for another search
    showError(
      error instanceof TypeError || error instanceof SyntaxError
        ? "The search does not answer: is its command still running?"
        : error.message,
    );
    return null;
  }
}

async function searchNumber(number) {
  forgetPreview();
  showQuery(`image/${number}.png`, imageName(number), []);
  const result = await ask(`neighbours/${number}.json`);
  if (result) showResult(result, imageName(number));
}

function refuseFiles(files) {
  if (!files.length) {
    return "That is no image file: save it first, then drop the file.";
  }
  if (files.length > 1) return "One image at a time, please.";
  if (files[0].size <= gallery.max_bytes) return null;
  const megabytes = gallery.max_bytes / 1e6;
  return `The file is too large: at most ${megabytes} MB are taken.`;
}

async function searchFiles(files) {
  if (!gallery) return;
  if (running) running.abort();
  if (location.hash) history.pushState(null, "", location.pathname);
  markCurrent(null);
  forgetPreview();
  const refusal = refuseFiles(files);
  if (refusal) {
    showError(refusal);
    return;
  }
  const [file] = files;
  preview = URL.createObjectURL(file);
  showQuery(preview, file.name, []);
  const result = await ask("search", { method: "POST", body: file });
  if (result) {
    upload = { result, name: file.name };
    showResult(result, file.name);
  }
}

function followHash() {
  const found = /^#image-([0-9]{1,9})$/.exec(location.hash);
  if (found) {
    searchNumber(Number(found[1]));
    return;
  }
  if (running) running.abort();
  if (upload) {
    showResult(upload.result, upload.name);
  } else {
    showEmpty();
  }
}

function showPage() {
  const page = shown.slice(first, first + IMAGES_A_PAGE);
  byId("images").replaceChildren(
    ...page.map((number) => {
      const link = make("a");
      link.href = `#image-${number}`;
      link.draggable = false;
      const image = make("img");
      image.loading = "lazy";
      image.src = `image/${number}.png`;
      image.alt = described(number);
      link.title = className(gallery.labels[number]);
      link.append(image);
      const tile = make("li");
      tile.append(link);
      return tile;
    }),
  );
  const found = /^#image-([0-9]{1,9})$/.exec(location.hash);
  markCurrent(found ? Number(found[1]) : null);
  const end = first + page.length;
  byId("range").textContent =
    `${(first + 1).toLocaleString("en")} to ${end.toLocaleString("en")} ` +
    `of ${shown.length.toLocaleString("en")}`;
  // Not `disabled`, which would take the focus from who pressed it last.
  byId("previous").setAttribute("aria-disabled", String(first === 0));
  byId("next").setAttribute("aria-disabled", String(end === shown.length));
}

function showClass(label) {
  const numbers = [...gallery.labels.keys()];
  shown =
    label === ""
      ? numbers
      : numbers.filter((number) => gallery.labels[number] === Number(label));
  first = 0;
  showPage();
}

function turnPage(direction) {
  const next = first + direction * IMAGES_A_PAGE;
  if (next < 0 || next >= shown.length) return;
  first = next;
  showPage();
}

function fillClasses() {
  const present = [...new Set(gallery.labels)].filter((x) => x !== null);
  if (!present.length) return;
  const options = present
    .sort((a, b) => a - b)
    .map((label) => new Option(className(label), label));
  byId("class").replaceChildren(new Option("all", ""), ...options);
  byId("class-label").hidden = false;
}

function watchDragging() {
  // `dragleave` comes for every element that is left; `relatedTarget` is the
  // one that is entered, and null outside of the window.
  const set = (is) => document.body.toggleAttribute("data-dragging", is);
  addEventListener("dragover", (event) => {
    event.preventDefault();
    set(true);
  });
  addEventListener("dragleave", (event) => set(Boolean(event.relatedTarget)));
  addEventListener("drop", (event) => {
    // Anywhere: a browser would show the file in place of the page.
    event.preventDefault();
    set(false);
    searchFiles([...event.dataTransfer.files]);
  });
}

async function start() {
  watchDragging();
  byId("file").addEventListener("change", (event) => {
    const files = [...event.target.files];
    event.target.value = ""; // so that the same file can be chosen again
    if (files.length) searchFiles(files);
  });
  addEventListener("paste", (event) => {
    const files = [...event.clipboardData.files];
    if (files.length) searchFiles(files);
  });
  byId("class").addEventListener("change", (event) =>
    showClass(event.target.value),
  );
  byId("previous").addEventListener("click", () => turnPage(-1));
  byId("next").addEventListener("click", () => turnPage(1));
  try {
    gallery = await (await fetch("gallery.json")).json();
  } catch {
    byId("about").textContent = "";
    showError("The search does not answer: is its command still running?");
    return;
  }
  byId("about").textContent = `Searches ${gallery.about}.`;
  byId("limit").textContent = `, up to ${gallery.max_bytes / 1e6} MB`;
  document.body.toggleAttribute("data-small", gallery.image_size <= 64);
  fillClasses();
  showClass("");
  addEventListener("hashchange", followHash);
  if (location.hash) followHash();
}

start();
