"""The study of servers times edgeft serve with a tiny model."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from edgeft.benchmarks.performance.http import HTTPServer, free_port
from edgeft.benchmarks.studies.servers import EDGEFT, Options, commands, one_round
from helpers.serving import exported


def test_a_round_of_two_clients(tiny_base: Path, tmp_path: Path) -> None:
    (artifact,) = exported(tiny_base, tmp_path, "f32")
    options = Options(artifact, threads=1, clients=(2,), tokens=8, prompt=6, context=256)
    ports = {name: free_port() for name in (*EDGEFT, "llama-cpp-python")}
    command = commands(options, ports)["edgeft"]
    with HTTPServer("edgeft", command, ports["edgeft"]) as server:
        assert server.wait_ready() > 0
        # In a thread: a browser of other tests may have a loop that runs in this one.
        with ThreadPoolExecutor(1) as pool:
            result = pool.submit(
                lambda: asyncio.run(one_round(options, ports["edgeft"], clients=2, seed=1))
            ).result()
    assert result.tps > 0 and result.decode > 0 and len(result.ttft) == 2
    assert server.process.returncode is not None
