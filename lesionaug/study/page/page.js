// The page of a reader study: one image, one question, answered by keyboard, mouse or touch. No library, no network but
// the study's own server. What is answered is on the server's disk before the next image is asked for.

const $ = (id) => document.getElementById(id);
const SCREENS = ["message", "register", "contrast", "part", "trial"];
const IDLE_MS = 60_000; // longer without a key or a pointer counts as a pause
const BEAT_MS = 5_000;
const RETRY_MS = 2_000;
const MOST_ZOOM = 12;
const WRAPPED = 50; // a line of so many letters was ended by an editor, not by its author

const tab = tabId();
let study = null; // what /api/study says
let display = null; // {centre, width, zoom, smooth}
let trial = null; // what /api/trial says, with its pixels
let clock = null; // response time of the trial that is shown
let chosen = null;
let busy = false;
let canGoBack = false;
let keys = null; // key handler of the screen that is shown

/** Names this tab; a reload keeps the name, a duplicated tab (which copies the storage) gets its own. */
function tabId() {
  const reloaded = performance.getEntriesByType("navigation")[0]?.type === "reload";
  const kept = reloaded ? sessionStorage.getItem("tab") : null;
  const id = kept ?? crypto.randomUUID();
  sessionStorage.setItem("tab", id);
  return id;
}

// --- Server ------------------------------------------------------------------------------------------------------------

class Refused extends Error {
  constructor(status, said) {
    super([said.error, said.fix].filter(Boolean).join(". ") || `The server said ${status}`);
    this.status = status;
  }
}

/** Which tab asks, and for whom: tabs of one browser share a cookie, which another reader's link may have changed. */
function ourHeaders() {
  return { "X-Tab": tab, ...(study && { "X-Reader": encodeURIComponent(study.reader.code) }) };
}

