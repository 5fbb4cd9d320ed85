"""A job's folder and a command -> the command's output in files of that folder, and how it ended.

    python job_process.py FOLDER PROGRAM ARGUMENT...

    process.json    written first: this process, by its id and start time
    output.txt      stdout of the command
    progress.jsonl  lines of stderr that are JSON objects
    log.txt         all other lines of stderr
    end.json        written last: {"exit_code": …, "time": …}

The studio starts it in a session of its own, so that the job outlives the studio. Signals for the whole
group reach the command; this process waits for the command and writes down its end. It imports the
standard library only: it takes 10 MB beside the job.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

END_BYTES = 200
"""reserved for end.json at the start: a full disk cannot keep the end from being written down"""
DRAIN_S = 5.0
"""seconds for the last lines after the command's end; what it has started may hold its stderr open"""
PR_SET_PDEATHSIG = 1
INTERRUPTED = 130
"""exit code of a command that was interrupted"""


def start_time(pid: int | str) -> int:
    """When a process started, in ticks since the boot (proc(5)), 0 where there is none; zombies have ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] == "Z" else int(fields[19])


def main(folder: Path, command: list[str]) -> None:
    claim = folder / f".process-{os.getpid()}"
    facts = {"pid": os.getpid(), "started": start_time(os.getpid()), "time": time.time()}
    claim.write_text(json.dumps(facts))
    try:
        os.link(claim, folder / "process.json")
    except FileExistsError:
        return  # it runs or ran already
    finally:
        claim.unlink()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # unlike SIG_IGN, the command does not inherit it
    with (folder / "end.json").open("w+", encoding="utf-8") as end:
        end.write(" " * END_BYTES)
        end.flush()
        # Cancelled between its start and its claim: the studio already calls it so.
        code = INTERRUPTED if (folder / "cancel").exists() else run(folder, command)
        end.seek(0)
        end.write(json.dumps({"exit_code": code, "time": time.time()}).ljust(END_BYTES))


def run(folder: Path, command: list[str]) -> int:
    """Exit code of the command; minus the signal's number where one ended it."""
    try:
        with (folder / "output.txt").open("wb") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.PIPE,
                preexec_fn=end_with_parent,  # noqa: PLW1509 - there are no threads yet
            )
    except OSError as error:
        with contextlib.suppress(OSError):
            (folder / "log.txt").write_text(f"{command[0]}: {error.strerror}\n")
        return 127
    reader = threading.Thread(target=sort_lines, args=(process.stderr, folder), daemon=True)
    reader.start()
    code = process.wait()
    reader.join(DRAIN_S)
    return code


def end_with_parent() -> None:
    """In the command's process: SIGTERM for it where this process is killed."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def sort_lines(stderr: IO[bytes], folder: Path) -> None:
    """JSON lines into progress.jsonl, others into log.txt. On a full disk lines are lost, the job goes on."""
    with (
        (folder / "progress.jsonl").open("ab", 0) as progress,
        (folder / "log.txt").open("ab", 0) as log,
    ):
        for line in stderr:
            with contextlib.suppress(OSError):
                (progress if is_object(line) else log).write(line)


def is_object(line: bytes) -> bool:
    if not line.startswith(b"{"):
        return False
    try:
        value: Any = json.loads(line)
    except ValueError:
        return False
    return isinstance(value, dict)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
