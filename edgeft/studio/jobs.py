"""A folder of jobs -> what each is, its state, its progress; new jobs and cancelled ones.

    jobs = Jobs(workspace / ".studio/jobs")
    job = jobs.add(["train", "--data", "chats.jsonl", …], page="train")
    jobs.get(job.id).state

A job is one edgeft command. All that is known of it lies in its folder, so it survives a reload of the page
and a restart of the studio. `command.json` is written with the folder; the other files are those of
job_process.py, and `cancel`, which asks for its end.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from edgeft.errors import InputError, StaleError
from edgeft.files import partial_path, read_json, write_text
from edgeft.machine import kilobytes
from edgeft.studio.job_process import start_time

State = Literal["waiting", "running", "stopping", "done", "failed", "cancelled", "skipped"]
ENDED = ("done", "failed", "cancelled", "skipped")
DONE_CODES = (0, 3, 4)
"""exit codes of a command that did its work: 3 and 4 are verdicts of check, ab, search and verify"""
QUICK = ("data", "plan", "inspect", "verify", "report", "models")
"""commands that take seconds: they do not wait behind a training"""
LABEL = ("data", "label")
"""asks a model about every row"""
SERVICES = ("serve",)
"""commands that run until they are stopped"""
TAIL_BYTES = 64_000
"""of a log that are shown"""
LINES_BYTES = 256_000
"""of progress.jsonl that are read at a time"""


@dataclass(frozen=True)
class Job:
    """A command and how far it has come."""

    id: int
    folder: Path
    words: tuple[str, ...]
    """after `edgeft`"""
    page: str
    created: float
    after: int | None = None
    """job that must succeed first"""
    form: str = ""
    """of the page, whose values it was; "" = it was made otherwise"""
    values: dict[str, Any] = field(default_factory=dict)
    """of that form"""
    state: State = "waiting"
    exit_code: int | None = None
    """negative = a signal ended it; None = not ended, or nobody was left to write it down"""
    started: float | None = None
    ended: float | None = None
    pid: int | None = None

    @property
    def lane(self) -> Literal["service", "quick", "work"]:
        if self.words[0] in SERVICES:
            return "service"
        is_quick = self.words[0] in QUICK and self.words[:2] != LABEL
        quick = is_quick or "--preview" in self.words
        return "quick" if quick else "work"

    @property
    def command(self) -> str:
        """Words of the command's name, such as "data check"."""
        return " ".join(self.words[: 2 if self.words[0] == "data" else 1])

    @property
    def has_ended(self) -> bool:
        return self.state in ENDED

    def text(self, name: str) -> str:
        """The end of a file of the job, at most TAIL_BYTES; "" where it does not exist."""
        try:
            with (self.folder / name).open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - TAIL_BYTES))
                return file.read().decode("utf-8", "replace")
        except OSError:
            return ""

    def lines(self, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
        """(whole lines of progress.jsonl from a byte offset on, the next offset)."""
        try:
            with (self.folder / "progress.jsonl").open("rb") as file:
                file.seek(offset)
                data = file.read(LINES_BYTES)
        except OSError:
            return [], offset
        whole = data[: data.rfind(b"\n") + 1]
        lines = []
        for line in whole.splitlines():
            with contextlib.suppress(ValueError):
                lines.append(json.loads(line))
        return lines, offset + len(whole)

    def last_lines(self) -> list[dict[str, Any]]:
        """The newest lines of progress.jsonl."""
        with contextlib.suppress(OSError):
            size = (self.folder / "progress.jsonl").stat().st_size
            lines, _ = self.lines(max(0, size - 16_000))
            return lines
        return []

    def result(self) -> Any:
        """The JSON object that the command printed, None where it printed none."""
        try:
            return json.loads((self.folder / "output.txt").read_bytes())
        except (OSError, ValueError):
            return None

    def problem(self) -> tuple[str, str]:
        """(why it failed, a hint), ("", "") where it did not."""
        if self.state != "failed":
            return "", ""
        for line in reversed(self.last_lines()):
            if line.get("event") == "error":
                return str(line.get("message", "")), str(line.get("hint", ""))
        last = [line for line in self.text("log.txt").splitlines() if line.strip()][-1:]
        return (last[0] if last else ""), ""

    def memory(self) -> int:
        """Resident bytes of the job's processes now, 0 where none runs."""
        if self.state not in ("running", "stopping") or not self.pid:
            return 0
        status = (f"/proc/{pid}/status" for pid in _descendants(self.pid))
        return sum(kilobytes(file).get("VmRSS", 0) for file in status)


class Jobs:
    """The jobs of one folder. For any number of threads; one studio at a time writes to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ended: dict[int, Job] = {}
        """jobs that cannot change any more"""

    def add(
        self,
        words: Sequence[str],
        page: str,
        after: int | None = None,
        form: str = "",
        values: Mapping[str, Any] | None = None,
    ) -> Job:
        """A new job at the end of the queue."""
        self.folder.mkdir(parents=True, exist_ok=True)
        number = max(self._numbers(), default=0) + 1
        facts = {
            "words": list(words), "page": page, "created": time.time(), "after": after, "form": form,
            "values": dict(values or {}),
        }  # fmt: skip
        temp = partial_path(self.folder / "new")
        temp.mkdir()
        try:
            write_text(temp / "command.json", json.dumps(facts))
            while True:
                try:
                    temp.rename(self.folder / f"{number:04}")
                    break
                except OSError:  # another request took the number
                    if not (self.folder / f"{number:04}").exists():
                        raise
                    number += 1
        except BaseException:
            shutil.rmtree(temp, ignore_errors=True)
            raise
        return self.get(number)

    def get(self, number: int) -> Job:
        """InputError for a job that does not exist."""
        if number in self._ended:
            return self._ended[number]
        folder = self.folder / f"{number:04}"
        facts = read_json(folder / "command.json")
        if not facts:
            raise InputError(f"there is no job {number}", "it was deleted")
        job = Job(
            number, folder, tuple(facts["words"]), facts["page"], facts["created"], facts["after"],
            facts["form"], facts["values"],
        )  # fmt: skip
        job = self._with_state(job)
        if job.has_ended and job.state != "skipped":
            self._ended[number] = job
        return job

    def all(self) -> list[Job]:
        """The newest first. A folder that was damaged by hand is left out."""
        jobs = []
        for number in sorted(self._numbers(), reverse=True):
            with contextlib.suppress(InputError, KeyError, IndexError, TypeError):
                jobs.append(self.get(number))
        return jobs

    def cancel(self, number: int) -> Job:
        """Ask for a job's end. The runner sends the signals; what waits never starts."""
        job = self.get(number)
        if not job.has_ended:
            (job.folder / "cancel").touch()
        return self.get(number)

    def delete(self, number: int) -> None:
        """Forget a job that has ended. What it made stays."""
        job = self.get(number)
        if not job.has_ended:
            raise StaleError(f"job {number} has not ended", "stop it first")
        self._ended.pop(number, None)
        shutil.rmtree(job.folder)

    def using(self, path: str) -> Job | None:
        """A job that has not ended and names a path."""
        names = (path, f"{path}/")
        return next(
            (
                job
                for job in self.all()
                if not job.has_ended
                and any(word == path or word.startswith(names) for word in job.words)
            ),
            None,
        )

    def _numbers(self) -> list[int]:
        try:
            return [int(name) for name in os.listdir(self.folder) if re.fullmatch(r"\d{4,9}", name)]
        except FileNotFoundError:
            return []

    def _with_state(self, job: Job) -> Job:
        cancelled = (job.folder / "cancel").exists()
        process = _read(job.folder / "process.json")
        if process is None:
            if cancelled:
                return replace(job, state="cancelled")
            return replace(job, state="skipped") if self._is_skipped(job) else job
        job = replace(job, pid=process.get("pid"), started=process.get("time"))
        end = _read(job.folder / "end.json")
        if end is None and start_time(process["pid"]) == process["started"]:
            return replace(job, state="stopping" if cancelled else "running")
        end = end or _read(job.folder / "end.json")  # it may have ended in between
        code = end.get("exit_code") if end else None
        state: State = "done" if code in DONE_CODES else "failed"
        if cancelled and state == "failed":
            state = "cancelled"
        return replace(job, state=state, exit_code=code, ended=end.get("time") if end else None)

    def _is_skipped(self, job: Job) -> bool:
        """Whether what it waits for will never succeed."""
        if job.after is None:
            return False
        try:
            before = self.get(job.after)
        except InputError:
            return True
        return before.has_ended and before.exit_code != 0


def _read(path: Path) -> dict[str, Any] | None:
    """The object in a small file, None where nothing, or not all, was written yet."""
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value


def _descendants(pid: int) -> list[int]:
    pids = [pid]
    for parent in pids:
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{parent}/task/{parent}/children").read_text()
            pids += [int(child) for child in text.split()]
    return pids[1:]