async function call(path, body) {
  const options = { headers: ourHeaders(), cache: "no-store", credentials: "same-origin" };
  if (body !== undefined) {
    options.method = "POST";
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  const response = await fetch(path, options);
  if (response.ok) return response;
  throw new Refused(response.status, await response.json().catch(() => ({})));
}

const json = async (path, body) => (await call(path, body)).json();
const note = (kind, content = {}) =>
  call("/api/event", { kind, content, client_ms: Math.round(performance.now()) }).catch(() => {});

/** Ask until the server answers: it may have been stopped and started again. What it refuses is thrown. */
async function patiently(ask) {
  for (;;) {
    try {
      return await ask();
    } catch (error) {
      if (error instanceof Refused) throw error;
      say("The server does not answer", `${SAVED} This page goes on by itself if the server comes back. If it was started ` +
        "anew, its new link is needed: ask whoever runs the study for it.");
      await new Promise((done) => setTimeout(done, RETRY_MS));
    }
  }
}

// --- Screens -----------------------------------------------------------------------------------------------------------

function show(name, onKey = null) {
  for (const screen of SCREENS) $(screen).hidden = screen !== name;
  keys = onKey;
}

function say(title, text, button = null, action = null) {
  $("message-title").textContent = title;
  $("message-text").textContent = text;
  $("message-button").hidden = !button;
  $("message-button").textContent = button ?? "";
  $("message-button").onclick = action;
  show("message");
  if (button) $("message-button").focus();
}

const SAVED = "Every answer before this image is saved; this image may be asked about again.";
const NEW_LINK = "Ask whoever runs the study to press Enter where the server runs, and open the new link that it prints.";

function failed(error) {
  if (!(error instanceof Refused)) {
    say("Something went wrong", `${error}. ${SAVED}`, "Load the page again", () => location.reload());
  } else if (error.status === 401) {
    say("Your sign-in has ended", "The server was started anew, the browser was closed, your link was opened elsewhere, or " +
      `another reader's link was opened in this browser. ${SAVED} ${NEW_LINK}`);
  } else if (error.status === 409) {
    say("Open in another tab", "The study is open in another tab or window. Close that one, then go on here.", "Go on here", start);
  } else {
    say("The server refused", error.message, "Load the page again", () => location.reload());
  }
}

/** How far the reader is; with a trial also which image of which part it is. */
function showPlace(progress, coming = null) {
  const share = progress.total ? progress.done / progress.total : 0;
  $("progress").hidden = false;
  $("progress").value = share;
  if (coming === null) {
    $("place").textContent = `${progress.done} of ${progress.total} answered`;
  } else if (study.design.order === "combined") {
    $("place").textContent = `Question ${coming.number} of ${coming.of}`;
  } else {
    const before = progress.done - progress.task_done; // trials of the parts before
    const place = partOf(coming.task);
    $("place").textContent = `${place ? `${place} · image` : "Image"} ${coming.number - before} of ${progress.task_total}`;
  }
}

/** "Part 1 of 2", or nothing where there is one. */
function partOf(task) {
  const parts = study.design.tasks;
  return parts.length > 1 ? `Part ${parts.indexOf(task) + 1} of ${parts.length}` : "";
}

// --- From the link to the first image ----------------------------------------------------------------------------------

async function start() {
  try {
    const token = new URLSearchParams(location.hash.slice(1)).get("t");
    if (token) {
      history.replaceState(null, "", "/"); // the token is used up; it shall stay in no history
      const opened = await call("/api/open", { token }).catch((error) => error);
      if (opened instanceof Refused && opened.status === 403) {
        say("This link does not work", `It was used before, or a newer one was printed. ${NEW_LINK}`);
        return;
      }
      if (opened instanceof Error) throw opened;
    }
    await patiently(() => call("/api/claim", { tab }));
    study = await json("/api/study");
    $("title").textContent = study.title;
    document.title = study.title;
    $("who").textContent = `Reader ${study.reader.code}`;
    $("banner").hidden = study.kind !== "phantom";
    $("banner").textContent = "Phantom images: made by a program, they show no patients";
    display = startDisplay();
    if (study.reader.registered) showContrast();
    else showRegister();
  } catch (error) {
    failed(error);
  }
}

function showRegister() {
  $("consent").replaceChildren(...paragraphs(study.consent));
  $("reader-code").textContent = study.reader.code;
  show("register");
  $("consent").focus();
}

/** Text as paragraphs: what an editor has wrapped is joined, while short lines and lists stay as they are. */
function paragraphs(text) {
  return text.trim().split(/\n[ \t\r]*\n\s*/).map((part) => {
    const lines = part.split(/\r?\n/);
    const item = document.createElement("p");
    item.textContent = lines.reduce((joined, line, i) =>
      joined + (lines[i - 1].length >= WRAPPED && !/^\s*([-*•]|\d+[.)])\s/.test(line) ? " " : "\n") + line.trim());
    return item;
  });
}

$("register-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const years = $("years").value === "" ? null : Number($("years").value);
  try {
    await call("/api/register", { years, speciality: $("speciality").value.trim(), agreed: $("agreed").checked });
    study.reader.registered = true;
    showContrast();
  } catch (error) {
    if (error instanceof Refused && error.status === 400) $("register-fault").textContent = error.message;
    else failed(error);
  }
});

function showContrast() {
  const context = $("ramp").getContext("2d");
  context.fillStyle = "#000";
  context.fillRect(0, 0, 704, 230);
  for (let step = 0; step <= 10; step++) {
    const grey = Math.round(25.5 * step);
    context.fillStyle = `rgb(${grey} ${grey} ${grey})`;
    context.fillRect(64 * step, 0, 64, 80);
  }
  for (const [left, outer, inner] of [[152, 0, 13], [424, 255, 242]]) { // 5 % steps, as in the SMPTE test pattern
    context.fillStyle = `rgb(${outer} ${outer} ${outer})`;
    context.fillRect(left, 100, 128, 128);
    context.strokeStyle = "#666";
    context.strokeRect(left, 100, 128, 128);
    context.fillStyle = `rgb(${inner} ${inner} ${inner})`;
    context.fillRect(left + 40, 140, 48, 48);
  }
  $("contrast-fault").textContent = "";
  const seen = ["both", "dark", "bright", "neither"];
  show("contrast", (key) => (seen[Number(key) - 1] ? choose(seen[Number(key) - 1]) : false));
  let warned = false;
  async function choose(which) {
    await note("contrast", { seen: which, dpr: window.devicePixelRatio, width: screen.width, height: screen.height });
    if (which === "both" || warned) {
      next();
      return;
    }
    warned = true;
    $("contrast-fault").textContent = "Raise the brightness or dim the room, then choose again. If nothing helps, choose the " +
      "same once more: it is written down, and the study goes on.";
  }
  for (const button of $("contrast-choices").children) button.onclick = () => choose(button.dataset.seen);
}

