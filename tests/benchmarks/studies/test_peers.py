"""The study of peers: processes that answer a prompt a line, and its tables."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edgeft.benchmarks.studies import peers, server_memory, servers
from edgeft.errors import EdgeftError
from edgeft.merge.view import open_merged
from helpers.converting import convert
from helpers.serving import exported

OPTIONS = servers.Options(Path("m.gguf"), threads=1, tokens=5, prompt=3)
FAKE = """
import json, sys, time
print("hello")
print("ready", flush=True)
def answer(prompt, tokens):
    assert prompt.startswith("7 ") and sys.argv[1:] == ["model", "1"]
    now = time.perf_counter()
    return [now + .5 + .1 * i for i in range(tokens)]
"""


def test_a_worker_answers_with_the_times_of_its_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(peers.WORKERS, "fake", FAKE)
    with peers.WorkerPeer("fake", sys.executable, Path("model"), OPTIONS) as worker:
        worker.wait_ready()
        answer = worker.ask(7)
        assert answer.ttft == pytest.approx(0.5, abs=0.1)
        assert answer.decode == pytest.approx(10)
        assert peers.resident_peak(worker.pid) > 1e6
    with pytest.raises(ProcessLookupError):
        os.kill(worker.pid, 0)


def test_a_worker_that_ends_is_an_error_with_its_last_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(peers.WORKERS, "fake", "raise SystemExit('no such package')\n")
    with (
        peers.WorkerPeer("fake", sys.executable, Path("model"), OPTIONS) as worker,
        pytest.raises(EdgeftError, match="fake ended: no such package"),
    ):
        worker.wait_ready()


def test_every_program_is_python() -> None:
    for name, program in peers.WORKERS.items():
        compile(program + peers.LOOP, name, "exec")


def test_the_tables() -> None:
    answers = [{"ttft": 0.5, "decode": rate} for rate in (8, 10, 12)]
    facts = {"answers": answers, "peak": 2**21}
    slow = facts | {"answers": [{"ttft": 1.0, "decode": 5}]}
    lines = peers.table({"edgeft": facts, "other": slow}).splitlines()
    assert "10.0 (8.0-12.0)" in lines[2] and "0.500 s" in lines[2]
    assert [cell.strip() for cell in lines[3].split("|")[1:-1]] == [
        "other", "5.0 (5.0-5.0)", "0.50", "1.000 s", "2"
    ]  # fmt: skip
    options = server_memory.Options(Path("m.gguf"), 1, llama_server="llama-server")
    one = {"rounds": [2**20] * 4, "peak": 3 * 2**20, "anonymous": 2**20}
    table = server_memory.table(options, {"edgeft": one, "llama-server": one | {"peak": 2**20 * 2}})
    assert "1.50" in table.splitlines()[2] and "4 x 3883 tokens" in table
    made = server_memory.commands(options, 8080)
    assert list(made) == [*server_memory.EDGEFT, *server_memory.LLAMA_SERVER]


@pytest.mark.slow
def test_onnx_runtime_genai_answers(tiny_base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "onnx"
    folder.mkdir()
    convert(open_merged(tiny_base, None), folder, "f32", format="onnx", threads=1)
    with peers.WorkerPeer("ONNX Runtime GenAI", sys.executable, folder, OPTIONS) as worker:
        worker.wait_ready()
        answer = worker.ask(1)
    assert answer.ttft > 0 and answer.decode > 0


@pytest.mark.slow
def test_the_memory_of_edgeft_serve_grows_with_the_prompts(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_memory, "EDGEFT", {"edgeft": []})
    (artifact,) = exported(tiny_base, tmp_path, "f32")
    options = server_memory.Options(artifact, 1, slots=2, context=512)
    # In a thread: a browser of other tests may have a loop that runs in this one.
    with ThreadPoolExecutor(1) as pool:
        facts = pool.submit(server_memory.run, options).result()["edgeft"]
    assert len(facts["rounds"]) == 4
    assert 0 < facts["anonymous"] < facts["rounds"][-1] <= facts["peak"]
