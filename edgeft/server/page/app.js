"use strict";
// What the user does: writing, attaching, settings, keys; and the start of the page.

const SAMPLING = [ // name, lowest, highest, step
  ["temperature", 0, 2, 0.05], ["top_p", 0, 1, 0.01], ["top_k", 0, 1000, 1], ["min_p", 0, 1, 0.01],
  ["max_tokens", 1, 1000000, 1], ["seed", 0, 4294967295, 1],
];
const MAX_FILES_BYTES = 800_000; // of all files of a message; the server takes requests of 1 MB
const MAX_IMPORT_BYTES = 50_000_000;

const running = new Map(); // id of a chat whose answer is being written -> {one: the chat, controller}
let attached = []; // files that go with the next message

const size = (text) => (text.length < 1000 ? `${text.length} characters` : `${(text.length / 1000).toFixed(1)} thousand characters`);
const comparing = () => $("compare").checked && !$("comparing").hidden;
const touch = () => matchMedia("(pointer: coarse)").matches;
const sends = (event) => event.key === "Enter" && !event.shiftKey && !event.isComposing && !touch();

// --- answers ---------------------------------------------------------------------------------------

/** The fields that make another answer: the greedy one would be the same again. */
function sampled() {
  const [seed] = crypto.getRandomValues(new Uint32Array(1));
  return { temperature: settings.sampling.temperature || SAMPLE_TEMPERATURE, seed };
}

async function respond(one, parent, more = {}) {
  if (running.has(one.id)) return;
  const chosen = comparing() ? [$("model").value, $("other").value] : [$("model").value];
  const sampling = more.seed === undefined ? {} : { sampling: `temperature ${more.temperature}, seed ${more.seed}` };
  const replies = chosen.map((model) => ({ model, text: "", ...sampling }));
  add(one, { role: "assistant", parent: parent.id, replies });
  await write(one, replies, parent.id, more);
}

/** Let the model write on at an answer that was cut off. */
async function goOn(node) {
  if (isRunning()) return;
  await write(chat, node.replies, node.id, { continue_final_message: true, add_generation_prompt: false });
}

async function write(one, replies, id, more) {
  const controller = new AbortController();
  const { signal } = controller;
  running.set(one.id, { one, controller });
  for (const reply of replies) reply.busy = true;
  keep(one);
  show();
  tell("Answering.");
  const answerOf = async (reply) => {
    const plan = () => planned(one, id, reply.model, contextOf(reply.model));
    if (signal.aborted) reply.finish = "stopped";
    else await stream(one, reply, plan, more, signal, () => paintSoon(reply));
    delete reply.busy;
    keep(one);
    paint(reply);
  };
  try {
    if (settings.order === "once") await Promise.all(replies.map(answerOf));
    else for (const reply of replies) await answerOf(reply);
  } finally {
    running.delete(one.id);
    document.body.classList.toggle("no-continue", !continues);
    if (one.id === chat.id) show(false);
    else showChats();
    tell(replies.map((reply) => `${replies.length > 1 ? reply.model : "Answer"}: ${parts(reply).said.slice(0, 4000)} ${reply.problem ?? ""}`).join("\n"));
    health();
  }
}

function send(text) {
  if (isRunning() || !(text.trim() || attached.length)) return;
  if (!$("model").value) return warn("There is no model to ask: the server gave no list of any.");
  warn("");
  if (!chat.nodes.length) chat.title = (text.trim().split("\n")[0] || attached[0].name).slice(0, 60);
  const files = attached.length ? { files: attached } : {};
  $("text").value = "";
  attached = [];
  showAttached();
  respond(chat, add(chat, { role: "user", parent: chat.tip, text, ...files }));
}

// --- conversations ---------------------------------------------------------------------------------

function setChat(one) {
  chat = one;
  drawn.clear();
  seen.clear();
  later = [];
  warn("");
  show();
}

function startChat() {
  setChat({ id: newId(), title: "New chat", system: settings.system ?? "", nodes: [], tip: null });
  $("text").focus();
}

/** A kept conversation; an answer in it that nobody writes any more was stopped. */
function loaded(id) {
  const one = running.get(id)?.one ?? readChat(id);
  if (!one || running.has(id)) return one;
  for (const reply of one.nodes.flatMap((node) => node.replies ?? [])) {
    if (reply.busy && !reply.problem) reply.finish ??= "stopped";
    delete reply.busy;
  }
  return one;
}

function openChat(id) {
  const one = loaded(id);
  if (!one) return showChats();
  side(false);
  setChat(one);
}