const TASKS = {
  class: { title: "What does the image show?", text: "You will see lesions, one after the other. Choose the class of each." },
  origin: {
    title: "Is the image real?",
    text: "Some of the images show lesions of patients, others were made by a computer. Say for each what you think it is.",
    phantom: "Some of the images are of the phantom, others were made by a network that learned from it. Say for each what you " +
      "think it is; “real” means: of the phantom.",
  },
};

async function next() {
  try {
    const before = trial?.task;
    const coming = await patiently(() => json("/api/trial"));
    if (coming.done) {
      trial = null;
      showPlace(coming.progress ?? { done: 1, total: 1 });
      const [button, action] = coming.can_go_back ? ["Back to the last image", back] : [null, null];
      say("Thank you", "All images are answered, and every answer is saved. You can close this page.", button, action);
      canGoBack = coming.can_go_back;
      note("finished");
      return;
    }
    const pixels = await loadPixels(coming.image);
    if (coming.task !== before && study.design.order !== "combined") {
      showPart(coming, pixels);
    } else {
      showTrial(coming, pixels);
    }
  } catch (error) {
    failed(error);
  }
}

async function loadPixels(image) {
  const response = await patiently(() => call(`/api/image/${encodeURIComponent(image)}`));
  const bytes = new DataView(await response.arrayBuffer());
  const pixels = new Float32Array(bytes.byteLength / 2);
  for (let i = 0; i < pixels.length; i++) pixels[i] = bytes.getUint16(2 * i, true) / 65535;
  return pixels;
}

function showPart(coming, pixels) {
  const task = TASKS[coming.task];
  $("part-title").textContent = [partOf(coming.task), task.title].filter(Boolean).join(": ");
  $("part-text").textContent = (study.kind === "phantom" && task.phantom || task.text) + (coming.practice ? " The first ones are for practice and do not count." : "");
  if (coming.progress) showPlace(coming.progress);
  const go = () => showTrial(coming, pixels);
  $("part-button").onclick = go;
  show("part", (key) => (key === "?" ? tools.help() : (key === " " || key === "Enter") && go()));
  $("part-button").focus();
}

// --- A trial -----------------------------------------------------------------------------------------------------------

function showTrial(coming, pixels) {
  trial = { ...coming, pixels };
  canGoBack = coming.can_go_back;
  chosen = coming.previous?.choice ?? null;
  $("question").textContent = TASKS[coming.task].title;
  $("practice").hidden = !coming.practice;
  $("note").value = coming.previous?.note ?? "";
  $("note-box").hidden = true;
  markNote();
  $("trial-fault").textContent = "";
  $("back").disabled = !coming.can_go_back;
  $("back").hidden = $("help-back").hidden = study.design.back === "lock";
  $("choices").setAttribute("aria-busy", "true");
  $("choices").replaceChildren(...coming.choices.map(choiceButton));
  showPlace(coming.progress, coming);
  show("trial", onTrialKey);
  draw();
  // The time runs from the frame after the one in which the image was painted, and answers are taken from then on.
  const started = clock = new Clock();
  requestAnimationFrame(() => requestAnimationFrame(() => {
    started.start();
    if (clock === started) $("choices").setAttribute("aria-busy", "false");
  }));
  mark();
}

function choiceButton(choice) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "choice";
  button.dataset.value = choice.value;
  const key = document.createElement("kbd");
  key.textContent = choice.key;
  const label = document.createElement("span");
  label.textContent = choice.label;
  button.append(key, label);
  button.onclick = () => select(choice.value);
  return button;
}

