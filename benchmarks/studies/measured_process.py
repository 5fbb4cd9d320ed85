"""A command -> its wall time and its largest memory, sampled while it runs."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgeft.errors import InputError
from edgeft.machine import kilobytes


@dataclass(frozen=True)
class Step:
    """One finished process."""

    seconds: float
    anonymous: int
    """bytes; largest RssAnon that was sampled"""
    resident: int
    """bytes; largest resident set (VmHWM), with the pages of mapped files"""


def run(
    command: list[str], environment: Mapping[str, str] | None = None, output: Path | None = None
) -> Step:
    """Run a command to its end and sample its memory every 10 ms; InputError if it fails.

    `environment`: in place of this process's own. `output`: file for what the command prints to stdout.
    """
    started, anonymous, resident = time.perf_counter(), 0, 0
    with tempfile.TemporaryFile("w+") as log, contextlib.ExitStack() as files:
        stdout = files.enter_context(output.open("w")) if output else log
        child = subprocess.Popen(command, stdout=stdout, stderr=log, text=True, env=environment)
        while child.poll() is None:
            sizes = kilobytes(f"/proc/{child.pid}/status")
            anonymous = max(anonymous, sizes.get("RssAnon", 0))
            # Not ru_maxrss, which begins with the peak of this process.
            resident = max(resident, sizes.get("VmHWM", 0))
            time.sleep(0.01)
        seconds = time.perf_counter() - started
        if child.returncode:
            log.seek(0)
            raise InputError(f"{command[:4]} failed: {log.read()[-800:]}")
    return Step(seconds, anonymous, resident)
