// Elements, words, requests and the line at the bottom that says what happened.

export const $ = (id) => document.getElementById(id);
export const all = (selector, within = document) => [...within.querySelectorAll(selector)];

const words = JSON.parse(document.body.dataset.words ?? "{}");

export function text(key, value) {
  return (words[key] ?? key).replace("{0}", value ?? "");
}

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

export async function post(address, body) {
  let response;
  try {
    response = await fetch(address, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(body ?? {}),
    });
  } catch {
    throw new Error(text("offline"));
  }
  if (response.status === 401) location.reload(); // asks for the key
  const answer = await response.json().catch(() => ({}));
  if (response.ok) return answer;
  const { message, hint } = answer.error ?? {};
  throw new Error([message ?? response.statusText, hint].filter(Boolean).join(": "));
}

let timer;
export function toast(message, action, act) {
  const box = $("toast");
  box.replaceChildren(message);
  if (action) {
    const button = element("button", { type: "button" }, action);
    button.addEventListener("click", () => act().catch(problem));
    box.append(" ", button);
  }
  box.classList.add("shown");
  clearTimeout(timer);
  timer = setTimeout(() => box.classList.remove("shown"), action ? 15000 : 4000);
}

export function problem(error) {
  toast(text("failed", error.message));
}

export function bytes(size) {
  if (size < 1e6) return `${Math.round(size / 1e3)} kB`;
  return size < 1e9 ? `${(size / 1e6).toFixed(0)} MB` : `${(size / 1e9).toFixed(1)} GB`;
}

export function seconds(value) {
  const total = Math.round(value);
  if (total < 100) return `${total} s`;
  const minutes = Math.floor(total / 60);
  return minutes < 100 ? `${minutes} min ${total % 60} s` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}
