"""GET requests -> pages of the studio."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, RedirectResponse, Response

from edgeft.data.layouts import Layout
from edgeft.data.rows import load_examples
from edgeft.errors import EdgeftError, InputError
from edgeft.files import is_file
from edgeft.models import sources
from edgeft.studio import pages
from edgeft.studio.context import Studio
from edgeft.studio.desktop import has_desktop
from edgeft.studio.job_view import can_resume, job_view, next_links
from edgeft.studio.lineage import lineage_svg
from edgeft.studio.nouns import Noun
from edgeft.studio.words import Words, chosen_language
from edgeft.studio.workspace import UPLOAD_SUFFIXES
from edgeft.train.options import WORK_SUFFIX

NEEDS = {
    "export": ("adapter", "/train"),
    "chat": ("artifact", "/export"),
    "measure": ("artifact", "/export"),
}
"""page -> (kind of noun that it works on, page that makes one)"""
SHOWN_ROWS, SHOWN_BYTES = 20, 30_000_000
CURVES = ("loss", "validation_loss")
RAW = {".html": "text/html", ".md": "text/plain", ".json": "application/json", ".jsonl": "text/plain",
       ".svg": "image/svg+xml", ".png": "image/png", ".toml": "text/plain"}  # fmt: skip
"""files of the workspace that a browser may show, with their types"""
RAW_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""of such a file: no scripts, and no origin of its own"""


def words_of(request: Request) -> Words:
    accepted = request.headers.get("accept-language", "")
    return Words(chosen_language(request.cookies.get("edgeft-language", ""), accepted))


