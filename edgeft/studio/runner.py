"""The jobs of a workspace -> their processes: starts what waits, ends what is to be cancelled.

    with Runner(jobs, workspace, ["python", "-m", "edgeft"]):
        …

One job of the lane `work` runs at a time, since each uses all cores; a few quick ones and services run beside
it. When the studio ends, running jobs go on; the next studio finds them by their files.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from edgeft.progress import say
from edgeft.studio import job_process
from edgeft.studio.jobs import Job, Jobs

SLOTS = {"work": 1, "quick": 4, "service": 4}
"""jobs at a time"""
INTERVAL_S = 0.25
"""between two looks at the jobs"""
PATIENCE_S = 15.0
"""that a job has after SIGINT, and again after SIGTERM"""
START_S = 10.0
"""for a started process to write down that it runs"""


class Runner:
    def __init__(
        self,
        jobs: Jobs,
        workspace: Path,
        program: Sequence[str],
        flags: Callable[[Sequence[str]], Sequence[str]] = lambda words: (),
    ) -> None:
        """`program`: the words before those of a job; `flags`: more words after them."""
        self._jobs, self._workspace, self._program, self._flags = (
            jobs,
            workspace,
            list(program),
            flags,
        )
        self._starting: dict[int, tuple[subprocess.Popen[bytes], float]] = {}
        self._signals: dict[int, tuple[int, float]] = {}
        """job -> (signals sent, when the last one)"""
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(INTERVAL_S):
            try:
                self.look()
            except OSError as error:  # a full disk, or a workspace that was taken away
                say(f"studio: {error}")
                self._end.wait(5)

    def look(self) -> None:
        """Start and stop what is due now."""
        jobs = self._jobs.all()
        for process, _ in self._starting.values():
            process.poll()  # no zombies
        running = [job for job in jobs if job.state in ("running", "stopping")]
        ids = {job.id for job in running}
        since = time.monotonic() - START_S
        self._starting = {
            number: (process, started)
            for number, (process, started) in self._starting.items()
            if process.poll() is None or (number not in ids and started > since)
        }
        busy = dict.fromkeys(SLOTS, 0)
        for job in jobs:
            busy[job.lane] += job.id in ids or (job.state == "waiting" and job.id in self._starting)
        for job in reversed(jobs):
            if job.state == "stopping":
                self._stop(job)
            ready = job.state == "waiting" and job.id not in self._starting and self._is_next(job)
            if ready and busy[job.lane] < SLOTS[job.lane]:
                busy[job.lane] += 1
                self._start(job)

    def _is_next(self, job: Job) -> bool:
        return job.after is None or self._jobs.get(job.after).exit_code == 0

    def _start(self, job: Job) -> None:
        words = [*self._program, *job.words, *self._flags(job.words)]
        process = subprocess.Popen(
            [sys.executable, "-IS", job_process.__file__, str(job.folder), *words],
            cwd=self._workspace,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        self._starting[job.id] = process, time.monotonic()

    def _stop(self, job: Job) -> None:
        """SIGINT as Ctrl-C does, later SIGTERM, at last SIGKILL, to all processes of the job."""
        sent, last = self._signals.get(job.id, (0, 0.0))
        now = time.monotonic()
        if sent < 3 and (not sent or now - last > PATIENCE_S) and job.pid:
            number = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)[sent]
            self._signals[job.id] = sent + 1, now
            with contextlib.suppress(ProcessLookupError):
                os.killpg(job.pid, number)
