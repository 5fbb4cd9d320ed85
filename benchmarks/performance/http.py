"""One artifact behind `edgeft serve`, timed as its clients see it: the stream over HTTP.

    with Served(Path("q4_k_m.gguf"), threads=2, context=400) as model:
        model.run(Use(prompt=256, new=64, clients=4), number=1).ttft      # four, in seconds

The same questions as `edgeft.benchmarks.performance.process.Timed` asks in the process itself; what is more here is
HTTP, JSON and the server's queue.
"""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from edgeft.benchmarks.performance.process import Child, Run, Use, asked_for, prepare
from edgeft.errors import EdgeftError

START = (
    "import ctypes, signal; ctypes.CDLL(None).prctl(1, signal.SIGTERM)\n"
    "from edgeft.cli import main\nmain()"
)
"""the server ends with whoever started it (prctl(2): PR_SET_PDEATHSIG)"""
PATIENCE = 600.0
"""s until a server must have said the next thing"""


class Served(Child):
    """A server of its own on a free port of this machine."""

    def __init__(
        self, artifact: Path, threads: int | None = None, context: int | None = None, slots: int = 4
    ) -> None:
        prepare(artifact, threads)
        command = [sys.executable, "-P", "-c", START, "serve", str(artifact), "--port", "0",
                   "--quiet", "--slots", str(slots)]  # fmt: skip
        command += ["--threads", str(threads)] if threads else []
        command += ["--context", str(context)] if context else []
        self._started = time.perf_counter()
        self._port = 0
        super().__init__(artifact, subprocess.Popen(command, stderr=subprocess.PIPE, text=True))

    def loaded(self) -> float:
        """Seconds from the command to a server that answers."""
        said = ""
        for line in self.process.stderr or ():
            said = line
            if match := re.search(r"http://\S+:(\d+)", line):
                self._port = int(match[1])
                self._ask("GET", "/health")
                return time.perf_counter() - self._started
        raise EdgeftError(f"cannot measure {self.artifact}: {said.strip()}")

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def run(self, use: Use, number: int) -> Run:
        prompts = []
        for client in range(use.clients):
            text = asked_for(use.prompt, f"{number} {client}")
            prompts.append(
                self._ask("POST", "/tokenize", {"content": text})["tokens"][: use.prompt]
            )
        with ThreadPoolExecutor(use.clients) as pool:
            started = time.perf_counter()
            times = list(pool.map(lambda ids: self._stream(ids, use.new, started), prompts))
        return Run.of(times, [use.new] * use.clients)

    def _stream(self, ids: list[int], new: int, started: float) -> list[float]:
        """When each piece of the answer came."""
        body = {"prompt": ids, "max_tokens": new, "temperature": 0, "stream": True,
                "ignore_eos": True}  # fmt: skip
        connection = self._connect()
        try:
            connection.request("POST", "/v1/completions", json.dumps(body),
                               {"Content-Type": "application/json"})  # fmt: skip
            reply = connection.getresponse()
            if reply.status != 200:
                raise EdgeftError(f"{self.artifact}: {reply.status} {reply.read(500)!r}")
            times = []
            for line in reply:
                if line.startswith(b"data: {") and json.loads(line[6:]).get("choices"):
                    times.append(time.perf_counter() - started)
            return times
        finally:
            connection.close()

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        connection = self._connect()
        try:
            headers = {"Content-Type": "application/json"} if body else {}
            connection.request(method, path, json.dumps(body) if body else None, headers)
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE)
