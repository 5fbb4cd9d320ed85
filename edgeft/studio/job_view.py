"""A job -> what the pages say of it: its line, bars, verdict, what it serves, and what to do next."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from edgeft.studio.forms import shell_line
from edgeft.studio.jobs import Job
from edgeft.studio.render import URL
from edgeft.studio.words import Words
from edgeft.train.options import WORK_SUFFIX

VERDICTS: dict[str, dict[int | None, str]] = {
    "ab": {0: "pass", 3: "fail", 4: "inconclusive"},
    "search": {0: "pass", 3: "fail", 4: "inconclusive"},
    "data check": {3: "mistake"},
    "verify": {3: "fail"},
}
"""command -> exit code -> what it says"""
RESUMABLE = ("train", "train-qlora")


def job_view(job: Job) -> dict[str, Any]:
    """The facts of a job for a page or as JSON."""
    end = job.ended or (time.time() if job.started and not job.has_ended else None)
    bars = _bars(job)
    return {
        "id": job.id,
        "words": job.words,
        "command": job.command,
        "line": shell_line(job.words),
        "page": job.page,
        "form": job.form,
        "created": job.created,
        "after": job.after,
        "state": job.state,
        "has_ended": job.has_ended,
        "exit_code": job.exit_code,
        "took": end - job.started if job.started and end else None,
        "verdict": VERDICTS.get(job.command, {}).get(
            job.exit_code if job.state == "done" else None
        ),
        "problem": job.problem(),
        "bars": bars,
        "bar": bars[-1] if bars and not job.has_ended else None,
        "url": service_url(job),
    }


def job_brief(job: Job) -> dict[str, Any]:
    """What changes of a job, for the event stream. Of one that has ended no file is read."""
    bars = [] if job.has_ended else _bars(job)
    bar = [bars[-1].get("done"), bars[-1].get("total")] if bars else None
    return {"id": job.id, "state": job.state, "bar": bar, "url": service_url(job)}


def _bars(job: Job) -> list[dict[str, Any]]:
    """The newest state of each work that the job counts, the newest last."""
    bars: dict[str, dict[str, Any]] = {}
    for line in job.last_lines():
        if line.get("event") == "progress" and line.get("total"):
            bars.pop(str(line.get("title")), None)
            bars[str(line.get("title"))] = line
    return list(bars.values())


def service_url(job: Job) -> str:
    """The address that a running job serves, "" for none yet."""
    if job.state != "running" or job.lane != "service" and "--human" not in job.words:
        return ""
    for line in job.last_lines():
        if line.get("event") == "note" and (match := URL.search(str(line.get("text", "")))):
            return match[0]
    return ""


def can_resume(job: Job, root: Path) -> bool:
    """Whether the job is a training that was stopped and left a checkpoint."""
    output = option(job, "--output")
    stopped = job.state in ("cancelled", "failed") and job.command in RESUMABLE and output
    return bool(stopped) and any((root / f"{output}{WORK_SUFFIX}").glob("checkpoint-*"))


def option(job: Job, flag: str) -> str:
    """The value of an option of the job, "" where it was not typed."""
    return next((job.words[i + 1] for i, word in enumerate(job.words[:-1]) if word == flag), "")


def next_links(job: Job, words: Words, root: Path) -> list[dict[str, Any]]:
    """What to do with the result."""
    link: Callable[..., dict[str, Any]] = lambda text, href, new=False: {
        "text": f"{text} →",
        "href": href,
        "new": new,
    }
    if url := service_url(job):
        return [link(words("chat.open" if job.lane == "service" else "tab.human"), url, True)]
    if job.state != "done":
        return []
    links = []
    output = option(job, "--output")
    if job.command in RESUMABLE and "--preview" not in job.words:
        links.append(link(words("nav.export"), f"/export?adapter={quote(output)}"))
    if job.command == "data split":
        links.append(link(words("nav.train"), f"/train?data={quote(f'{output}/train.jsonl')}"
                          f"&validation_data={quote(f'{output}/validation.jsonl')}"))  # fmt: skip
    if job.command in ("data clean", "data mix"):
        links.append(link(words("nav.train"), f"/train?data={quote(output)}"))
    if job.command == "data label":
        links.append(link(words("nav.train"), f"/train?data={quote(output)}&objective=dpo"))
    if job.command == "data check" and (data := job.values.get("data")):
        links.append(link(words("tab.clean"), f"/data?form=clean&data={quote(str(data[0]))}"))
    if job.command == "merge-export":
        result = job.result() or {}
        paths = [str(row["path"]) for row in result.get("artifacts", ())]
        query = "&".join(f"artifacts={quote(path)}" for path in paths)
        links.append(link(words("nav.chat"), f"/chat?{query}"))
        links.append(link(words("tab.ab"), f"/measure?form=ab&{query}"))
    if (folder := option(job, "--report")) and (root / folder / "report.html").is_file():
        links.append(link(words("file.page"), f"/raw/{quote(folder)}/report.html", True))
    return links
