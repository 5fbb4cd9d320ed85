"""`edgeft search` on a tiny model: what fits, what passes, and what is said of the rest."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeft.benchmarks.options import EvalOptions
from edgeft.benchmarks.performance import latency
from edgeft.benchmarks.quality import evaluate
from edgeft.errors import FormatError, ProofError
from edgeft.export.options import ExportOptions
from edgeft.export.pipeline import export
from edgeft.records import Artifact, Memory, Speed
from edgeft.release import search
from edgeft.report import storage

SIZES: dict[str, tuple[int, float]] = {"q8_0": (90, 50), "q4_0": (60, 80), "q2_k": (50, 10)}
"""quantization -> megabytes at the peak and tokens per second, as if measured"""


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """80 questions; the answer is what f16 finds the likeliest."""
    folder = tmp_path_factory.mktemp("search")
    f16 = export(
        ExportOptions(out=folder, base=str(tiny_base), quants=("f16",), compare_live=False)
    )[0]
    path = folder / "items.jsonl"
    words = ["river", "boat", "house", "child", "stone", "lamp", "door", "bird"]
    rows = [{"prompt": f"{i} {words[i % 8]}", "answer": words[i % 8],
             "choices": [words[i % 8], words[(i + 3) % 8]]} for i in range(80)]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, rows)))
    asking = EvalOptions(str(path), scorer="choice")
    chosen = evaluate.measure(f16.path, evaluate.load_items(asking), asking)
    for row, reply in zip(rows, chosen.replies, strict=True):
        row["answer"] = reply
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    asked: list[str] = []

    def measure(artifact: Path, threads: int | None = None) -> tuple[Speed, Memory]:
        asked.append(artifact.stem)
        peak, tps = SIZES.get(artifact.stem, (120, 30))
        return Speed(0.1, 0.01, 1000, tps, 256, 64, 5), Memory(peak * 10**6, 10**7)

    monkeypatch.setattr(latency, "measure", measure)
    return asked


def test_fitting_candidates_are_gated_from_large_to_small(
    edgeft: Callable[..., Any], tiny_base: Path, items: Path, tmp_path: Path, timed: list[str]
) -> None:
    words = ("search", "--base", tiny_base, "--out", tmp_path / "out", "--items", items, "--scorer",
             "choice", "--quant", "q8_0,q4_0,q2_k", "--max-memory", "100M", "--min-tps", 20,
             "--report", tmp_path / "report")  # fmt: skip
    done = edgeft(*words, "--json")
    found = json.loads(done.out)
    assert timed == ["q8_0", "q4_0", "q2_k", "f16"]
    assert found["notes"][0] == "q2_k.gguf does not fit: 10 tokens/s, below --min-tps 20"
    arms = {arm["name"]: arm for arm in found["arms"]}
    assert arms["q8_0.gguf"]["verdict"]["outcome"] == "PASS", arms["q8_0.gguf"]["verdict"]
    assert "q2_k.gguf" not in arms and arms["f16.gguf"]["kind"] == "baseline"
    assert done.code == 0 and found["outcome"] == "PASS" and found["ship"] in arms
    assert storage.read(tmp_path / "report/report.json").ship == found["ship"]
    assert arms["q8_0.gguf"]["memory"]["peak"] == 90 * 10**6
    again = edgeft(*words)
    assert again.code == 0 and "PASS: ship" in again.out and "nothing to do" in again.err


def test_an_impossible_budget_and_wrong_options_are_errors(
    edgeft: Callable[..., Any], tiny_base: Path, items: Path, tmp_path: Path, timed: list[str]
) -> None:
    words = ("search", "--base", tiny_base, "--out", tmp_path / "out", "--quant", "q8_0")
    done = edgeft(*words, "--items", items, "--scorer", "choice", "--max-size", "1k")
    assert done.code == 1 and "nothing fits the budget" in done.err and timed == []
    for more, code, says in (
        (("--items", tmp_path / "none.jsonl"), 1, "no such suite or file"),
        (("--items", items, "--max-size", "big"), 2, "is no size"),
        (("--items", items, "--min-tps", "0"), 2, "min-tps"),
        (("--items", items, "--format", "guff"), 1, "gguf"),
    ):
        done = edgeft(*words, *more)
        assert done.code == code and says in done.err, done.err
    assert not list((tmp_path / "out").glob("*.partial*"))


def test_a_file_of_a_size_gets_that_of_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[tuple[str, ...], tuple[str, ...], int | None]] = []

    def record(options: ExportOptions) -> list[Artifact]:
        asked.append((options.formats, options.quants, options.max_size))
        return []

    monkeypatch.setattr(search, "export", record)
    options = ExportOptions(out=tmp_path, formats=("gguf", "onnx"), quants=("q8_0", "AUTO", "int4"))
    assert search._export_candidates(options, 5 * 10**7) == []
    assert asked == [(("gguf",), ("q8_0", "auto"), 5 * 10**7), (("onnx",), ("int4",), None)]
    with pytest.raises(FormatError, match="--quant auto needs --max-size"):
        search._check_formats(options, None)


def test_the_lineup_has_the_calibrated_type_where_there_are_chats(
    tiny_base: Path, tiny_chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ExportOptions(out=tmp_path, base=str(tiny_base))
    plain = search.lineup("gguf", options)
    assert "q4_0" in plain and "gptq-q4_0" not in plain
    assert "--calibration FILE" in capsys.readouterr().err
    with_chats = dataclasses.replace(options, calibration=tiny_chats)
    calibrated = search.lineup("gguf", with_chats)
    assert "gptq-q4_0" in calibrated and "q4_0" not in calibrated


def test_what_cannot_be_calibrated_is_tried_uncalibrated(
    tiny_base: Path, tiny_chats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[tuple[str, ...]] = []

    def refuse_gptq(options: ExportOptions) -> list[Artifact]:
        tried.append(options.quants)
        if "gptq-q4_0" in options.quants:
            raise ProofError("no GPTQ for this family")
        return []

    monkeypatch.setattr(search, "export", refuse_gptq)
    options = ExportOptions(out=tmp_path, base=str(tiny_base), calibration=tiny_chats)
    assert search._export_candidates(options) == []
    assert ["gptq-q4_0" in quants for quants in tried] == [True, False]
    assert "q4_0" in tried[1] and len(tried[0]) == len(tried[1])
