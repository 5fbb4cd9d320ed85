"use strict";
// Conversations: a tree of messages each, of which one path is shown. They are kept in the browser.
//
// chat   {id, title, system, nodes, tip (id of the last node shown), changed, deleted, ratio}
// node   {id, parent, role: "user", text, files} or {id, parent, role: "assistant", replies}
// file   {name, text}
// reply  {model, text, reasoning, finish, problem, busy, tokens, prompt, first, rate, sampling, edited}

const CHAT = "edgeft.chat.";
const CHARACTERS_PER_TOKEN = 3; // until the server has counted a prompt
const TOKENS_PER_MESSAGE = 8; // of a template, around its text

let chat = null; // the one that is shown
let settings = { ...stored("edgeft.settings") };
settings.sampling ??= {};
settings.presets ??= {};

const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) => byte.toString(16).padStart(2, "0")).join("");
const isChat = (value) => Boolean(value && typeof value.id === "string" && Array.isArray(value.nodes));
const nodeOf = (one, id) => one.nodes.find((node) => node.id === id);

/** Parent -> its nodes. */
function childrenOf(one) {
  const found = new Map();
  for (const node of one.nodes) found.get(node.parent)?.push(node) ?? found.set(node.parent, [node]);
  return found;
}

function path(one, id = one.tip) {
  const nodes = new Map(one.nodes.map((node) => [node.id, node]));
  const found = [];
  for (let node = nodes.get(id); node && found.length < one.nodes.length; node = nodes.get(node.parent)) found.push(node);
  return found.reverse();
}

/** The last node of the branch that begins at `node`, the newest at each fork. */
function lastBelow(one, node) {
  const children = childrenOf(one);
  for (let below; (below = children.get(node.id)?.at(-1));) node = below;
  return node;
}

function add(one, node) {
  one.nodes.push(Object.assign(node, { id: newId() }));
  written.add(node.id);
  one.tip = node.id;
  return node;
}

/** Take away a node and all that follows it. */
function cut(one, node) {
  const children = childrenOf(one);
  const gone = new Set([node.id]);
  for (const id of gone) for (const below of children.get(id) ?? []) gone.add(below.id);
  one.nodes = one.nodes.filter(({ id }) => !gone.has(id));
  one.deleted = [...(one.deleted ?? []), ...gone].slice(-500);
  const sibling = one.nodes.findLast((other) => other.parent === node.parent);
  if (gone.has(one.tip)) one.tip = sibling ? lastBelow(one, sibling).id : node.parent;
}

// --- what the browser keeps ------------------------------------------------------------------------

const written = new Set(); // ids of nodes that are of this window
const lastStored = new Map(); // id of a chat -> what this window stored or read
const known = new Map(); // id of a chat -> {id, title, changed}
const note = ({ id, title, changed }) => known.set(id, { id, title: String(title), changed: Number(changed) || 0 });

function readChats() {
  known.clear();
  for (const key of Object.keys(local)) if (key.startsWith(CHAT)) readChat(key.slice(CHAT.length));
}

function readChat(id) {
  const text = local.getItem(CHAT + id);
  const one = stored(CHAT + id);
  if (!isChat(one) || one.id !== id) return null;
  one.nodes = one.nodes.filter((node) => node && (node.role === "user" || node.replies?.length));
  lastStored.set(id, text);
  note(one);
  return one;
}

function keep(one) { // with what other windows have made of it
  if (one.gone) return;
  if (local.getItem(CHAT + one.id) !== lastStored.get(one.id)) merge(one, stored(CHAT + one.id));
  Object.assign(one, { changed: Date.now() });
  lastStored.set(one.id, store(CHAT + one.id, one));
  note(one);
}

function merge(one, other) {
  if (!isChat(other)) return;
  const deleted = new Set([...(one.deleted ?? []), ...(other.deleted ?? [])]);
  const places = new Map(one.nodes.map(({ id }, at) => [id, at]));
  for (const node of other.nodes.filter(Boolean)) {
    const at = places.get(node.id);
    if (at === undefined) one.nodes.push(node);
    else if (!written.has(node.id)) one.nodes[at] = node;
  }
  one.nodes = one.nodes.filter(({ id }) => !deleted.has(id));
  one.deleted = [...deleted].slice(-500);
  if (!nodeOf(one, one.tip)) one.tip = one.nodes.at(-1)?.id ?? null;
}

