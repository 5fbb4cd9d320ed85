// A form of a command: what it holds is kept in this browser, shown as the command line, and started as a job.

import { $, all, post, text, toast } from "./dom.js";

const DELAY_MS = 250;

export function startForms() {
  for (const form of all("form[data-form]")) new CommandForm(form);
}

class CommandForm {
  constructor(form) {
    this.form = form;
    this.key = `edgeft.form.${document.body.dataset.workspace}.${form.dataset.form}`;
    this.shown = "line";
    this.answer = {};
    this.initial = JSON.stringify(this.values());
    if (!("filled" in form.dataset)) this.restore();
    form.addEventListener("input", (event) => event.target.type !== "search" && this.changed());
    form.addEventListener("change", () => this.changed());
    form.addEventListener("submit", (event) => this.submit(event));
    form.addEventListener("reset", () => setTimeout(() => {
      localStorage.removeItem(this.key);
      this.ask();
    }));
    for (const button of all(".offer", form)) button.addEventListener("click", () => this.offer(button));
    for (const tab of all(".tab", form)) tab.addEventListener("click", () => this.show(tab));
    all("input[type=search]", form).forEach((box) => box.addEventListener("input", () => this.filter(box)));
    this.form.querySelector(".save")?.addEventListener("click", () => this.save());
    this.ask();
  }

  async save() {
    try {
      toast(text("saved", (await post("/api/toml", this.body())).path));
    } catch (error) {
      this.say(error.message);
    }
  }

  // {parameter: text, list of texts, or whether a box is ticked}
  values() {
    const values = {};
    for (const field of all("[data-field]", this.form)) {
      const name = field.dataset.field;
      if (field.matches(".switch")) values[name] = field.querySelector("input").checked;
      else if (field.matches(".many")) {
        const ticked = all("input[type=checkbox]:checked", field).map((box) => box.value);
        const others = field.querySelector(".others").value.split(/[,\n]/).map((part) => part.trim()).filter(Boolean);
        values[name] = [...ticked, ...others];
      } else values[name] = field.querySelector("input, select").value;
    }
    const last = this.form.dataset.last;
    if (last) {
      const baseline = this.form.querySelector(`[data-last-of="${last}"] input`).value.trim();
      values[last] = [...values[last].filter((name) => name !== baseline), ...(baseline ? [baseline] : [])];
    }
    return values;
  }

  fill(values) {
    const last = this.form.dataset.last;
    for (const field of all("[data-field]", this.form)) {
      let value = values[field.dataset.field];
      if (value === undefined) continue;
      if (field.matches(".switch")) field.querySelector("input").checked = value;
      else if (field.matches(".many")) {
        if (field.dataset.field === last && value.length) {
          this.form.querySelector(`[data-last-of="${last}"] input`).value = value.at(-1);
          value = value.slice(0, -1);
        }
        const boxes = all("input[type=checkbox]", field);
        for (const box of boxes) box.checked = value.includes(box.value);
        const known = boxes.map((box) => box.value);
        field.querySelector(".others").value = value.filter((name) => !known.includes(name)).join(", ");
      } else field.querySelector("input, select").value = value;
    }
  }

  restore() {
    try {
      const kept = JSON.parse(localStorage.getItem(this.key));
      if (kept) this.fill(kept);
    } catch { /* what another version kept is of no use */ }
  }

  changed() {
    const values = JSON.stringify(this.values());
    try {
      if (values === this.initial) localStorage.removeItem(this.key);
      else localStorage.setItem(this.key, values);
    } catch { /* no storage: the form works all the same */ }
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.ask(), DELAY_MS);
  }

  body() {
    return { page: this.form.dataset.page, form: this.form.dataset.form, values: this.values() };
  }

  async ask() {
    try {
      this.answer = await post("/api/command", this.body());
      this.say("");
    } catch (error) {
      this.say(error.message);
    }
    this.draw();
  }

  draw() {
    this.form.querySelector("pre code").textContent = this.answer[this.shown] ?? "";
  }

  show(tab) {
    this.shown = tab.dataset.show;
    for (const one of all(".tab", this.form)) one.setAttribute("aria-pressed", one === tab);
    this.draw();
  }

  say(message) {
    const box = this.form.querySelector(":scope > .problem");
    box.textContent = message;
    box.hidden = !message;
  }

  offer(button) {
    const input = $(button.dataset.for);
    input.value = button.dataset.value;
    input.dispatchEvent(new Event("input", { bubbles: true }));
    input.focus();
  }

  filter(box) {
    const wanted = box.value.trim().toLowerCase();
    for (const field of all("details [data-field]", this.form)) {
      field.hidden = wanted !== "" && !field.textContent.toLowerCase().includes(wanted) && !field.dataset.field.includes(wanted);
    }
  }

  async submit(event) {
    event.preventDefault();
    const button = this.form.querySelector("button[type=submit]");
    button.disabled = true;
    try {
      const { id } = await post("/api/jobs", this.body());
      localStorage.removeItem(this.key);
      location.href = `/jobs/${id}`;
    } catch (error) {
      this.say(error.message);
      button.disabled = false;
    }
  }
}
