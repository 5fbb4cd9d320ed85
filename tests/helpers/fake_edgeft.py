"""A program in place of `edgeft` for the tests of the studio's jobs: words -> output, files, an exit code.

python fake_edgeft.py train --output adapter [--loss] [--sleep SECONDS] [--exit CODE] [--noise]
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path


def main(words: list[str]) -> int:
    def value(flag: str, default: str = "") -> str:
        return words[words.index(flag) + 1] if flag in words else default

    def emit(event: str, **facts: object) -> None:
        print(
            json.dumps({"event": event, "time": time.time(), **facts}), file=sys.stderr, flush=True
        )

    emit("note", text=f"in {os.getcwd()}")
    print("a library says something", file=sys.stderr, flush=True)
    if words[0] == "serve":
        time.sleep(1)
        emit("note", text="serving fake on http://127.0.0.1:65000 (Ctrl-C ends it)")
        time.sleep(60)
    steps = int(value("--steps", "3"))
    try:
        for step in range(1, steps + 1):
            time.sleep(float(value("--sleep", os.environ.get("FAKE_SLEEP_S", "0"))))
            emit("progress", title=words[0], done=step, total=steps, tokens=step * 10, elapsed_s=1.0,
                 left_s=float(steps - step), values={"loss": 1 / step})  # fmt: skip
        if "--stubborn" in words:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            time.sleep(60)
    except KeyboardInterrupt:
        emit("note", text="stopped")
        return 130
    if "--kill" in words:
        os.kill(os.getpid(), signal.SIGKILL)
    if output := value("--output"):
        Path(output).mkdir(exist_ok=True)
    code = int(value("--exit", "0"))
    if code == 1:
        emit("error", message="no such file: chats.jsonl", hint="check --data", exit_code=1)
    else:
        print(json.dumps({"words": words}))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
