"""The study of 4-bit types runs as a program on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import Family

from edgeft.benchmarks.studies import four_bit
from edgeft.benchmarks.studies.four_bit import IMATRIX, Variant
from helpers.tiny import make_chats

VARIANTS = (
    Variant("f16", "f16"),
    Variant("q8_0", "q8_0"),
    Variant("q4_0", "q4_0"),
    Variant("q4_0, imatrix", "q4_0", "imatrix", options=IMATRIX, against="q4_0"),
    Variant("unknown", "gptq-q9", "gptq", against="q4_0"),
)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    words = draw.choice(["on", "the", "lamp", "off", "room", "19"], 2000)
    (tmp_path / "text.txt").write_text(" ".join(words))
    return tmp_path / "text.txt"


@pytest.mark.slow
def test_program_prints_both_tables_and_json(
    make: Family,
    tmp_path: Path,
    text: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base, adapter, _ = make("llama")
    learned, held = make_chats(tmp_path / "chats.jsonl", 24), tmp_path / "held.jsonl"
    lines = learned.read_text().splitlines(keepends=True)
    learned.write_text("".join(lines[:12]))
    held.write_text("".join(lines[12:]))
    monkeypatch.setattr(four_bit, "VARIANTS", VARIANTS)
    arguments = ["--base", base, "--adapter", adapter, "--out", tmp_path / "out", "--text", text,
                 "--chunks", 3, "--chats", 10, "--validation", held, "--calibration", learned,
                 "--limit", 2, "--rounds", 0, "--threads", 1, "--base-precision", "stored"]  # fmt: skip
    four_bit.main([str(argument) for argument in arguments])
    out = capsys.readouterr().out
    found = json.loads(out.splitlines()[-1])
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == ["f16", "q8_0", "q4_0", "q4_0, imatrix"], "the others are not known"
    assert rows["f16"]["chats"] is None and rows["f16"]["bytes"] > rows["q4_0"]["bytes"]
    for name in ("chats", "text"):
        large = rows["q4_0"][name]["kl"]["value"]
        assert 0 < rows["q8_0"][name]["kl"]["value"] < 0.1 * large
        assert rows["q4_0"][name]["tokens"] == found["on"][name]["tokens"]
    assert found["on"]["text"]["tokens"] == 3 * 255
    assert found["on"]["chats"]["count"] == 10
    assert found["on"]["items"] == {"name": "smart_home", "count": 2}
    assert rows["q4_0"]["text"]["kl"] != rows["q4_0, imatrix"]["text"]["kl"]
    (versus,) = found["versus"]
    assert (versus["name"], versus["against"]) == ("q4_0, imatrix", "q4_0")
    ratio = rows["q4_0, imatrix"]["text"]["kl"]["value"] / rows["q4_0"]["text"]["kl"]["value"]
    assert versus["text"]["kl_ratio"]["value"] == pytest.approx(ratio)
    assert versus["task"] == {"won": 0, "lost": 0, "mid_p": 1.0}
    assert f" {ratio:.2f} (" in out and "| q4_0, imatrix / q4_0 |" in out
