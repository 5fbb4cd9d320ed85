// Starts what a page has: settings, actions, forms, uploads, live jobs.

import { connect, refresh } from "./live.js";
import { startForms } from "./form.js";
import { drawCurves } from "./plot.js";
import { $, all, post, problem, text, toast } from "./dom.js";

function setting(id, cookie) {
  $(id)?.addEventListener("change", (event) => {
    document.cookie = `${cookie}=${event.target.value}; path=/; max-age=31536000; samesite=strict`;
    if (cookie === "edgeft-theme") document.documentElement.dataset.theme = event.target.value;
    else location.reload();
  });
}

// Buttons are found at the click, since parts of the page are fetched again.
// One with data-post sends it; data-then is where the page goes, else to the new job, else it reloads.
document.addEventListener("click", async (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.matches(".copy")) return copy(button);
  if (button.dataset.rename) return openRename(button);
  if ("step" in button.dataset) return runStep(button);
  if (!button.dataset.post) return;
  if (button.dataset.sure && !confirm(button.dataset.sure)) return;
  button.disabled = true;
  try {
    const { path } = button.dataset;
    const answer = await post(button.dataset.post, path ? { path } : undefined);
    if ("undo" in button.dataset) {
      button.closest("li").remove();
      toast(text("deleted"), text("undo"), async () => {
        await post(`/api/restore?entry=${answer.entry}`);
        location.reload();
      });
    } else if (answer.id && !answer.state) location.href = `/jobs/${answer.id}`;
    else if (button.dataset.then) location.href = button.dataset.then;
    else if (answer.opened) button.disabled = false;
    else if (!document.querySelector("[data-live]")) location.reload();
  } catch (error) {
    problem(error);
    button.disabled = false;
  }
});

async function copy(button) {
  const code = button.closest(".line, .path").querySelector("code");
  try {
    await navigator.clipboard.writeText(code.textContent);
    toast(text("copied"));
  } catch {
    getSelection().selectAllChildren(code); // without rights to the clipboard the person copies it
  }
}

function openRename(button) {
  const dialog = $("rename"), name = $("rename-name"), said = dialog.querySelector(".problem");
  name.value = button.dataset.rename.split("/").pop();
  said.hidden = true;
  dialog.showModal();
  name.select();
  dialog.querySelector("form").onsubmit = async (event) => {
    if (event.submitter?.value === "cancel") return;
    event.preventDefault();
    try {
      await post("/api/rename", { path: button.dataset.rename, name: name.value });
      location.reload();
    } catch (error) {
      said.textContent = error.message;
      said.hidden = false;
    }
  };
}

async function upload(files, then) {
  const bar = $("upload-bar");
  let last = "";
  for (const file of files) {
    toast(text("uploading", file.name));
    bar.hidden = false;
    try {
      last = (await send(file, (share) => (bar.value = share))).path;
    } catch (error) {
      bar.hidden = true;
      return problem(error);
    }
  }
  if (last) location.href = then ? then + encodeURIComponent(last) : "/data?form=check&data=" + encodeURIComponent(last);
}

// XMLHttpRequest, because fetch does not say how much of an upload is sent.
function send(file, progress) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", `/api/upload?name=${encodeURIComponent(file.name)}`);
    request.setRequestHeader("content-type", "application/octet-stream");
    request.upload.onprogress = (event) => event.lengthComputable && progress(event.loaded / event.total);
    request.onerror = () => reject(new Error(text("offline")));
    request.onload = () => {
      let answer = {};
      try { answer = JSON.parse(request.responseText); } catch { /* no JSON */ }
      if (request.status < 300) resolve(answer);
      else reject(new Error([answer.error?.message ?? request.statusText, answer.error?.hint].filter(Boolean).join(": ")));
    };
    request.send(file);
  });
}

function startUploads() {
  const input = $("file"), drop = $("drop") ?? document.querySelector(".choice");
  input?.addEventListener("change", () => upload([...input.files], input.dataset.then));
  drop?.addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
  drop?.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop?.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    upload([...event.dataTransfer.files], input.dataset.then);
  });
}

const choices = () => new URLSearchParams(new FormData($("guide")));

function startGuide() {
  $("guide")?.addEventListener("change", () => {
    history.replaceState(null, "", `/?${choices()}`);
    refresh();
  });
}

// A step of the guide, or with "" all that are open, with what the page shows as chosen.
async function runStep(button) {
  button.disabled = true;
  try {
    await post(`/api/guide?step=${button.dataset.step}&${choices()}`);
    refresh();
  } catch (error) {
    problem(error);
    button.disabled = false;
  }
}

function startTabs() {
  for (const list of all("[role=tablist]")) {
    const tabs = [...list.querySelectorAll("[role=tab]")];
    const choose = (tab) => {
      for (const one of tabs) {
        const on = one === tab;
        one.setAttribute("aria-selected", on);
        one.tabIndex = on ? 0 : -1;
        $(one.getAttribute("aria-controls")).hidden = !on;
      }
      const address = new URL(location);
      address.searchParams.set("form", tab.id.replace("tab-", ""));
      history.replaceState(null, "", address);
    };
    for (const tab of tabs) tab.addEventListener("click", () => choose(tab));
    list.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const next = tabs[(tabs.indexOf(document.activeElement) + step + tabs.length) % tabs.length];
      next.focus();
      choose(next);
    });
  }
}

function startCompare() {
  if (!$("curves")) return;
  const curves = JSON.parse($("curves").textContent);
  const draw = () => {
    const chosen = all("[data-run]").filter((box) => box.checked).map((box) => box.dataset.run);
    const lines = (key) => chosen.map((name) => ({ name, points: curves[name]?.[key] ?? [] })).filter((line) => line.points.length);
    drawCurves($("compare-loss"), lines("loss"), true);
    drawCurves($("compare-validation"), lines("validation_loss"), false);
  };
  for (const box of all("[data-run]")) box.addEventListener("change", draw);
  draw();
}

setting("language", "edgeft-language");
setting("theme", "edgeft-theme");
startTabs();
startForms();
startUploads();
startGuide();
startCompare();
connect();
document.body.classList.add("ready");
document.querySelector('nav.side [aria-current="page"]')?.scrollIntoView({ block: "nearest", inline: "center" });
