"use strict";
// The server: its models, requests to it, and answers that are streamed.

const SAMPLE_TEMPERATURE = 0.8; // of another answer, where the settings have none
const MAX_TRIES = 5; // of a request that turned out to be too long

class Failure extends Error {
  constructor(message, code = "", said = "") {
    super(message);
    Object.assign(this, { code, said });
  }
}

const contexts = new Map(); // model -> tokens that a conversation may have
const contextOf = (model) => contexts.get(model) ?? Infinity;
let continues = true; // until the server says that it does not continue answers

async function request(name, options = {}) {
  const key = session.getItem("edgeft.key");
  const headers = { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
  let answer;
  try {
    answer = await fetch(name, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("The server cannot be reached. Is it still running?");
  }
  if (answer.ok) return answer;
  const { message = `status ${answer.status}`, code } = (await answer.json().catch(() => null))?.error ?? {};
  if (answer.status === 401) {
    $("key-problem").hidden = false;
    if (!$("options").open) openSettings();
    throw new Failure("The server asks for an API key: see Settings.");
  }
  const wait = answer.headers.get("Retry-After");
  if (answer.status === 429 || answer.status === 503) throw new Failure(`The server is busy${wait ? `; try again in ${wait} s` : ""}: ${message}`);
  throw new Failure(answer.status < 500 ? `The server refused: ${message}` : `The server failed: ${message}`, code, message);
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (let rest = "", done = false; !done;) {
      const part = await reader.read();
      done = part.done;
      const lines = (rest + (part.value ?? "")).split(/\r?\n/);
      rest = done ? "" : lines.pop();
      for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
    }
  } finally {
    reader.cancel().catch(() => {}); // so that the server stops, too
  }
}

/** The answer to what `plan()` gives. Where the server counts too many tokens, its count makes the next plan. */
async function ask(one, reply, plan, more, signal) {
  for (let tries = 1; ; tries++) {
    const { messages: said, left } = plan();
    const characters = said.reduce((sum, { content }) => sum + content.length, 0);
    const body = { model: reply.model, messages: said, stream: true, stream_options: { include_usage: true }, ...settings.sampling, ...more };
    try {
      return { characters, answer: await request("v1/chat/completions", { method: "POST", body: JSON.stringify(body), signal }) };
    } catch (error) {
      if (error.code !== "context_length_exceeded" || tries === MAX_TRIES || said.length < 2) throw error;
      const tokens = Number(/\d+/.exec(error.said)?.[0]);
      const ratio = (one.ratio ?? CHARACTERS_PER_TOKEN) * 0.8;
      one.ratio = tokens > 0 ? Math.min(ratio, characters / tokens) : ratio;
      if (plan().left.size === left.size && plan().messages.length < 2) throw error;
    }
  }
}

/** Stream one reply into `reply`; `painted` is called as it grows. `more`: fields of the request. */
async function stream(one, reply, plan, more, signal, painted) {
  const started = performance.now();
  let first = 0;
  let last = 0;
  let pieces = 0;
  let complete = false;
  let total = null;
  const before = reply.tokens ?? 0; // of an answer that is continued
  delete reply.problem;
  delete reply.finish;
  try {
    const { answer, characters } = await ask(one, reply, plan, more, signal);
    for await (const data of events(answer.body)) {
      if (data === "[DONE]") {
        complete = true;
        break;
      }
      const event = JSON.parse(data);
      if (event.error) throw new Failure(`The server failed: ${event.error.message}`);
      const choice = event.choices?.[0];
      const text = choice?.delta?.content ?? "";
      const thought = choice?.delta?.reasoning_content ?? choice?.delta?.reasoning ?? "";
      if (text || thought) {
        last = performance.now();
        first ||= last;
        pieces++;
        reply.text += text;
        if (thought) reply.reasoning = (reply.reasoning ?? "") + thought;
        painted();
      }
      if (choice?.finish_reason) reply.finish = choice.finish_reason;
      if (!event.usage) continue;
      total = event.usage.completion_tokens;
      reply.prompt = event.usage.prompt_tokens - (more.continue_final_message ? before : 0);
      if (event.usage.prompt_tokens > 50) one.ratio = Math.min(6, Math.max(0.5, characters / event.usage.prompt_tokens));
    }
    if (!complete && !reply.finish) throw new Failure("The connection broke off.");
  } catch (error) {
    if (signal.aborted || error.name === "AbortError") reply.finish = "stopped";
    else reply.problem = error instanceof Failure ? error.message : "The connection broke off, or the answer was not understood.";
    if (more.continue_final_message && error.code === "unsupported") {
      continues = false;
      reply.problem = "This server does not continue answers.";
    }
  }
  total ??= pieces;
  reply.tokens = before + total;
  if (first && !before) reply.first = first - started;
  if (last > first && total > 1) reply.rate = ((total - 1) / (last - first)) * 1000;
}

async function health() {
  try {
    const { memory, memory_bytes: bytes = memory } = await (await request("health")).json();
    $("memory").textContent = Number.isFinite(bytes) ? `Memory ${(bytes / 1e6).toFixed(0)} MB` : "";
  } catch { /* shown where it matters: at the next answer */ }
}
