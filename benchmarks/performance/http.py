"""A server program on this machine -> started and stopped; an artifact behind `edgeft serve` -> timed.

    with HTTPServer("llama-server", [program, "--port", str(port)], port):
        ...                                                    # it answers requests now

    with ServerProcess(Path("q4_k_m.gguf"), threads=2, context=400) as model:
        model.run(Workload(prompt=256, new=64, clients=4), number=1).ttft      # four, in seconds

`ServerProcess` runs the same workloads as `edgeft.benchmarks.performance.process.RuntimeProcess` does
without a server; it adds HTTP, JSON and the server's queue.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from edgeft.benchmarks.performance.process import (
    ArtifactProcess,
    Run,
    Workload,
    prepare,
    prompt_text,
)
from edgeft.errors import EdgeftError

SERVE = (
    "import ctypes, signal; ctypes.CDLL(None).prctl(1, signal.SIGTERM)\n"
    "from edgeft.cli import main\nmain()"
)
"""the edgeft command, in a process that ends with its parent (prctl(2): PR_SET_PDEATHSIG)"""
READY_POLL_S = 0.01
START_TIMEOUT_S = 600.0
STOP_TIMEOUT_S = 30.0
REQUEST_TIMEOUT_S = 600.0
"""seconds without a byte after which a request fails"""


class HTTPServer:
    """A server program that is asked to end when the block ends, and killed if it does not."""

    def __init__(self, name: str, command: list[str], port: int = 0) -> None:
        """Start the program; `name` is used in errors.

        `port`: where it will listen; 0 = where it says, by a line with its address.
        """
        self.name, self.port = name, port
        # A file, not a pipe: a full pipe that nobody reads would stop the program. Both write to the
        # same offset, so the program appends.
        self._log = tempfile.TemporaryFile("a+b")  # noqa: SIM115 - closed by stop()
        self._started = time.perf_counter()
        self.process = subprocess.Popen(command, stdout=self._log, stderr=subprocess.STDOUT)

    def wait_ready(self, path: str = "/v1/models", timeout_s: float = START_TIMEOUT_S) -> float:
        """Seconds from the start until GET `path` gives 200.

        EdgeftError with the program's last line if it ends or takes longer than `timeout_s`.
        """
        while not ((self.port or self._read_port()) and self._answers(path)):
            waited = time.perf_counter() - self._started
            if self.process.poll() is not None or waited > timeout_s:
                lines = self._output().splitlines() or ["no output"]
                raise EdgeftError(f"{self.name} does not start: {lines[-1].strip()}")
            time.sleep(READY_POLL_S)
        return time.perf_counter() - self._started

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=REQUEST_TIMEOUT_S)

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _read_port(self) -> int:
        """The port of the first address that the program printed, 0 before that."""
        match = re.search(r"http://\S+:(\d+)", self._output())
        self.port = int(match[1]) if match else 0
        return self.port

    def _output(self) -> str:
        self._log.seek(0)
        return self._log.read().decode("utf-8", "replace")

    def _answers(self, path: str) -> bool:
        connection = self.connect()
        with (
            contextlib.closing(connection),
            contextlib.suppress(OSError, http.client.HTTPException),
        ):
            connection.request("GET", path)
            return connection.getresponse().status == 200
        return False


def free_port() -> int:
    """A port of this machine on which nothing listens at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as bound:
        return int(bound.getsockname()[1])


class ServerProcess(ArtifactProcess):
    """`edgeft serve` with one artifact on a free port of this machine."""

    def __init__(
        self, artifact: Path, threads: int | None = None, context: int | None = None, slots: int = 4
    ) -> None:
        prepare(artifact, threads)
        command = [sys.executable, "-P", "-c", SERVE, "serve", str(artifact), "--port", "0",
                   "--quiet", "--slots", str(slots)]  # fmt: skip
        command += ["--threads", str(threads)] if threads else []
        command += ["--context", str(context)] if context else []
        self._server = HTTPServer("edgeft serve", command)
        super().__init__(artifact, self._server.process)

    def loaded(self) -> float:
        """Seconds from the command to a server that answers."""
        try:
            return self._server.wait_ready("/health")
        except EdgeftError as error:
            raise EdgeftError(f"cannot measure {self.artifact}: {error.message}") from None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.port}"

    def run(self, workload: Workload, number: int) -> Run:
        prompts = []
        for client in range(workload.clients):
            text = prompt_text(workload.prompt, f"{number} {client}")
            ids = self._ask("POST", "/tokenize", {"content": text})["tokens"]
            prompts.append(ids[: workload.prompt])
        with ThreadPoolExecutor(workload.clients) as pool:
            started = time.perf_counter()
            times = list(pool.map(lambda ids: self._stream(ids, workload.new, started), prompts))
        return Run.of(times, [workload.new] * workload.clients)

    def close(self) -> None:
        self.process.kill()  # it has nothing to finish
        self._server.stop()

    def _stream(self, ids: list[int], new: int, started: float) -> list[float]:
        """Seconds from `started` to each piece of the answer."""
        body = {"prompt": ids, "max_tokens": new, "temperature": 0, "stream": True,
                "ignore_eos": True}  # fmt: skip
        with contextlib.closing(self._server.connect()) as connection:
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

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        with contextlib.closing(self._server.connect()) as connection:
            headers = {"Content-Type": "application/json"} if body else {}
            connection.request(method, path, json.dumps(body) if body else None, headers)
            return json.loads(connection.getresponse().read())
