"""A server's greedy answers beside those of an artifact."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeft.benchmarks.studies import greedy_answers
from helpers.serving import exported, running


@pytest.mark.slow
def test_a_server_of_the_same_file_answers_alike_and_another_does_not(
    tiny_base: Path, tiny_chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (file,) = exported(tiny_base, tmp_path, "f16")
    words = [str(file), "--model", "f16", "--items", str(tiny_chats), "--limit", "2",
             "--max-tokens", "8", "--url"]  # fmt: skip
    with running(file) as server:
        with pytest.raises(SystemExit) as ended:
            greedy_answers.main([*words, f"{server.url}/v1"])
        assert ended.value.code == 0
        assert json.loads(capsys.readouterr().out) == {"items": 2, "same": 1.0}
        monkeypatch.setattr(greedy_answers.ChatAPI, "answer", lambda *_: "another answer")
        with pytest.raises(SystemExit) as ended:
            greedy_answers.main([*words, f"{server.url}/v1"])
        assert ended.value.code == 1 and "another answer" in capsys.readouterr().err


def test_a_server_that_is_not_there_is_one_line(
    tiny_base: Path, tiny_chats: Path, tmp_path: Path
) -> None:
    (file,) = exported(tiny_base, tmp_path, "f16")
    with pytest.raises(SystemExit, match="error: nothing answers at http://127.0.0.1:9/v1"):
        greedy_answers.main([
            str(file), "--model", "f16", "--items", str(tiny_chats), "--limit", "1", "--max-tokens", "2",
            "--url", "http://127.0.0.1:9/v1",
        ])  # fmt: skip
