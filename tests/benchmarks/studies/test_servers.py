"""What the benchmark of servers reads from a stream, and a short soak of the tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgeft.benchmarks.studies import soak
from edgeft.benchmarks.studies.servers import OWN, Options, Reply, body, commands, quantile
from helpers.serving import exported


def line(text: str, finish: str | None = None) -> bytes:
    choices: Any = [{"text": text, "finish_reason": finish}]
    return b"data: " + json.dumps({"choices": choices}).encode()


def test_tokens_and_times_of_a_stream() -> None:
    reply = Reply(200, [0.1, 0.2, 0.3, 0.4], [line("a"), line(""), line("b"), line("", "length")])
    assert reply.texts() == [0.1, 0.3]
    assert reply.tokens(32) == 32
    reply.lines[-1] = line("", "stop")
    assert reply.tokens(32) == 2


def test_quantiles() -> None:
    values = [float(i) for i in range(1, 21)]
    assert [quantile(values, share) for share in (0.05, 0.5, 0.95, 1)] == [1, 10, 19, 20]
    assert quantile([3.0], 0.95) == 3


def test_no_two_prompts_begin_alike() -> None:
    options = Options(Path("x.gguf"), 2)
    prompts = [body(options, seed)["prompt"] for seed in range(50)]
    assert len({prompt.split()[0] for prompt in prompts}) == 50
    ports = dict.fromkeys((*OWN, "llama-cpp-python", "llama-server"), 1)
    assert list(commands(options, ports)) == [*OWN, "llama-cpp-python"]


@pytest.mark.slow
def test_a_short_soak(tiny_base: Path, tmp_path: Path) -> None:
    (artifact,) = exported(tiny_base, tmp_path, "f32")
    result = soak.run(artifact, 1, 5.0)
    assert result["crashes"] == result["stuck"] == 0
    assert result["requests"] > 30 and result["left"] > 3
    assert {"200", "400", "413"} <= set(result["statuses"])
