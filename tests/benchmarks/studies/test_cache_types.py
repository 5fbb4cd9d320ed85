"""The study of cache types on a tiny model: its rows, and that speculation changes no answer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgeft.benchmarks.studies import cache_types
from helpers.serving import exported
from helpers.tiny import make_base


def test_every_type_is_a_row_and_speculation_changes_no_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (path,) = exported(make_base(tmp_path / "base", hidden=128), tmp_path, "q8_0")
    chats = tmp_path / "chats.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": f"lamp {i} on"},
                      {"role": "assistant", "content": "on"}]}
        for i in range(2)
    ]  # fmt: skip
    chats.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cache_types.main([str(path), str(chats), "--tokens", "12", "--threads", "1"])
    *table, facts = capsys.readouterr().out.splitlines()
    body = [
        line.split("|")[1:-1] for line in table if line.startswith("| ") and "cache" not in line
    ]
    assert [line[0].strip() for line in body] == [
        "f16", *["q8_0-f16"] * 2, *["q8_0"] * 2, *["q4_0"] * 2
    ]  # fmt: skip
    assert {line[9].strip() for line in body} == {"2 of 2"}
    kl = [row["kl"] for row in json.loads(facts)["rows"]]
    assert kl[0] == 0 and 0 < kl[1] < kl[-1]


def test_the_divergence_is_that_of_the_definition() -> None:
    p, q = np.array([[0.5, 0.5], [0.9, 0.1]]), np.array([[0.25, 0.75], [0.9, 0.1]])
    rows, others = np.log(p).astype(np.float32) + 3, np.log(q).astype(np.float32) - 1
    expected = (p * np.log(p / q)).sum(axis=1).mean()
    assert cache_types.divergence(rows, others) == pytest.approx(expected, rel=1e-5)