class Views:
    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    def _html(self, request: Request, template: str, page: str, **context: Any) -> Response:
        words = words_of(request)
        theme = request.cookies.get("edgeft-theme", "")
        common = self.studio.common(words, page)
        context = {
            **common,
            "theme": theme if theme in ("light", "dark") else "",
            "sources": {name: kinds[0] for name, kinds in pages.SOURCES.items()},
            "has_desktop": has_desktop(),
            "upload_suffixes": ",".join(UPLOAD_SUFFIXES),
            **context,
        }
        return HTMLResponse(self.studio.renderer.page(template, words, **context))

    def start(self, request: Request) -> Response:
        query = _query(request)
        guide = self.studio.guide(query)
        nouns = self.studio.nouns()
        return self._html(
            request,
            "start.html.j2",
            "start",
            guide=guide,
            choices=[noun.path for noun in nouns if noun.kind == "data"],
            bases=[*sources(), *(noun.path for noun in nouns if noun.kind == "base")],
            scorers=pages.NAMES["scorer"],
        )

    def page(self, request: Request) -> Response:
        name = request.path_params["page"]
        if name == "start":
            return RedirectResponse("/", 303)
        if name == "jobs":
            return self._html(request, "jobs.html.j2", "jobs")
        if name == "runs":
            return self._runs(request)
        if name not in pages.BY_NAME:
            raise HTTPException(404, f"there is no page {name}")
        nouns, query = self.studio.nouns(), _query(request)
        shown = self.studio.shown_forms(name, nouns, query)
        names = [form["name"] for form in shown]
        chosen = query.get("form", names)[0]
        kind, where = NEEDS.get(name, ("", ""))
        context: dict[str, Any] = {
            "shown": shown,
            "nouns": nouns,
            "chosen": chosen if chosen in names else names[0],
            "missing": where if kind and not any(noun.kind == kind for noun in nouns) else "",
        }
        if name == "train":
            runs = [noun for noun in nouns if noun.facts.get("loss")]
            runs.sort(key=lambda noun: -noun.changed)
            context["runs"] = runs
            context["unfinished"] = [noun for noun in nouns if self._is_idle(noun)]
            curves = {noun.path: {key: noun.facts.get(key) for key in CURVES} for noun in runs}
            context["curves"] = Markup(json.dumps(curves).replace("<", "\\u003c"))
        if name == "chat":
            running = [
                job for job in self.studio.jobs.all() if job.lane == "service" and not job.has_ended
            ]
            context["services"] = [job_view(job) for job in running]
        return self._html(request, "page.html.j2", name, **context)

    def _is_idle(self, noun: Noun) -> bool:
        """Whether a run is unfinished and no job of the studio works on it."""
        output = noun.path.removesuffix(WORK_SUFFIX)
        return noun.kind == "unfinished" and self.studio.jobs.using(output) is None

    def _runs(self, request: Request) -> Response:
        nouns, words = self.studio.nouns(), words_of(request)
        kinds = ("adapter", "artifact", "report", "sweep", "base", "unfinished", "data")
        groups = {kind: [noun for noun in nouns if noun.kind == kind] for kind in kinds}
        return self._html(
            request,
            "runs.html.j2",
            "runs",
            nouns=nouns,
            groups={kind: group for kind, group in groups.items() if group},
            graph=lineage_svg(nouns, words("runs.lineage"), words("kind.outside")),
            trash=self.studio.workspace.trash(),
        )

    def job(self, request: Request) -> Response:
        job = self.studio.jobs.get(request.path_params["number"])
        words, root = words_of(request), self.studio.root
        view = job_view(job) | {
            "can_resume": can_resume(job, root),
            "next": next_links(job, words, root),
        }
        result = job.result() if job.has_ended else None
        lines, _ = job.lines()
        notes = [
            str(line.get("text", ""))
            for line in (*lines, *job.last_lines())
            if line.get("event") == "note"
        ]
        sizes = {}
        if job.command == "merge-export" and isinstance(result, dict):
            for row in result.get("artifacts", ()):
                with contextlib.suppress(OSError):
                    sizes[row["path"]] = _size(root / row["path"])
        return self._html(
            request,
            "job.html.j2",
            job.page if job.page in pages.BY_NAME else "jobs",
            job=view,
            result=self.studio.renderer.result(words, view, result, sizes)
            if isinstance(result, dict)
            else None,
            output="" if isinstance(result, dict) or not job.has_ended else job.text("output.txt"),
            notes=list(dict.fromkeys(notes))[-100:],
            log=job.text("log.txt"),
        )

    def file(self, request: Request) -> Response:
        """A noun: what it is, and the first rows of data."""
        text = request.path_params["path"]
        path = self.studio.workspace.inside(text)
        noun = next((noun for noun in self.studio.nouns() if noun.path == text), None)
        if noun is None:
            raise InputError(f"{text} is nothing that the studio knows", "look at Models and runs")
        words = words_of(request)
        rows: list[Any] = []
        problem = ""
        if noun.kind == "data" and noun.size <= SHOWN_BYTES:
            try:
                layout: Layout = "documents" if path.suffix == ".txt" else "chats"
                rows = load_examples(path, layout=layout)[:SHOWN_ROWS]
            except EdgeftError as error:
                problem = str(error)
        links = _links(noun, words, path)
        return self._html(
            request, "file.html.j2", "runs", noun=noun, rows=rows, problem=problem, links=links
        )

    def raw(self, request: Request) -> Response:
        """A report's page and such, in a sandbox."""
        path = self.studio.workspace.inside(request.path_params["path"])
        kind = RAW.get(path.suffix)
        inside = path.resolve().is_relative_to(self.studio.root)
        if kind is None or not is_file(path) or not inside:
            raise HTTPException(404, "this file is not shown")
        return FileResponse(path, media_type=kind, headers={"content-security-policy": RAW_POLICY})

    def error_page(self, request: Request, status: int, message: str, hint: str) -> Response:
        page = self._html(request, "error.html.j2", "", message=message, hint=hint)
        page.status_code = status
        return page

    def login_page(self, request: Request, wrong: bool = False) -> Response:
        html = self.studio.renderer.page("login.html.j2", words_of(request), wrong=wrong)
        return HTMLResponse(html, 401 if not wrong else 403)


def _query(request: Request) -> dict[str, list[str]]:
    """The values of each name, in their order."""
    values: dict[str, list[str]] = {}
    for name, value in request.query_params.multi_items():
        values.setdefault(name, []).append(value)
    return values


def _links(noun: Noun, words: Words, path: Path) -> list[dict[str, Any]]:
    """What to do with a noun."""
    name = quote(noun.path)
    by_kind = {
        "data": [("tab.check", f"/data?form=check&data={name}"), ("tab.preview", f"/data?form=preview&data={name}"),
                 ("tab.split", f"/data?form=split&data={name}"), ("nav.train", f"/train?data={name}")],
        "adapter": [("nav.export", f"/export?adapter={name}")],
        "artifact": [("nav.chat", f"/chat?artifacts={name}"), ("tab.bench", f"/measure?form=bench&artifacts={name}")],
        "base": [("nav.plan", f"/plan?base={name}"), ("nav.train", f"/train?base={name}")],
    }  # fmt: skip
    links = [
        {"text": words(key), "href": href, "new": False} for key, href in by_kind.get(noun.kind, ())
    ]
    page = path.with_suffix(".html")
    if noun.kind == "report" and page.is_file():
        href = f"/raw/{quote(noun.path.removesuffix('.json'))}.html"
        links.append({"text": words("file.page"), "href": href, "new": True})
    return links


def _size(path: Path) -> int:
    if path.is_dir():
        return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
    return path.stat().st_size
