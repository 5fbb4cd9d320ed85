"""The study of ONNX runs as a program on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeft.benchmarks.studies import onnx_rows, random_model
from edgeft.records import Memory, Speed
from helpers.tiny import make_chats


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Speeds without a process; the names of what was measured."""
    seen: list[str] = []

    def speed(path: Path, threads: int) -> tuple[Speed, Memory]:
        seen.append(path.name)
        return Speed(0.1, 0.01, 1000.0 + len(seen), 100.0, 256, 64, 5), Memory(10**8, 10**7)

    monkeypatch.setattr(onnx_rows.latency, "measure", speed)
    return seen


@pytest.mark.slow
def test_program_measures_every_row(
    tmp_path: Path,
    measured: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(onnx_rows, "BUILDER", {"builder's int4": []})
    random_model.make_model(tmp_path, random_model.SHAPES["qwen2-tiny"])
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    text, chats = tmp_path / "text.txt", make_chats(tmp_path / "chats.jsonl", 6)
    text.write_text("turn on the lamp in room 17, then the other one. " * 200)
    onnx_rows.main([
        "--base", str(base), "--adapter", str(adapter), "--out", str(tmp_path / "out"),
        "--text", str(text), "--chunks", "2", "--validation", str(chats), "--rounds", "2",
        "--limit", "2", "--row", "q4_0", "--row", "onnx int4", "--row", "onnx f32",
    ])  # fmt: skip
    out = capsys.readouterr().out
    line = json.loads(out.splitlines()[-1])
    names = ["torch f32", "q4_0", "onnx f32", "onnx int4", *onnx_rows.BUILDER]
    assert [row["name"] for row in line["rows"]] == names
    assert all(name in out for name in names)
    assert len(measured) == 2 * len(names) and measured[: len(names)] == measured[len(names) :]
    reference, _, whole, rounded, *built = line["rows"]
    assert reference["text"] is None and reference["accuracy"] is not None
    assert whole["text"]["kl"]["value"] < rounded["text"]["kl"]["value"] / 10
    assert whole["chats"]["kl"]["value"] < built[0]["chats"]["kl"]["value"] / 10
    assert whole["prefill_tps"] == [1003.0, 1003.0 + len(names)]
    assert f"{whole['prefill_tps'][0] + len(names) / 2:.0f} (1003-" in out
