"use strict";
// What is seen of a conversation: only what has changed is drawn again.

const drawn = new Map(); // id of a node -> {article, node, place} of the conversation that is shown
const seen = new Map(); // reply -> its elements
const due = new Set(); // replies that are drawn soon
let painting = 0; // milliseconds that the last drawing took
let later = []; // replies far from the end, which are drawn when there is time
const DRAWN_AT_ONCE = 20; // messages at the end of a conversation that is opened

const isRunning = (one = chat) => running.has(one.id);

function nearEnd() {
  const log = $("log");
  return log.scrollHeight - log.scrollTop - log.clientHeight < 80;
}

function toEnd() {
  const log = $("log");
  log.scrollTop = log.scrollHeight;
  $("end").hidden = true;
}

function show(follow = true) {
  const log = $("log");
  const atEnd = follow || nearEnd();
  const children = childrenOf(chat);
  const nodes = path(chat);
  const articles = nodes.map((node, at) => articleOf(node, children.get(node.parent), nodes.length - at > DRAWN_AT_ONCE));
  const onPath = new Set(nodes.map(({ id }) => id));
  for (const [id, { node }] of drawn) {
    if (onPath.has(id)) continue;
    drawn.delete(id);
    for (const reply of node.replies ?? []) seen.delete(reply);
  }
  for (const article of articles) article.classList.toggle("last", article === articles.at(-1));
  const empty = $("empty") ?? make("div", { id: "empty" }, make("p", { textContent: "Everything you write stays between this browser and this server." }));
  const plan = nextPlan();
  place(log, [...systemSign(), ...(articles.length ? withLine(nodes, articles, plan.left) : [empty])]);
  document.body.classList.toggle("busy", isRunning());
  $("send").hidden = isRunning();
  $("stop").hidden = !isRunning();
  if (atEnd) toEnd();
  if (later.length) setTimeout(paintLater);
  showMeter(plan);
  showChats();
}

/** Make `wanted` the children of `parent`; those that are in their place are not touched. */
function place(parent, wanted) {
  const kept = new Set(wanted);
  for (const child of [...parent.children]) if (!kept.has(child)) child.remove();
  let at = parent.firstChild;
  for (const child of wanted) {
    if (child === at) at = at.nextSibling;
    else parent.insertBefore(child, at);
  }
}

function systemSign() {
  if (!chat.system) return [];
  const sign = $("system-sign") ?? make("details", { id: "system-sign" }, make("summary", { textContent: "System prompt" }), make("div"));
  sign.lastChild.textContent = chat.system;
  return [sign];
}

/** With a line above the first message that is still sent, where older ones no longer fit. */
function withLine(nodes, articles, left) {
  articles.forEach((article, at) => article.classList.toggle("left-out", left.has(nodes[at])));
  const first = nodes.findIndex((node) => !left.has(node));
  if (!left.size || first === 0) return articles;
  const line = $("line") ?? make("p", { id: "line" });
  line.textContent = "What stands above is no longer sent: the context is full.";
  return first < 0 ? [...articles, line] : articles.toSpliced(first, 0, line);
}

/** What the next message would be sent with. */
const nextPlan = () => planned(chat, chat.tip, $("model").value, contextOf($("model").value), $("text").value);

function showMeter({ left, tokens: expected }) {
  const context = contextOf($("model").value);
  $("context").hidden = !Number.isFinite(context);
  if ($("context").hidden) return;
  const last = path(chat).at(-1);
  const reply = last?.replies && replyFor(last, $("model").value);
  const counted = !$("text").value && !left.size && (last ? reply?.prompt && !reply.busy : !chat.system);
  const tokens = !counted ? expected : reply ? reply.prompt + reply.tokens : 0;
  const notSent = left.size ? ` · ${left.size} older messages are not sent` : "";
  Object.assign($("meter"), { max: context, high: context * 0.75, value: tokens });
  $("tokens").textContent = `${counted ? "" : "about "}${tokens.toLocaleString("en")} of ${context.toLocaleString("en")} tokens${notSent}${tokens > context ? " · too long" : ""}`;
}

// --- messages --------------------------------------------------------------------------------------

function articleOf(node, siblings, isFar) {
  const at = siblings.indexOf(node);
  const position = `${at}/${siblings.length}`;
  const kept = drawn.get(node.id);
  if (kept?.node === node && kept.position === position) return kept.article;
  const article = node.role === "user" ? question(node) : answer(node);
  if (isFar) later.push(...(node.replies ?? []));
  else for (const reply of node.replies ?? []) paint(reply);
  article.dataset.id = node.id;
  article.querySelector(".actions:last-child").prepend(...branches(siblings, at));
  drawn.set(node.id, { article, node, position });
  return article;
}