function forget(id) {
  local.removeItem(CHAT + id);
  lastStored.delete(id);
  known.delete(id);
}

const allChats = () => [...known.values()].sort((a, b) => b.changed - a.changed);

/** Chats whose title or text holds all words of `query`, with the place; all of them without a query. */
function foundChats(query) {
  const wanted = query.toLowerCase().split(/\s+/).filter(Boolean);
  if (!wanted.length) return allChats();
  const found = [];
  for (const summary of allChats()) {
    const one = stored(CHAT + summary.id);
    const texts = (one?.nodes ?? []).flatMap((node) => (node.role === "user" ? [node.text, ...(node.files ?? []).map(({ name }) => name)] : node.replies.map((reply) => reply.text)));
    const text = `${summary.title}\n${texts.join("\n")}`;
    const places = wanted.map((word) => text.toLowerCase().indexOf(word));
    if (places.includes(-1)) continue;
    const at = Math.max(...places);
    const place = at > summary.title.length ? `${at > 20 ? "…" : ""}${text.slice(Math.max(0, at - 20), at + 80)}` : "";
    found.push({ ...summary, place: place.replace(/\s+/g, " ") });
  }
  return found;
}

// --- export and import -----------------------------------------------------------------------------

function exported(one) {
  const model = path(one).findLast((node) => node.replies)?.replies[0].model ?? null;
  return { title: one.title, model, messages: messages(one, one.tip, model), system: one.system, tip: one.tip, branches: one.nodes };
}