function remove() {
  if (!confirm(`Delete "${chat.title}"?`)) return;
  running.get(chat.id)?.controller.abort();
  running.delete(chat.id);
  chat.gone = true; // whatever still comes of its answer
  forget(chat.id);
  const [next] = allChats();
  if (next) setChat(loaded(next.id));
  else startChat();
}

async function importFiles(files) {
  const problems = [];
  let last = null;
  for (const file of files) {
    try {
      if (file.size > MAX_IMPORT_BYTES) throw new TypeError("it is too large");
      for (const one of imported(JSON.parse(await file.text()))) {
        keep(one);
        last = one;
      }
    } catch (error) {
      problems.push(`${file.name} was not imported: ${error instanceof SyntaxError ? "it is no JSON" : error.message}.`);
    }
  }
  if (last) openChat(last.id);
  warn(problems.join(" "));
}

async function attach(files) {
  const problems = [];
  for (const file of files) {
    const bytes = attached.reduce((sum, { text }) => sum + text.length, file.size);
    try {
      if (bytes > MAX_FILES_BYTES) throw new TypeError("the files of a message have 800 kB at most");
      const text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
      if (text.includes("\0")) throw new TypeError("it is no text");
      attached.push({ name: file.name.slice(0, 200), text });
    } catch (error) {
      problems.push(`${file.name} was not attached: ${error.message.startsWith("the ") ? error.message : "it is no text in UTF-8"}.`);
    }
  }
  warn(problems.join(" "));
  showAttached();
  $("text").focus();
}

function showAttached() {
  $("files").hidden = !attached.length;
  $("files").replaceChildren(...attached.map((file) => make("li", {}, `${file.name} · ${size(file.text)}`,
    named(button("✕", () => {
      attached = attached.filter((other) => other !== file);
      showAttached();
    }), `Remove ${file.name}`))));
}

// --- settings --------------------------------------------------------------------------------------

function side(open) {
  document.body.classList.toggle("side", open);
  $("menu").setAttribute("aria-expanded", String(open));
  $("app").inert = open;
  if (open) $("new").focus();
  else if (!touch()) $("text").focus();
}

function choose() {
  Object.assign(settings, { model: $("model").value, other: $("other").value, compare: $("compare").checked });
  $("other").hidden = !comparing();
  store("edgeft.settings", settings);
  show(false);
}

function openSettings() {
  $("key").value = session.getItem("edgeft.key") ?? "";
  $("system").value = chat?.system ?? "";
  showPresets();
  for (const [name] of SAMPLING) $(name).value = settings.sampling[name] ?? "";
  $("order").value = settings.order ?? "turn";
  $("theme").value = settings.theme ?? "";
  $("options").showModal();
}

function closeSettings() {
  const key = $("key").value.trim();
  const changed = key !== (session.getItem("edgeft.key") ?? "");
  session.setItem("edgeft.key", key);
  chat.system = settings.system = $("system").value.trim();
  if (chat.nodes.length) keep(chat);
  const given = SAMPLING.filter(([name]) => $(name).value !== "" && $(name).validity.valid);
  settings.sampling = Object.fromEntries(given.map(([name]) => [name, $(name).valueAsNumber]));
  Object.assign(settings, { order: $("order").value, theme: $("theme").value });
  document.documentElement.dataset.theme = settings.theme;
  store("edgeft.settings", settings);
  if (changed || !$("model").options.length) start();
  else show(false);
}

/** The presets of the system prompt, and which of them stands there. */
function showPresets() {
  const names = Object.keys(settings.presets).sort();
  const current = names.find((name) => settings.presets[name] === $("system").value.trim()) ?? "";
  $("preset").replaceChildren(make("option", { value: "", textContent: names.length ? "a preset …" : "no presets yet" }), ...names.map((name) => make("option", { value: name, textContent: name })));
  $("preset").value = current;
  $("preset").disabled = !names.length;
  $("drop-preset").disabled = !current;
  $("save-preset").disabled = !$("system").value.trim();
}

function savePreset() {
  const name = prompt("Name of this preset", $("preset").value || $("system").value.trim().slice(0, 30))?.trim().slice(0, 60);
  if (!name) return;
  settings.presets = { ...settings.presets, [name]: $("system").value.trim() };
  store("edgeft.settings", settings);
  showPresets();
}

function dropPreset() {
  const { [$("preset").value]: _, ...others } = settings.presets;
  settings.presets = others;
  store("edgeft.settings", settings);
  showPresets();
}