const article = (className, name, ...children) => make("article", { className }, make("h2", { className: "hidden-text", textContent: name }), ...children);
const idle = (text, act, more = "") => button(text, act, `plain small idle ${more}`); // not while an answer is written

function question(node) {
  const copied = button("Copy", () => copy(node.text, copied));
  const files = (node.files ?? []).map(({ name, text }) => make("details", { className: "file" },
    make("summary", { textContent: `${name} · ${size(text)}` }), make("pre", { tabIndex: 0, textContent: text.slice(0, LONGEST) })));
  const found = article("user", "You", ...files);
  if (node.text) found.append(make("div", { className: "said", textContent: node.text }));
  found.append(make("div", { className: "actions" },
    idle("Answer", () => respond(chat, node), "only-last"), idle("Edit", () => editQuestion(found, node)), copied, idle("Delete", () => removeNode(node))));
  return found;
}

function answer(node) {
  const two = node.replies.length > 1;
  const again = idle("Regenerate", () => respond(chat, nodeOf(chat, node.parent), sampled()));
  again.title = `Another answer, with another seed, at the temperature of the settings or ${SAMPLE_TEMPERATURE}`;
  const actions = [again];
  if (!two) actions.push(idle("Continue", () => goOn(node), "only-last continue"));
  actions.push(idle("Delete", () => removeNode(node)));
  const columns = node.replies.map((reply, at) => column(node, reply, at, two ? [] : actions));
  const found = article("assistant", "Answer", make("div", { className: "columns" }, ...columns));
  found.classList.toggle("pair", two);
  found.classList.toggle("cut", node.replies.some(isCut));
  if (two) found.append(make("div", { className: "actions" }, ...actions));
  return found;
}

function column(node, reply, at, actions) {
  const copied = button("Copy", () => copy(parts(reply).said, copied));
  const elements = {
    thought: make("details", { className: "thought" }, make("summary"), make("div")),
    said: make("div", { className: "said" }), problem: make("p", { className: "problem" }), facts: make("span", { className: "facts" }), copied,
  };
  const change = idle("Edit", () => editAnswer(elements.said, node, at));
  seen.set(reply, elements);
  return make("div", {}, make("p", { className: "model", textContent: reply.model }), elements.thought, elements.said, elements.problem,
    make("div", { className: "actions" }, elements.facts, copied, change, ...actions));
}

function paint(reply) {
  const elements = seen.get(reply);
  if (!elements) return;
  const atEnd = nearEnd();
  const { thought, said, thinking } = parts(reply);
  const fold = elements.thought;
  fold.hidden = !thought;
  if (thought) {
    fold.firstChild.textContent = thinking && reply.busy ? "Thinking …" : "Thoughts";
    fold.lastChild.textContent = thought;
  }
  elements.said.replaceChildren(markdown(said.split("\n")));
  elements.said.classList.toggle("waiting", Boolean(reply.busy));
  elements.problem.textContent = reply.problem ?? "";
  elements.problem.hidden = !reply.problem;
  elements.copied.hidden = Boolean(reply.busy) || !said;
  elements.facts.textContent = factsOf(reply).join(" · ");
  elements.facts.closest("article")?.classList.toggle("cut", isCut(reply));
  if (atEnd) toEnd();
}

/** A little at a time, from the end upwards; what is seen stays where it is. */
function paintLater() {
  const log = $("log");
  const started = performance.now();
  const below = log.scrollHeight - log.scrollTop;
  while (later.length && performance.now() - started < 15) paint(later.pop());
  log.scrollTop = log.scrollHeight - below;
  if (later.length) setTimeout(paintLater);
}

const isCut = ({ finish, text }) => (finish === "length" || finish === "stopped") && Boolean(text);

function factsOf(reply) {
  const facts = [];
  if (reply.edited) facts.push("edited");
  if (reply.sampling) facts.push(reply.sampling);
  if (reply.finish === "length") facts.push("cut off at max_tokens");
  if (reply.finish === "stopped") facts.push("stopped");
  if (reply.rate) facts.push(`${reply.rate.toFixed(1)} tokens/s`);
  if (reply.first) facts.push(`first token after ${reply.first < 1000 ? `${reply.first.toFixed(0)} ms` : `${(reply.first / 1000).toFixed(1)} s`}`);
  if (reply.tokens) facts.push(`${reply.tokens} tokens`);
  return facts;
}