function select(value) {
  if (busy || !clock.runs) return;
  clock.choice();
  chosen = value;
  $("trial-fault").textContent = "";
  mark();
}

/** Show what is chosen. The focus goes there; before a choice to the question, so that no answer looks chosen. */
function mark() {
  let focusable = $("question");
  for (const button of $("choices").children) {
    const on = chosen !== null && Number(button.dataset.value) === chosen;
    button.setAttribute("aria-pressed", String(on));
    if (on) focusable = button;
  }
  focusable.focus({ preventScroll: true });
  $("confirm").disabled = chosen === null;
}

function markNote() {
  $("note-state").textContent = $("note").value.trim() ? " written" : "";
}

async function confirm() {
  if (busy || !clock.runs) return;
  if (chosen === null) {
    $("trial-fault").textContent = "Choose an answer first";
    return;
  }
  busy = true;
  const answer = {
    trial: trial.trial,
    choice: chosen,
    note: $("note").value.trim(),
    response_ms: clock.responseMs(),
    paused_ms: clock.pausedMs,
    num_pauses: clock.numPauses,
    display: { ...display, zoom: fittingZoom() },
  };
  try {
    const said = await patiently(() => json("/api/answer", answer));
    if (said.progress) study.progress = said.progress;
    await next();
  } catch (error) {
    // 409: an earlier try of this same answer did reach the disk, or another tab went on.
    if (error instanceof Refused && error.status === 409) await resync();
    else if (error instanceof Refused && error.status === 400) $("trial-fault").textContent = error.message;
    else failed(error);
  } finally {
    busy = false;
  }
}

async function resync() {
  try {
    await call("/api/claim", { tab });
    await next();
  } catch (error) {
    failed(error);
  }
}

async function back() {
  if (busy || !canGoBack) return;
  busy = true;
  try {
    await call("/api/back", {});
    const coming = await json("/api/trial");
    showTrial(coming, await loadPixels(coming.image));
  } catch (error) {
    failed(error);
  } finally {
    busy = false;
  }
}

/** Response time from paint to choice; pauses and hidden pages are taken out and counted, long idleness is counted. */
class Clock {
  #from = null;
  #lastActive = null;
  #pausedAt = null;
  #atChoice = null;
  pausedMs = 0;
  numPauses = 0;

  get runs() {
    return this.#from !== null;
  }

  start() {
    this.#from = this.#lastActive = performance.now();
  }

  active() {
    const now = performance.now();
    if (this.#lastActive !== null && this.#pausedAt === null && now - this.#lastActive > IDLE_MS) {
      this.numPauses += 1; // nobody knows whether it was spent looking
    }
    this.#lastActive = now;
  }

