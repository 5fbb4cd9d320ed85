"use strict";
// What every part of the page uses: elements, buttons, the clipboard, the browser's storage.

const $ = (id) => document.getElementById(id);

function make(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}
const button = (text, act, className = "plain small") => make("button", { type: "button", textContent: text, className, onclick: act });
const named = (node, label) => Object.assign(node, { ariaLabel: label, title: label });

async function copy(text, told) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // without https there is no clipboard but this
    const area = make("textarea", { value: text, className: "hidden-text" });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  const before = told.textContent;
  told.textContent = "Copied";
  setTimeout(() => (told.textContent = before), 1500);
}

const storage = (name) => {
  try {
    return window[name];
  } catch { // blocked by the browser's settings
    return { getItem: () => null, setItem: () => {}, removeItem: () => {} };
  }
};
const local = storage("localStorage");
const session = storage("sessionStorage");

function stored(key) {
  try {
    return JSON.parse(local.getItem(key));
  } catch {
    return null;
  }
}

function store(key, value) {
  const text = JSON.stringify(value);
  try {
    local.setItem(key, text);
  } catch {
    warn("The browser's storage is full or blocked: this conversation is not kept. Export it, or delete others.");
  }
  return text;
}

const tell = (text) => ($("status").textContent = text); // to a screen reader
const warn = (text) => ($("warning").textContent = text);
