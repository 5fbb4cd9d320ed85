"""The side by side of 4-bit types: its program on a tiny model, and what its tables say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import Family

from edgeft.benchmarks.performance import latency
from edgeft.benchmarks.studies import four_bit
from edgeft.benchmarks.studies.four_bit import IMATRIX, Options, Row
from edgeft.records import Memory, Speed
from helpers.tiny import make_chats

ROWS = (
    Row("f16", "f16"),
    Row("q8_0", "q8_0"),
    Row("q4_0", "q4_0"),
    Row("q4_0, imatrix", "q4_0", "imatrix", options=IMATRIX, against="q4_0"),
    Row("unknown", "gptq-q9", "gptq", against="q4_0"),
)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    words = draw.choice(["on", "the", "lamp", "off", "room", "19"], 2000)
    (tmp_path / "text.txt").write_text(" ".join(words))
    return tmp_path / "text.txt"


def test_the_program(
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
    monkeypatch.setattr(four_bit, "ROWS", ROWS)
    arguments = ["--base", base, "--adapter", adapter, "--out", tmp_path / "out", "--text", text,
                 "--chunks", 3, "--chats", 10, "--validation", held, "--calibration", learned,
                 "--limit", 2, "--rounds", 0, "--threads", 1, "--merge-base", "w16"]  # fmt: skip
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
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.gguf")}
    assert len(made) == 5  # one of them the importance matrix
    with pytest.raises(SystemExit, match="nothing to measure on"):
        four_bit.main(["--base", str(base), "--out", str(tmp_path / "out")])
    four_bit.make(
        Options(str(base), tmp_path / "out", adapter, merge_base="w16", calibration=learned,
                validation=held, threads=1),
        four_bit.known(ROWS), (four_bit.Weighted(adapter),), str(base),
    )  # fmt: skip
    assert made == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.gguf")}


def test_without_an_adapter_the_text_is_left(tiny_base: Path, tmp_path: Path, text: Path) -> None:
    options = Options(str(tiny_base), tmp_path / "out", text=text, chunks=2, rounds=0, threads=1)
    results, on = four_bit.run(
        options, [row for row in four_bit.known(ROWS) if row.folder == "plain"]
    )
    assert set(on) == {"merge_base", "text"}
    cells = [line.split("|") for line in four_bit.table(results).splitlines()]
    assert [line[3].strip() for line in cells[2:]] == ["-"] * 3
    assert cells[2][6].strip() == "-" and "±" in cells[3][6]
    assert cells[3][-2].strip() == "-", "no speed was asked for"


def test_speeds_alternate(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def measure(artifact: Path, threads: int | None = None) -> tuple[Speed, Memory]:
        asked.append(artifact.name)
        return Speed(0, 0, 0, 100 + len(asked), 0, 0, 0), Memory(0, 0)

    monkeypatch.setattr(latency, "measure", measure)
    options = Options("base", Path("out"), rounds=3)
    found = four_bit.decode_speeds([Path("a"), Path("b")], options)
    assert asked == ["a", "b"] * 3
    assert found == [[101, 103, 105], [102, 104, 106]]
    assert four_bit._speed(found[0]) == "103 (101-105)"


def test_rows_of_a_folder_are_made_together() -> None:
    """They share a calibration, and no two of a folder have the same file name."""
    for row in four_bit.ROWS:
        mates = [other for other in four_bit.ROWS if other.folder == row.folder]
        assert all((mate.format, mate.options) == (row.format, row.options) for mate in mates)
        assert [mate.quant for mate in mates].count(row.quant) == 1
        assert row.against in ("", *(other.name for other in four_bit.ROWS))
    assert four_bit.ROWS[0].quant == "f16", "what the others are compared with"
