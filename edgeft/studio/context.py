"""What the routes share: the workspace, its jobs, the commands, and forms filled for a page."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeft.errors import EdgeftError, InputError
from edgeft.files import write_text
from edgeft.studio import pages
from edgeft.studio.forms import (
    CommandForm,
    Commands,
    Values,
    command_words,
    shell_line,
    toml_table,
    values_of_toml,
)
from edgeft.studio.guide import (
    CHAT,
    EXAMPLE,
    Choice,
    Step,
    copy_example,
    guess_scorer,
    guide_steps,
    unknown_columns,
)
from edgeft.studio.job_view import job_view
from edgeft.studio.jobs import Job, Jobs
from edgeft.studio.nouns import Noun, find_nouns
from edgeft.studio.pages import FormSpec
from edgeft.studio.render import Renderer
from edgeft.studio.words import Words
from edgeft.studio.workspace import Workspace

FLAGS = ("--progress", "json")
JOBS_SHOWN = 12
SFT = "sft"
"""the objective whose rows have a question and an answer, and the default"""
MAX_SAVED, MAX_SAVED_BYTES = 50, 100_000
"""files of options that are looked at, and the size of one"""


@dataclass(frozen=True)
class Studio:
    """Everything that a request needs."""

    workspace: Workspace
    jobs: Jobs
    commands: Commands
    key: str
    max_upload: int
    renderer: Renderer

    @property
    def root(self) -> Path:
        return self.workspace.root

    def nouns(self) -> list[Noun]:
        return find_nouns(self.root)

    def flags(self, words: Sequence[str]) -> list[str]:
        """What a job's command is given beside its words: JSON for its result and its progress."""
        name = " ".join(words[: 2 if words[0] == "data" else 1])
        has_json = self.commands.form(name).has_json and "--json" not in words
        return [*(["--json"] if has_json else []), *FLAGS]

    def words(
        self, page: str, name: str, values: Values
    ) -> tuple[FormSpec, CommandForm, list[str]]:
        """The command line of a form. InputError for a form or a field that does not exist."""
        spec = pages.spec_of(page, name)
        if spec is None:
            raise InputError(f"there is no form {name} on the page {page}", "reload the page")
        form = self.commands.form(spec.command)
        return spec, form, command_words(form, pages.with_fixed(spec, values))

    def start(self, page: str, name: str, values: Values, after: int | None = None) -> Job:
        """Add the job of a form. InputError with what the command line says against it."""
        _, _, words = self.words(page, name, values)
        if problem := self.commands.problem(words):
            raise InputError(problem)
        return self.jobs.add(words, page, after, name, values)

    def shown_forms(
        self, page: str, nouns: Sequence[Noun], query: Mapping[str, Sequence[str]]
    ) -> list[dict[str, Any]]:
        """The forms of a page, filled from their start values, an earlier job (`from`) and the query."""
        return [
            self._shown(
                spec, nouns, query if query.get("form", [spec.name])[0] == spec.name else {}
            )
            for spec in pages.BY_NAME[page].forms
        ]

    def _shown(
        self, spec: FormSpec, nouns: Sequence[Noun], query: Mapping[str, Sequence[str]]
    ) -> dict[str, Any]:
        form = self.commands.form(spec.command)
        values: dict[str, Any] = {
            item.name: item.default for item in form.fields if item.kind == "switch"
        }
        values |= {item.name: item.default for item in form.fields if item.many and item.default}
        values |= pages.usual_values(spec, nouns) | dict(spec.start)
        values |= {
            name: self.workspace.free_name(str(spec.start[name])) for name in spec.free_names
        }
        if "from" in query:
            values |= self._values_of_job(query["from"][0])
        if "config" in query:
            values |= self._values_of_toml(form, query["config"][0])
        asked = {item.name: query[item.name] for item in form.fields if item.name in query}
        values |= {
            item.name: list(asked[item.name]) if item.many else asked[item.name][0]
            for item in form.fields
            if item.name in asked
        }
        if guessed := self._column_guess(form, values):
            values["columns"] = guessed
            spec = replace(spec, first=(*spec.first, "columns"))
        first, more = (
            [
                {
                    "field": item,
                    "value": values.get(item.name, "") or "",
                    "offered": self.saved("[sweep]")
                    if (spec.command, item.name) == ("sweep", "file")
                    else pages.suggestions(item, nouns),
                }
                for item in items
            ]
            for items in pages.fields_of(spec, form)
        )
        return {
            "name": spec.name, "command": spec.command, "first": first, "more": more, "last": spec.last,
            "has_config": form.has_config, "filled": bool(asked) or bool({"from", "config"} & {*query}),
            "saved": self.saved(f"[{'.'.join(form.words)}]") if form.has_config else [],
        }  # fmt: skip

    def _column_guess(self, form: CommandForm, values: Mapping[str, Any]) -> list[str]:
        """Values of --columns for a file whose own names say it not; none where the form has some."""
        if not form.field("columns") or values.get("columns"):
            return []
        if values.get("objective", SFT) != SFT:
            return []
        data = values.get("data") or ""
        path = data if isinstance(data, str) else data[0]
        try:
            columns = unknown_columns(self.workspace.inside(path))
        except InputError:
            return []
        return columns.pairs if columns else []

    def saved(self, table: str) -> list[str]:
        """Names of the TOML files in the workspace that have a table."""
        names = []
        for path in sorted(self.root.glob("*.toml"))[:MAX_SAVED]:
            with contextlib.suppress(OSError, UnicodeDecodeError):
                if path.stat().st_size < MAX_SAVED_BYTES and table in path.read_text("utf-8").split(
                    "\n"
                ):
                    names.append(path.name)
        return names

    def save(self, page: str, name: str, values: Values) -> str:
        """Keep what a form says as a file for `--config`; its name."""
        _, form, _ = self.words(page, name, values)
        if not form.has_config:
            raise InputError(f"edgeft {' '.join(form.words)} has no --config", "copy the command")
        path = self.workspace.free_name(f"{name}.toml")
        write_text(self.root / path, toml_table(form, values))
        return path

    def _values_of_toml(self, form: CommandForm, text: str) -> dict[str, Any]:
        path = self.workspace.inside(text)
        if path.suffix != ".toml" or path.stat().st_size > MAX_SAVED_BYTES:
            raise InputError(f"{text} is no file of options", "a .toml that a form has saved")
        try:
            return dict(values_of_toml(form, path.read_text(encoding="utf-8")))
        except UnicodeDecodeError:
            raise InputError(f"{text} is not UTF-8", "save it as UTF-8") from None

    def _values_of_job(self, text: str) -> dict[str, Any]:
        try:
            return dict(self.jobs.get(int(text)).values)
        except (ValueError, InputError):
            return {}

    def guide(self, query: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        """The guide's choice and its steps with their states. The choice is kept for the next visit."""
        choice = self._choice(query)
        if choice is None:
            return {}
        facts: dict[str, Any] = vars(choice) | {"steps": [], "problem": "", "few": choice.test_rows}
        if choice.data == EXAMPLE:
            copy_example(self.root)
        try:
            if choice.data != EXAMPLE:
                facts["columns"] = unknown_columns(self.workspace.inside(choice.data))
            facts["steps"] = self.step_views(guide_steps(choice))
        except EdgeftError as error:
            facts["problem"] = str(error)
        states = {step["name"]: step["state"] for step in facts["steps"]}
        return facts | {
            "busy": "running" in states.values(),
            "open": any(state != "done" for name, state in states.items() if name != CHAT),
        }

    def step_views(self, steps: Sequence[Step]) -> list[dict[str, Any]]:
        """Each step with its command line, its newest job and its state: open, running, done or failed."""
        jobs = {job.words: job for job in reversed(self.jobs.all())}
        views = []
        for step in steps:
            _, _, words = self.words(step.page, step.form, step.values)
            job = jobs.get(tuple(words))
            state, link = "open", ""
            if job and (job.state != "skipped"):
                state = "done" if job.state == "done" else "failed" if job.has_ended else "running"
            elif step.result and (self.root / step.result).exists():
                state, link = "done", f"/file/{step.result}"
            job = job if state != "open" and not link else None
            view = job_view(job) if job else None
            views.append({
                "name": step.name, "state": state, "job": view, "link": link, "needs": step.needs,
                "line": shell_line(words), "step": step,
            })  # fmt: skip
        return views

    def run_steps(self, query: Mapping[str, Sequence[str]], only: str = "") -> list[Job]:
        """Queue a step of the guide, or every open one but the chat, each after those that it needs."""
        choice = self._choice(query)
        if choice is None:
            raise InputError("no data is chosen", "choose a file first")
        added: dict[str, Job] = {}
        for view in self.step_views(guide_steps(choice)):
            step: Step = view["step"]
            is_next = (
                step.name == only
                if only
                else view["state"] in ("open", "failed") and step.name != CHAT
            )
            if not is_next:
                continue
            after = next((added[name].id for name in reversed(step.needs) if name in added), None)
            values = dict(step.values)
            if after is not None:  # its files are not there yet, so nothing can be checked
                _, _, words = self.words(step.page, step.form, values)
                added[step.name] = self.jobs.add(words, step.page, after, step.form, values)
            else:
                added[step.name] = self.start(step.page, step.form, values)
        return list(added.values())

    def _choice(self, query: Mapping[str, Sequence[str]]) -> Choice | None:
        """From the query, else as it was kept."""
        path = self.workspace.studio / "guide.json"
        kept: dict[str, str] = {}
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            kept = {}
        names = ("data", "base", "size", "scorer", "question", "answer", "rows")
        chosen = {name: query[name][0] for name in names[:-1] if query.get(name)}
        if chosen.get("data", kept.get("data")) != kept.get("data"):
            kept = {name: text for name, text in kept.items() if name in ("base", "size")}
        facts = {name: str(text) for name, text in {**kept, **chosen}.items() if name in names}
        if not facts.get("data"):
            return None
        if not facts.get("scorer"):
            facts |= self._guesses(facts["data"])
        if chosen and facts != kept:
            path.write_text(json.dumps(facts), encoding="utf-8")
        return Choice(**facts)

    def _guesses(self, data: str) -> dict[str, str]:
        """How the answers of a file are scored, and its columns where their names do not say it."""
        if data == EXAMPLE:
            return {"scorer": "json"}
        try:
            path = self.workspace.inside(data)
        except InputError:
            return {"scorer": "exact"}
        columns = unknown_columns(path)
        if columns is None:
            return guess_scorer(path)
        guessed = {"question": columns.question, "answer": columns.answer}
        return guessed | guess_scorer(path, columns.pairs)

    def queue_text(self, words: Words, jobs: Sequence[Job]) -> str:
        """How many jobs run and wait."""
        running = sum(job.state in ("running", "stopping") for job in jobs)
        waiting = sum(job.state == "waiting" for job in jobs)
        parts = [words("queue.running", running)] if running else []
        parts += [words("queue.waiting", waiting)] if waiting else []
        return ", ".join(parts) or words("queue.idle")

    def common(self, words: Words, page: str) -> dict[str, Any]:
        """What every page shows."""
        jobs = self.jobs.all()
        shown = (
            jobs if page == "jobs" else [job for job in jobs if job.page == page or page == "start"]
        )
        return {
            "page": page,
            "workspace": str(self.root),
            "workspace_name": self.root.name,
            "workspace_id": hashlib.sha256(str(self.root).encode()).hexdigest()[:8],
            "js_words": json.dumps(words.of("js"), ensure_ascii=False),
            "queue_text": self.queue_text(words, jobs),
            "jobs": [job_view(job) for job in shown[: 200 if page == "jobs" else JOBS_SHOWN]],
        }
