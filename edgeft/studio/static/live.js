// Server-sent events: the queue in the header, and on a job's page its progress, losses, notes and log.

import { $, all, bytes, element, seconds, text } from "./dom.js";
import { drawCurves } from "./plot.js";

const LINK = /http:\/\/(127\.0\.0\.1|localhost|\[::1\]):\d+[\w/.-]*/;

let stream, offset = 0, states = null;

export function connect() {
  // A browser has few connections to a server: a tab that nobody sees gives its own back.
  document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
  addEventListener("pagehide", close);
  if (!document.hidden) open();
}

function close() {
  stream?.close();
  stream = undefined;
}

function open() {
  if (stream) return;
  const job = $("job");
  const live = job && "live" in job.dataset;
  const finished = job && !live;
  const query = job ? `?job=${job.dataset.id}&offset=${offset}` : "";
  stream = new EventSource(`/events${query}`);
  stream.addEventListener("jobs", (event) => showJobs(JSON.parse(event.data)));
  if (job) stream.addEventListener("lines", (event) => {
    offset = Number(event.lastEventId); // where the browser goes on by itself after an error, too
    addLines(JSON.parse(event.data));
  });
  if (job) stream.addEventListener("job", (event) => showJob(job, JSON.parse(event.data), finished));
  stream.onerror = () => document.body.classList.add("offline");
  stream.onopen = () => document.body.classList.remove("offline");
}

function showJobs({ text: line, jobs }) {
  $("queue-text").textContent = line;
  $("queue").classList.toggle("busy", jobs.some((job) => job.state === "running"));
  for (const job of jobs) {
    const bar = document.querySelector(`li[data-job="${job.id}"] progress`);
    if (bar && job.bar) [bar.value, bar.max] = job.bar;
  }
  const served = jobs.find((job) => String(job.id) === $("job")?.dataset.id)?.url;
  if (served && !document.querySelector(`.buttons a[href="${served}"]`)) return location.reload(); // its button
  const now = JSON.stringify(jobs.map(({ id, state, bar, url }) => [id, state, Boolean(bar), url]));
  if (now !== states) refresh(); // the first time, too: a job may have changed since the page was written
  states = now;
}

let refreshing = false, again = false;

// One at a time: an older answer that comes late must not replace a newer one.
export async function refresh() {
  again = true;
  if (refreshing) return;
  refreshing = true;
  while (again) {
    again = false;
    await fetchParts();
  }
  refreshing = false;
}

// Parts that show jobs and their files are fetched again; what a person fills in is not touched.
async function fetchParts() {
  if (!document.querySelector("[data-refresh]")) return;
  const response = await fetch(location.href).catch(() => null);
  if (!response?.ok) {
    states = null; // the next event tries again
    return;
  }
  const fresh = new DOMParser().parseFromString(await response.text(), "text/html");
  for (const part of all("[data-refresh]")) {
    const next = fresh.querySelector(`[data-refresh="${part.dataset.refresh}"]`);
    if (!next) part.remove();
    else if (next.outerHTML !== part.outerHTML) replace(part, next);
  }
}

// The keyboard's place is kept.
function replace(part, next) {
  const focused = part.contains(document.activeElement) ? document.activeElement : null;
  part.replaceWith(next);
  const name = focused && ["id", "data-step", "data-post", "href"].find((one) => focused.hasAttribute(one));
  if (name) next.querySelector(`[${name}="${CSS.escape(focused.getAttribute(name))}"]`)?.focus();
}

const curves = { loss: [], validation: [], accuracy: [] };
const bars = new Map();

function addLines(lines) {
  for (const line of lines) {
    if (line.event === "note") addNote(line.text);
    if (line.event !== "progress" || !line.total) continue;
    bars.delete(line.title);
    bars.set(line.title, line);
    for (const [name, value] of Object.entries(line.values ?? {})) {
      if (value !== null) (curves[name] ??= []).push([line.done, value]);
    }
  }
  draw();
}

function addNote(note) {
  const list = $("notes");
  if ([...list.children].some((item) => item.textContent === note)) return;
  const item = element("li"), link = note.match(LINK);
  if (link) {
    const [before, after] = [note.slice(0, link.index), note.slice(link.index + link[0].length)];
    item.append(before, element("a", { href: link[0], target: "_blank", rel: "noopener" }, link[0]), after);
  } else item.textContent = note;
  list.append(item);
}

function draw() {
  // Of a job that has ended only the curves are still of interest.
  if (!bars.size || (!("live" in $("job").dataset) && !curves.loss.length)) return;
  $("live").hidden = false;
  $("bars").replaceChildren(...[...bars.values()].slice(-4).map((bar) => {
    const progress = element("progress", { max: bar.total || 1, value: bar.done, "aria-label": bar.title });
    return element("div", { class: "bar" }, element("span", {}, bar.title), progress, element("span", { class: "count" }, `${bar.done} / ${bar.total}`));
  }));
  const line = (name, key = name) => ({ name: text(key), look: name, points: curves[name] });
  const losses = [line("loss"), line("validation")].filter(({ points }) => points.length);
  show("plot-loss", losses);
  show("plot-accuracy", curves.accuracy.length ? [line("accuracy")] : []);
  figures();
}

function show(id, lines) {
  const plot = $(id);
  plot.closest("figure").hidden = !lines.some(({ points }) => points.length > 1);
  drawCurves(plot, lines, true);
}

let memory = 0;

function figures() {
  const bar = [...bars.values()].at(-1);
  const job = $("job");
  if (!bar || document.querySelector(".result .figures")) return;
  const last = (name) => curves[name]?.at(-1)?.[1];
  const ended = !("live" in job.dataset);
  const facts = [
    [text("step"), bars.size ? `${bar.done} / ${bar.total}` : ""],
    [text("loss"), last("loss")?.toFixed(3)],
    [text("validation"), last("validation")?.toFixed(3)],
    [text("accuracy"), last("accuracy") === undefined ? "" : `${(100 * last("accuracy")).toFixed(1)} %`],
    [text("rate"), bar.tokens && bar.elapsed_s ? Math.round(bar.tokens / bar.elapsed_s) : ""],
    [text("elapsed"), seconds(bar.elapsed_s)],
    [text("left"), ended || !bar.left_s ? "" : seconds(bar.left_s)],
    [text("memory"), memory && !ended ? bytes(memory) : ""],
  ];
  $("figures").replaceChildren(...facts.filter(([, value]) => value || value === 0).map(([name, value]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, String(value)))));
}

function showJob(job, facts, finished) {
  if (facts.memory) memory = facts.memory;
  figures();
  if (!finished && facts.state !== job.dataset.state) {
    close();
    location.reload(); // the result and the buttons of another state
    return;
  }
  if (facts.log !== undefined && $("log").textContent !== facts.log && !finished) $("log").textContent = facts.log;
}