async function loadModels() {
  try {
    const { data } = await (await request("v1/models")).json();
    contexts.clear();
    for (const { id, max_model_len: tokens } of data) if (tokens > 0) contexts.set(id, tokens);
    const options = () => data.map(({ id }) => make("option", { value: id, textContent: id }));
    $("model").replaceChildren(...options());
    $("other").replaceChildren(...options());
    const has = (id) => data.some((model) => model.id === id);
    if (has(settings.model)) $("model").value = settings.model;
    $("other").value = has(settings.other) ? settings.other : (data.find((model) => model.id !== $("model").value) ?? data[0])?.id;
    $("comparing").hidden = data.length < 2;
    $("compare").checked = data.length > 1 && Boolean(settings.compare);
    $("key-problem").hidden = true;
    choose();
  } catch (error) {
    const told = error instanceof Failure ? error.message : "The server's list of models was not understood.";
    if ($("empty")) $("empty").append(make("p", { className: "problem", textContent: told }), button("Try again", start, ""));
    else warn(`${told} Reload this page to try again.`);
  }
}

// --- events ----------------------------------------------------------------------------------------

$("sampling").append(...SAMPLING.map(([id, min, max, step]) => make("label", { className: "field" },
  make("span", { textContent: id }), make("input", { id, type: "number", min, max, step, placeholder: "default" }))));
$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  send($("text").value);
});
$("text").addEventListener("keydown", (event) => {
  if (sends(event)) {
    event.preventDefault();
    $("form").requestSubmit();
  } else if (event.key === "ArrowUp" && !event.target.value) {
    const last = path(chat).findLast((node) => node.role === "user");
    if (last && !isRunning()) event.preventDefault(), editQuestion(drawn.get(last.id).article, last);
  }
});
$("text").addEventListener("input", () => showMeter(nextPlan()));
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey && event.key === "/") $("about").open ? $("about").close() : $("about").showModal();
  else if (event.key === "Escape" && !document.querySelector("dialog[open]")) document.body.classList.contains("side") ? side(false) : running.get(chat.id)?.controller.abort();
  else return;
  event.preventDefault();
});
$("stop").addEventListener("click", () => (running.get(chat.id)?.controller.abort(), $("text").focus()));
$("new").addEventListener("click", () => (side(false), startChat()));
$("search").addEventListener("input", showChats);
$("export").addEventListener("click", () => download([...known.keys()].map(loaded).filter(Boolean).map(exported), "chats"));
for (const [name, act] of [["import", importFiles], ["attach", attach]]) {
  $(name).addEventListener("click", () => $(`${name}-file`).click());
  $(`${name}-file`).addEventListener("change", async ({ target }) => {
    await act([...target.files]);
    target.value = ""; // so that the same file can be chosen again
  });
}
$("app").addEventListener("dragover", (event) => event.dataTransfer.types.includes("Files") && event.preventDefault());
$("app").addEventListener("drop", (event) => {
  if (!event.dataTransfer.files.length) return;
  event.preventDefault();
  attach([...event.dataTransfer.files]);
});
$("log").addEventListener("scroll", () => ($("end").hidden = nearEnd()), { passive: true });
$("end").addEventListener("click", toEnd);
$("menu").addEventListener("click", () => side(true));
$("shade").addEventListener("click", () => side(false));
$("settings").addEventListener("click", openSettings);
$("options").addEventListener("close", closeSettings);
$("preset").addEventListener("change", () => {
  if ($("preset").value) $("system").value = settings.presets[$("preset").value];
  showPresets();
});
$("system").addEventListener("input", showPresets);
$("save-preset").addEventListener("click", savePreset);
$("drop-preset").addEventListener("click", dropPreset);
$("help").addEventListener("click", () => $("about").showModal());
for (const id of ["model", "other", "compare"]) $(id).addEventListener("change", choose);
addEventListener("pagehide", () => {
  for (const { one, controller } of running.values()) controller.abort(), keep(one);
});
addEventListener("storage", ({ key, newValue }) => { // of another window
  if (!key?.startsWith(CHAT)) return;
  const id = key.slice(CHAT.length);
  if (running.has(id)) return;
  const one = newValue === null ? (forget(id), null) : loaded(id);
  if (id !== chat.id || $("log").querySelector("textarea")) return showChats();
  if (!one) return startChat(); // deleted there
  chat = one;
  show(false);
});

function start() {
  show();
  loadModels();
  health();
}

document.documentElement.dataset.theme = settings.theme ?? "";
readChats();
const [latest] = allChats();
if (latest) openChat(latest.id);
else startChat();
start();
