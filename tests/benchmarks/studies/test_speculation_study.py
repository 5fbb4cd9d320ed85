"""The study of speculation on a tiny model: its rows, and that no answer changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeft.benchmarks.studies import speculation
from helpers.serving import exported
from helpers.tiny import make_base


def test_every_way_to_guess_is_a_row_of_every_task(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speculation, "COPY_WORDS", 4)
    target, draft = exported(make_base(tmp_path / "base", hidden=128), tmp_path, "q8_0", "f16")
    chats = tmp_path / "lamps.jsonl"
    row = {
        "messages": [{"role": "user", "content": "lamp"}, {"role": "assistant", "content": "on"}]
    }
    chats.write_text(json.dumps(row) + "\n")
    speculation.main([str(target), "--draft", str(draft), "--chats", str(chats), "--items", "1",
                      "--tokens", "8", "--threads", "1"])  # fmt: skip
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    names = ["none", "ngram", "draft f16"]
    assert [(row["task"], row["speculation"]) for row in facts] == [
        (task, name) for task in ("copy", "lamps") for name in names
    ]
    assert all(row["same"] == row["answers"] == 1 for row in facts)
    assert facts[0]["tps"] > 0 and facts[0]["ratio"] == 1