function download(value, name) {
  const url = URL.createObjectURL(new Blob([JSON.stringify(value, null, 1)], { type: "application/json" }));
  make("a", { href: url, download: `${name.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 60) || "chat"}.json` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

/** What was exported here, or OpenAI's messages ([{role, content}], also below "messages") -> chats. */
function imported(value) {
  const isMessages = (list) => Array.isArray(list) && list.length && list.every((one) => one && typeof one.role === "string");
  const all = (isMessages(value) || !Array.isArray(value) ? [value] : value).map((one) => (isMessages(one) ? { messages: one } : one));
  const chats = all.map((one) => {
    if (Array.isArray(one?.branches)) return fromBranches(one);
    if (isMessages(one?.messages)) return fromMessages(one);
    throw new TypeError("no conversation");
  });
  if (!chats.length) throw new TypeError("no conversation");
  return chats;
}

function emptyChat(title, system) {
  return { id: newId(), title: String(title || "Imported").slice(0, 100), system: String(system ?? ""), nodes: [], tip: null };
}

function fromBranches(raw) {
  const one = emptyChat(raw.title, raw.system ?? raw.messages?.find(({ role }) => role === "system")?.content);
  const ids = new Map([[null, null]]); // old id -> new one: a node stands below one that came before it
  for (const node of raw.branches) {
    const clean = cleanNode(node);
    if (!clean || ids.has(node.id)) throw new TypeError("a message is broken");
    add(one, Object.assign(clean, { parent: ids.get(node.parent ?? null) ?? null }));
    ids.set(node.id, clean.id);
  }
  one.tip = ids.get(raw.tip) ?? one.tip;
  return one;
}

/** The text of one of OpenAI's messages; an error where it holds more than that. */
function textOf({ role, content, tool_calls: calls }) {
  if (!["system", "developer", "user", "assistant"].includes(role)) throw new TypeError(`a message of the role ${role} cannot be shown here`);
  const pieces = Array.isArray(content) ? content : [{ text: content ?? "" }];
  if (calls?.length || !pieces.every((part) => typeof part?.text === "string")) throw new TypeError("a message holds more than text");
  return pieces.map(({ text }) => text).join("");
}

function fromMessages(raw) {
  raw.messages.forEach(textOf);
  const said = raw.messages.filter(({ role }) => role === "user" || role === "assistant");
  const first = said.find(({ role }) => role === "user");
  const one = emptyChat(raw.title ?? (first && textOf(first).trim().split("\n")[0].slice(0, 60)), raw.messages.filter(({ role }) => role === "system" || role === "developer").map(textOf).join("\n\n"));
  for (const message of said) {
    const text = textOf(message);
    const reply = { model: String(raw.model ?? "imported"), text, ...(typeof message.reasoning_content === "string" && { reasoning: message.reasoning_content }) };
    add(one, { role: message.role, parent: one.tip, ...(message.role === "user" ? { text } : { replies: [reply] }) });
  }
  return one;
}

/** Only what a node may hold; null for what is none. */
function cleanNode(node) {
  const texts = (from, names) => Object.fromEntries(names.filter((name) => typeof from[name] === "string").map((name) => [name, from[name]]));
  const numbers = (from, names) => Object.fromEntries(names.filter((name) => Number.isFinite(from[name])).map((name) => [name, from[name]]));
  if (node?.role === "user" && typeof node.text === "string") {
    const files = (Array.isArray(node.files) ? node.files : []).filter((file) => typeof file?.name === "string" && typeof file.text === "string");
    return { role: "user", text: node.text, ...(files.length && { files: files.map((file) => texts(file, ["name", "text"])) }) };
  }
  if (node?.role !== "assistant" || !Array.isArray(node.replies) || !node.replies.length) return null;
  const replies = node.replies.map((reply) => (typeof reply?.text === "string" && typeof reply.model === "string"
    ? { ...texts(reply, ["model", "text", "reasoning", "finish", "problem", "sampling"]), ...numbers(reply, ["tokens", "prompt", "first", "rate"]), ...(reply.edited === true && { edited: true }) }
    : null));
  return replies.includes(null) ? null : { role: "assistant", replies };
}

// --- what is sent ----------------------------------------------------------------------------------

/** The reply of `model`, else the first: each of two compared models goes on from its own. */
const replyFor = (node, model) => node.replies.find((reply) => reply.model === model) ?? node.replies[0];

/** A reply's thoughts and its answer: apart as the server sends them, or within <think> and </think>. */
function parts({ text, reasoning = "" }) {
  const end = text.indexOf("</think>");
  const begin = /^\s*<think>/.exec(text)?.[0].length;
  const unopened = begin === undefined && (end < 0 || text.lastIndexOf("<think>", end) >= 0); // it only speaks of them
  if (unopened) return { thought: reasoning, said: text, thinking: Boolean(reasoning && !text) };
  const thought = text.slice(begin ?? 0, end < 0 ? undefined : end).trim();
  return { thought: reasoning + thought, said: end < 0 ? "" : text.slice(end + 8).trimStart(), thinking: end < 0 };
}

function contentOf(node, model) {
  if (node.role !== "user") return parts(replyFor(node, model)).said;
  const files = (node.files ?? []).map(({ name, text }) => {
    const fence = "`".repeat(Math.max(3, ...(text.match(/`+/g) ?? []).map(({ length }) => length + 1)));
    return `${name}:\n${fence}\n${text}\n${fence}`;
  });
  return [...files, node.text].filter(Boolean).join("\n\n");
}

const asMessage = (node, model) => ({ role: node.role, content: contentOf(node, model) });

function messages(one, id, model) {
  const said = path(one, id).map((node) => asMessage(node, model));
  return one.system ? [{ role: "system", content: one.system }, ...said] : said;
}

/**
 * The messages of a request whose last node is `id`, and the nodes that it leaves out: questions that were
 * refused, and the oldest turns where all do not fit into `context` tokens with room for an answer. `next`: the
 * text of a message that would follow.
 */
function planned(one, id, model, context, next = null) {
  const all = path(one, id);
  if (next !== null) all.push({ role: "user", text: next });
  const left = new Set();
  for (const [at, node] of all.entries()) {
    const failed = node.role === "assistant" && at < all.length - 1 && !contentOf(node, model) && replyFor(node, model).problem;
    if (failed) left.add(all[at - 1] ?? node).add(node);
  }
  const tokens = (text) => Math.ceil(text.length / (one.ratio ?? CHARACTERS_PER_TOKEN)) + TOKENS_PER_MESSAGE;
  const sent = all.filter((node) => !left.has(node)).map((node) => ({ node, message: asMessage(node, model) }));
  const system = one.system ? [{ role: "system", content: one.system }] : [];
  const answer = Math.min(settings.sampling.max_tokens ?? Infinity, context / 4);
  const count = () => [...system, ...sent.map(({ message }) => message)].reduce((sum, { content }) => sum + tokens(content), 0);
  for (let total = count(); total + answer > context && sent.length > 1;) {
    do { // whole turns, so that a question comes first
      const { node, message } = sent.shift();
      left.add(node);
      total -= tokens(message.content);
    } while (sent.length > 1 && sent[0].node.role !== "user");
  }
  return { messages: [...system, ...sent.map(({ message }) => message)], left, tokens: count() };
}
