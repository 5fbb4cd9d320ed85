"""POST requests -> new jobs, uploads, renames and deletes, each answered with JSON."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from edgeft.errors import InputError, StaleError
from edgeft.files import read_json
from edgeft.studio.context import Studio
from edgeft.studio.desktop import open_folder
from edgeft.studio.forms import command_words, shell_line, toml_table
from edgeft.studio.guide import copy_example
from edgeft.studio.jobs import Job
from edgeft.studio.nouns import relative_text
from edgeft.studio.workspace import Upload
from edgeft.train.checkpoints import REQUEST_FILE
from edgeft.train.options import WORK_SUFFIX
from edgeft.web.request_body import read_json_object

MAX_BODY_BYTES = 200_000
CHUNK_TIMEOUT_S = 60.0
"""for the next bytes of an upload"""


class Actions:
    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    async def command(self, request: Request) -> Response:
        """{page, form, values} -> the command line and the TOML, and what the command line says against it."""
        body = await read_json_object(request, MAX_BODY_BYTES)
        return JSONResponse(await asyncio.to_thread(self._command, body))

    def _command(self, body: dict[str, Any]) -> dict[str, Any]:
        _, form, words = self.studio.words(*form_values(body))
        return {
            "line": shell_line(words),
            "toml": toml_table(form, form_values(body)[2]) if form.has_config else "",
            "problem": self.studio.commands.problem(words),
        }

    async def save(self, request: Request) -> Response:
        """{page, form, values} -> the name of a TOML file with them."""
        body = await read_json_object(request, MAX_BODY_BYTES)
        return JSONResponse({"path": await asyncio.to_thread(self.studio.save, *form_values(body))})

    async def start(self, request: Request) -> Response:
        """{page, form, values} -> the new job."""
        body = await read_json_object(request, MAX_BODY_BYTES)
        job = await asyncio.to_thread(self.studio.start, *form_values(body))
        return started(job)

    async def cancel(self, request: Request) -> Response:
        job = await asyncio.to_thread(self.studio.jobs.cancel, request.path_params["number"])
        return JSONResponse({"id": job.id, "state": job.state})

    async def again(self, request: Request) -> Response:
        """The same command as a new job; with `resume` it goes on from a checkpoint."""
        job = await asyncio.to_thread(self.studio.jobs.get, request.path_params["number"])
        if not job.has_ended:
            raise StaleError(f"job {job.id} has not ended", "stop it first")
        words = list(job.words)
        if request.query_params.get("resume") and "--resume" not in words:
            words.append("--resume")
        add = self.studio.jobs.add
        return started(await asyncio.to_thread(add, words, job.page, None, job.form, job.values))

    async def forget(self, request: Request) -> Response:
        await asyncio.to_thread(self.studio.jobs.delete, request.path_params["number"])
        return JSONResponse({})

    async def resume(self, request: Request) -> Response:
        """An unfinished run, also one that was started on the command line, goes on."""
        return started(await asyncio.to_thread(self._resume, request.query_params.get("path", "")))

    def _resume(self, text: str) -> Job:
        path = self.studio.workspace.inside(text)
        options = read_json(path / REQUEST_FILE).get("options", {})
        if path.suffix != WORK_SUFFIX or not options:
            raise InputError(f"{text} is no unfinished run", "reload the page")
        form = self.studio.commands.form("train")
        known = {field.name for field in form.fields}
        values = {
            name: [self._typed(item) for item in value]
            if isinstance(value, list)
            else value
            if isinstance(value, bool)
            else self._typed(value)
            for name, value in options.items()
            if name in known and value is not None
        }
        words = command_words(form, {**values, "resume": True})
        if problem := self.studio.commands.problem(words):
            raise InputError(problem)
        return self.studio.jobs.add(words, "train")

    def _typed(self, value: object) -> str:
        """An option's value as a person types it here."""
        if isinstance(value, float):
            return str(int(value)) if value.is_integer() else repr(value)
        return relative_text(self.studio.root, str(value))

    async def guide(self, request: Request) -> Response:
        """Queue a step of the guide (`step`), or all that are open. The rest of the query is its choice."""
        choice = {name: [value] for name, value in request.query_params.items()}
        step = choice.pop("step", [""])[0]
        jobs = await asyncio.to_thread(self.studio.run_steps, choice, step)
        return JSONResponse({"jobs": [job.id for job in jobs]})

    async def example(self, request: Request) -> Response:
        await asyncio.to_thread(copy_example, self.studio.root)
        return JSONResponse({})

    async def delete(self, request: Request) -> Response:
        text = str((await read_json_object(request, MAX_BODY_BYTES)).get("path", ""))
        return JSONResponse({"entry": await asyncio.to_thread(self._delete, text)})

    def _delete(self, text: str) -> str:
        self._check_unused(text)
        return self.studio.workspace.delete(text)

    async def rename(self, request: Request) -> Response:
        body = await read_json_object(request, MAX_BODY_BYTES)
        text, name = str(body.get("path", "")), str(body.get("name", ""))
        return JSONResponse({"path": await asyncio.to_thread(self._rename, text, name)})

    def _rename(self, text: str, name: str) -> str:
        self._check_unused(text)
        return self.studio.workspace.rename(text, name)

    def _check_unused(self, text: str) -> None:
        if job := self.studio.jobs.using(text.removesuffix(WORK_SUFFIX)):
            raise StaleError(f"job {job.id} works with {text}", "stop it first")

    async def open(self, request: Request) -> Response:
        """Show the workspace, or the folder of a noun (`path`), on the desktop of this machine."""
        text = str((await read_json_object(request, MAX_BODY_BYTES)).get("path", ""))
        path = self.studio.workspace.inside(text) if text else self.studio.root
        if not await asyncio.to_thread(open_folder, path):
            raise InputError("no program here opens folders", "copy the path")
        return JSONResponse({"opened": True})

    async def restore(self, request: Request) -> Response:
        entry = request.query_params.get("entry", "")
        return JSONResponse({"path": await asyncio.to_thread(self.studio.workspace.restore, entry)})

    async def empty_trash(self, request: Request) -> Response:
        await asyncio.to_thread(self.studio.workspace.empty_trash)
        return JSONResponse({})

    async def upload(self, request: Request) -> Response:
        """The bytes of a file are the body; `name` is in the query."""
        workspace, name = self.studio.workspace, request.query_params.get("name", "")
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) <= self.studio.max_upload:
            workspace.check_room(int(length))
        with Upload(workspace, name, self.studio.max_upload) as upload:
            stream = request.stream()
            while True:
                try:
                    chunk = await asyncio.wait_for(anext(stream), CHUNK_TIMEOUT_S)
                except StopAsyncIteration:
                    break
                except (TimeoutError, ClientDisconnect):
                    raise HTTPException(408, "the upload broke off") from None
                await asyncio.to_thread(upload.write, chunk)
        path = upload.target.relative_to(self.studio.root).as_posix()
        return JSONResponse({"path": path, "size": upload.size})


def started(job: Job) -> Response:
    return JSONResponse({"id": job.id}, 201)


def form_values(body: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    """(page, form, values) of a request. HTTPException for values of other types than a form has."""
    page, form, values = body.get("page"), body.get("form"), body.get("values")
    usable = isinstance(values, dict) and all(
        isinstance(value, (str, bool))
        or (isinstance(value, list) and all(isinstance(v, str) for v in value))
        for value in values.values()
    )
    if (
        not isinstance(page, str)
        or not isinstance(form, str)
        or not isinstance(values, dict)
        or not usable
    ):
        raise HTTPException(400, "page, form and values")
    return page, form, values