  pause() {
    if (this.#pausedAt !== null || !this.runs) return;
    this.active();
    this.#pausedAt = performance.now();
    this.numPauses += 1;
  }

  resume() {
    if (this.#pausedAt === null) return;
    this.pausedMs += performance.now() - this.#pausedAt;
    this.#pausedAt = null;
    this.#lastActive = performance.now();
  }

  choice() {
    this.active();
    this.#atChoice = performance.now() - this.pausedMs;
  }

  responseMs() {
    if (this.#from === null) return 0;
    return Math.max(0, (this.#atChoice ?? performance.now() - this.pausedMs) - this.#from);
  }
}

// --- The picture -------------------------------------------------------------------------------------------------------

function startDisplay() {
  const [low, high] = study.design.window_hu;
  return { centre: (low + high) / 2, width: high - low, zoom: study.display?.zoom ?? 6, smooth: study.display?.smooth ?? false };
}

function fittingZoom() {
  const room = Math.min(window.innerWidth - 32, window.innerHeight - 140);
  return Math.max(1, Math.min(display.zoom, Math.floor(room / study.design.size)));
}

function draw() {
  const size = study.design.size;
  const scale = Math.max(1, Math.round(fittingZoom() * (window.devicePixelRatio || 1))); // whole device pixels
  const side = size * scale;
  const canvas = $("image");
  canvas.width = canvas.height = side;
  canvas.style.width = canvas.style.height = `${side / (window.devicePixelRatio || 1)}px`;
  const values = display.smooth ? bicubic(trial.pixels, size, scale) : null;
  const [low, high] = study.design.window_hu;
  const from = display.centre - display.width / 2;
  const context = canvas.getContext("2d");
  const picture = context.createImageData(side, side);
  for (let y = 0; y < side; y++) {
    const row = Math.floor(y / scale) * size;
    for (let x = 0; x < side; x++) {
      const value = values ? values[y * side + x] : trial.pixels[row + Math.floor(x / scale)];
      const grey = 255 * (low + value * (high - low) - from) / display.width;
      const at = 4 * (y * side + x);
      picture.data[at] = picture.data[at + 1] = picture.data[at + 2] = grey; // clamped by the array
      picture.data[at + 3] = 255;
    }
  }
  context.putImageData(picture, 0, 0);
  $("display").textContent = `Level ${Math.round(display.centre)} HU · window ${Math.round(display.width)} HU · ` +
    `${fittingZoom()} x · ${display.smooth ? "bicubic" : "pixels"}`;
}

/** Keys' cubic (a = -0.5) at whole factors, edges repeated. */
function bicubic(pixels, size, scale) {
  const weights = [];
  for (let i = 0; i < scale; i++) {
    const at = (i + 0.5) / scale - 0.5;
    const base = Math.floor(at);
    weights.push({ base, k: [-1, 0, 1, 2].map((j) => kernel(at - base - j)) });
  }
  const clamp = (i) => Math.max(0, Math.min(size - 1, i));
  const side = size * scale;
  const wide = new Float32Array(size * side);
  for (let y = 0; y < size; y++) {
    for (let x = 0; x < side; x++) {
      const { base, k } = weights[x % scale];
      const from = Math.floor(x / scale) + base;
      let sum = 0;
      for (let j = 0; j < 4; j++) sum += k[j] * pixels[y * size + clamp(from + j - 1)];
      wide[y * side + x] = sum;
    }
  }
  const out = new Float32Array(side * side);
  for (let y = 0; y < side; y++) {
    const { base, k } = weights[y % scale];
    const from = Math.floor(y / scale) + base;
    for (let j = 0; j < 4; j++) {
      const row = clamp(from + j - 1) * side;
      for (let x = 0; x < side; x++) out[y * side + x] += k[j] * wide[row + x];
    }
  }
  return out;
}

function kernel(t) {
  const x = Math.abs(t);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
}

function adjust(centre, width) {
  const [low, high] = study.design.window_hu;
  display.centre = Math.max(low, Math.min(high, display.centre + centre));
  display.width = Math.max(10, Math.min(4 * (high - low), display.width + width));
  draw();
  logDisplay();
}

let displayTimer = null;
function logDisplay() {
  clearTimeout(displayTimer);
  displayTimer = setTimeout(() => note("display", { ...display, zoom: fittingZoom() }), 500);
}

const tools = {
  note() {
    $("note-box").hidden = !$("note-box").hidden;
    if (!$("note-box").hidden) $("note").focus();
  },
  zoom() {
    const room = Math.floor(Math.min(window.innerWidth - 32, window.innerHeight - 140) / study.design.size);
    const most = Math.max(1, Math.min(MOST_ZOOM, room));
    const shown = fittingZoom();
    display.zoom = shown >= most ? Math.min(2, most) : shown + 1;
    draw();
    logDisplay();
  },
  smooth() {
    display.smooth = !display.smooth;
    draw();
    logDisplay();
  },
  reset() {
    display = startDisplay();
    draw();
    logDisplay();
  },
  pause() {
    if (busy || !clock.runs) return; // the next image must not come up behind the dialog
    clock.pause();
    $("image").style.visibility = "hidden";
    $("pause-dialog").showModal();
    note("pause");
  },
  help() {
    if (busy) return;
    clock?.pause(); // it covers the image
    $("help-dialog").showModal();
    note("help");
  },
};

function onTrialKey(key, event) {
  const choice = trial.choices.find((entry) => entry.key === key);
  if (choice) return select(choice.value);
  const step = (study.design.window_hu[1] - study.design.window_hu[0]) / 40;
  switch (key) {
    case " ":
    case "Enter":
      return confirm();
    case "Backspace":
      return back();
    case "ArrowUp":
      return adjust(-step, 0);
    case "ArrowDown":
      return adjust(step, 0);
    case "ArrowLeft":
      return adjust(0, -2 * step);
    case "ArrowRight":
      return adjust(0, 2 * step);
    case "?":
      return tools.help();
  }
  const tool = { n: "note", z: "zoom", i: "smooth", r: "reset", p: "pause" }[key.toLowerCase()];
  if (tool) return tools[tool]();
  return false;
}

// --- Events ------------------------------------------------------------------------------------------------------------

document.addEventListener("keydown", (event) => {
  clock?.active();
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat && !event.key.startsWith("Arrow")) return;
  if ($("pause-dialog").open) {
    if (event.key === " " || event.key === "Enter" || event.key.toLowerCase() === "p") {
      event.preventDefault();
      $("pause-dialog").close();
    }
    return;
  }
  if ($("help-dialog").open || !keys) return;
  const field = event.target instanceof HTMLElement && event.target.matches("textarea, input");
  if (field) {
    if (event.key === "Escape" && event.target.id === "note") {
      $("note-box").hidden = true;
      mark();
    }
    return;
  }
  const button = event.target instanceof HTMLElement && event.target.matches("button:not([aria-pressed=true]):not(#confirm):not(#part-button)");
  if (button && (event.key === " " || event.key === "Enter")) return; // the focused button's own key
  if (keys(event.key, event) !== false) event.preventDefault();
});

$("confirm").onclick = confirm;
$("back").onclick = back;
$("resume").onclick = () => $("pause-dialog").close();
$("help-close").onclick = () => $("help-dialog").close();
$("pause-dialog").addEventListener("close", () => {
  $("image").style.visibility = "";
  clock?.resume();
  note("resume");
  mark();
});
$("help-dialog").addEventListener("close", () => clock?.resume());
for (const button of document.querySelectorAll("[data-tool]")) button.onclick = () => tools[button.dataset.tool]();

$("note").addEventListener("input", markNote);

let drag = null;
$("image").addEventListener("pointerdown", (event) => {
  if (!event.isPrimary || event.button !== 0) return; // a second finger, another button
  drag = { x: event.clientX, y: event.clientY };
  $("image").setPointerCapture(event.pointerId);
});
$("image").addEventListener("pointermove", (event) => {
  if (!event.isPrimary) return;
  if (!(event.buttons & 1)) drag = null; // it was let go where nobody told us
  if (!drag) return;
  const step = (study.design.window_hu[1] - study.design.window_hu[0]) / 400;
  adjust((event.clientY - drag.y) * step, (event.clientX - drag.x) * step * 2);
  drag = { x: event.clientX, y: event.clientY };
});
for (const kind of ["pointerup", "pointercancel"]) $("image").addEventListener(kind, () => (drag = null));
document.addEventListener("pointerdown", () => clock?.active());

document.addEventListener("visibilitychange", () => {
  if (!trial || $("trial").hidden || $("pause-dialog").open || $("help-dialog").open) return;
  if (document.hidden) {
    clock?.pause();
    note("hidden");
  } else {
    clock?.resume();
    note("shown");
  }
});
window.addEventListener("resize", () => trial && !$("trial").hidden && draw());
window.addEventListener("hashchange", () => location.reload()); // a new link in an old tab
window.addEventListener("pagehide", () => {
  if (!study) return;
  const headers = { ...ourHeaders(), "Content-Type": "application/json" };
  fetch("/api/release", { method: "POST", headers, body: "{}", keepalive: true }).catch(() => {});
});
setInterval(() => study && call("/api/beat", {}).catch(() => {}), BEAT_MS);

start();