/** Long answers are drawn less often, so that drawing takes a fifth of the time at most. */
function paintSoon(reply) {
  if (due.has(reply)) return;
  due.add(reply);
  setTimeout(() => {
    due.delete(reply);
    const started = performance.now();
    if (reply.busy) paint(reply);
    painting = performance.now() - started;
  }, Math.max(30, painting * 4));
}

function branches(siblings, at) {
  if (siblings.length < 2) return [];
  const step = (text, label, to) => Object.assign(idle(text, () => {
    chat.tip = lastBelow(chat, siblings[to]).id;
    keep(chat);
    show(false);
    drawn.get(siblings[to].id)?.article.querySelector(".actions:last-child button:enabled")?.focus();
  }), { ariaLabel: label, disabled: to < 0 || to >= siblings.length });
  return [step("‹", "Previous branch", at - 1), make("span", { textContent: `${at + 1}/${siblings.length}` }), step("›", "Next branch", at + 1)];
}

/** A text area in the place of a message; `done` gets the text. */
function edited(place, label, text, says, done) {
  const { id } = place.closest("article").dataset;
  const area = make("textarea", { value: text, rows: Math.min(16, text.split("\n").length + 1), ariaLabel: label });
  const cancel = () => (drawn.delete(id), show(false));
  const save = () => {
    if (!area.value.trim() || isRunning()) return;
    drawn.delete(id);
    done(area.value);
  };
  area.onkeydown = (event) => {
    if (event.key === "Escape") cancel();
    else if (says === "Send" && sends(event)) save();
    else return;
    event.preventDefault();
    event.stopPropagation();
  };
  place.replaceChildren(make("div", { className: "edit" }, area,
    make("div", { className: "actions" }, button(says, save, "main"), button("Cancel", cancel, ""))));
  area.focus();
}

function editQuestion(place, node) {
  if (isRunning()) return;
  edited(place, "Edit the message", node.text, "Send", (text) => {
    const files = node.files ? { files: node.files } : {};
    respond(chat, add(chat, { role: "user", parent: node.parent, text, ...files }));
  });
}

/** An answer in other words is a branch, so that the model's own is kept. */
function editAnswer(place, node, at) {
  if (isRunning()) return;
  edited(place, "Edit the answer", node.replies[at].text, "Save", (text) => {
    const replies = node.replies.map((reply, i) => (i === at ? { model: reply.model, text, edited: true } : { ...reply }));
    add(chat, { role: "assistant", parent: node.parent, replies });
    keep(chat);
    show(false);
  });
}

function removeNode(node) {
  if (isRunning() || !confirm(chat.nodes.some(({ parent }) => parent === node.id) ? "Delete this message and all that follows it?" : "Delete this message?")) return;
  cut(chat, node);
  keep(chat);
  show(false);
}

// --- the list of conversations ---------------------------------------------------------------------

function showChats() {
  const query = $("search").value;
  const found = foundChats(query);
  $("chats").replaceChildren(...found.map(chatRow));
  if (query && !found.length) $("chats").append(make("li", { className: "none", textContent: "Nothing was found." }));
  $("export").disabled = !known.size;
}

function chatRow({ id, title, place = "" }) {
  const current = id === chat.id;
  const open = button(title, () => openChat(id), "open");
  if (running.has(id)) open.append(named(make("span", { className: "writing" }), "an answer is being written"));
  if (place) open.append(make("small", { textContent: place }));
  const row = make("li", {}, open);
  if (!current) return row;
  open.setAttribute("aria-current", "true");
  const act = (does, label, text) => named(button(text, does, "small"), `${label} this conversation`);
  row.append(act(() => rename(row), "Rename", "✎"), act(() => download(exported(chat), chat.title), "Export", "⤓"), act(remove, "Delete", "✕"));
  return row;
}

function rename(row) {
  const input = make("input", { value: chat.title, ariaLabel: "Title", maxLength: 100 });
  const done = (save) => {
    if (save && input.value.trim()) keep(Object.assign(chat, { title: input.value.trim() }));
    showChats();
  };
  input.onkeydown = (event) => ["Enter", "Escape"].includes(event.key) && (event.stopPropagation(), (input.onblur = null), done(event.key === "Enter"));
  input.onblur = () => done(true);
  row.replaceChildren(input);
  input.select();
}
