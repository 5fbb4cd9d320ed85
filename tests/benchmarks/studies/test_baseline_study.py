"""The study of the baseline: which commands run, what is kept of their answers, when the word agrees."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from edgeft.benchmarks.studies import baseline

pytestmark = pytest.mark.unit


def baseline_json(word: str, accuracy: float, pick: str = "similar") -> dict[str, Any]:
    attempt = {"few_shot": {"shots": 4, "pick": pick}, "accuracy": accuracy, "interval": [0.1, 0.3]}
    advice = {"word": word, "proven": True, "reasons": ["because."], "attempt": attempt}
    return {"target": 0.9, "advice": advice, "attempts": [attempt]}


def bench_json(right: int) -> dict[str, Any]:
    values = [1.0] * right + [0.0] * (20 - right)
    paths = [f"out/{quant}.gguf" for quant in baseline.QUANTS]
    return {"rows": [{"path": path, "score": {"values": values}} for path in paths]}


@pytest.mark.parametrize(
    ("word", "confirmed", "right", "agrees"),
    [
        ("fine-tune", 0.2, 18, True),
        ("fine-tune", 0.95, 18, False),  # the base reaches the target
        ("fine-tune", 0.5, 12, False),  # chance explains what the training brings
        ("few-shot", 0.95, 0, True),
        ("few-shot", 0.5, 20, False),
    ],
)
def test_the_word_agrees_where_test_rows_say_the_same(
    word: str, confirmed: float, right: int, agrees: bool
) -> None:
    row = baseline.row_of(
        "task", baseline_json(word, 0.2), baseline_json(word, confirmed),
        baseline.values_of(bench_json(right)),
    )  # fmt: skip
    assert row.agrees == agrees and row.way == "4 similar"
    assert row.trained == dict.fromkeys(baseline.QUANTS, right / 20)
    line = baseline.table([row]).splitlines()[-1]
    assert f"| {word} " in line and "-70.0 points" in line
    assert line.rstrip(" |").endswith("yes" if agrees else "no")


def test_the_commands_of_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, ...]] = []

    def edgeft(*words: Any) -> str:
        ran.append(tuple(map(str, words)))
        said = bench_json(20) if words[0] == "bench" else baseline_json("fine-tune", 0.1)
        return json.dumps(said)

    monkeypatch.setattr(baseline, "edgeft", edgeft)
    options = argparse.Namespace(
        base="b", target=0.9, limit=50, shots="0,4", steps=None, threads=1, out=tmp_path
    )
    row = baseline.measure("order_number", options)
    assert [command[0] for command in ran] == [
        "baseline", "baseline", "train-qlora", "merge-export", "bench",
    ]  # fmt: skip
    first, confirm, train, _, bench = map(" ".join, ran)
    tasks = tmp_path / "tasks" / "order_number"
    assert f"--validation-data {tasks / 'validation.jsonl'}" in first and "--shots 0,4" in first
    assert f"--validation-data {tasks / 'test.jsonl'}" in confirm and "--limit 50" in confirm
    assert "--shots 4 --pick similar" in confirm and "--steps 100" in train
    assert f"--items {tasks / 'test.jsonl'}" in bench and "--scorer exact" in bench
    assert (tmp_path / "order_number" / "instructions.txt").read_text().startswith("Answer with")
    assert row.agrees and row.trained["gptq-q4_0"] == 1
