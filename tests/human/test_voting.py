"""`edgeft ab --human`: a vote from the command line, its exit codes and refusals."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import urllib.request
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Ran

from edgeft.export.pipeline import ExportOptions, export
from helpers.tiny import make_base


@pytest.fixture(scope="module")
def arms(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("voted")
    own = export(
        ExportOptions(out=folder / "own", base=str(tiny_base), quants=("f16",), compare_live=False)
    )
    stranger = make_base(folder / "stranger", seed=7)
    other = export(
        ExportOptions(
            out=folder / "other", base=str(stranger), quants=("q8_0",), compare_live=False
        )
    )
    return own[0].path, other[0].path


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("questions") / "items.jsonl"
    rows = [{"prompt": f"river {i}", "answer": "boat", "tags": [f"kind{i % 2}"]} for i in range(6)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    origin = "/".join(url.split("/")[:3])
    headers = {"Content-Type": "application/json", "Origin": origin}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    result: dict[str, Any] = json.load(urllib.request.urlopen(request, timeout=10))
    return result


def a_rater(act: str, count: int, then: Callable[[str], object]) -> Callable[[str], None]:
    """Instead of a browser: votes `count` times, then does something."""

    def work(url: str) -> None:
        state = json.load(urllib.request.urlopen(f"{url}state", timeout=10))
        for _ in range(count):
            state = post(f"{url}vote", {"item": state["pair"]["item"], "vote": act})
        then(url)

    return lambda url: threading.Thread(target=work, args=(url,), daemon=True).start()


def interrupt(url: str) -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_a_vote_from_the_command_line(
    edgeft: Callable[..., Ran],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arms: tuple[Path, Path],
    questions: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BROWSER", "some")
    command = ("ab", *arms, "--items", questions, "--human", "--json", "--max-tokens", 8)

    for at_once in (interrupt, a_rater("left", 0, interrupt)):
        monkeypatch.setattr(webbrowser, "open", at_once)
        ran = edgeft(*command)
        assert ran.code == 4 and json.loads(ran.out)["n"] == 0, ran.err

    monkeypatch.setattr(webbrowser, "open", a_rater("left", 2, interrupt))
    ran = edgeft(*command)
    result = json.loads(ran.out)
    assert ran.code == 0 and (result["missing"], result["votes"]) == (4, {"": 2})
    assert "http://127.0.0.1:" in ran.err
    assert (tmp_path / f"{arms[0].stem}-{arms[1].stem}.votes.jsonl").is_file()

    monkeypatch.setattr(webbrowser, "open", a_rater("tie", 4, lambda url: post(f"{url}result", {})))
    ran = edgeft(*command)
    result = json.loads(ran.out)
    assert (result["n"], result["ties"], result["missing"]) == (6, 4, 0)

    monkeypatch.setattr(webbrowser, "open", lambda url: pytest.fail("nothing is left to ask"))
    ran = edgeft(*command[:-3], "--max-tokens", 8)
    assert ran.code == 0 and "win rate" in ran.out and "| kind0 |" in ran.out

    monkeypatch.setattr(webbrowser, "open", a_rater("bad", 1, interrupt))
    result = json.loads(edgeft(*command, "--rater", "sam").out)
    assert result["votes"] == {"": 6, "sam": 1}


@pytest.mark.parametrize(
    ("more", "code", "says"),
    [
        (["--human", "THIRD"], 2, "exactly two"),
        (["--human", "--margin", "0.1"], 2, "--margin cannot be combined with --human"),
        (["--human", "--report", "x"], 2, "--report cannot be combined with --human"),
        (["--votes", "x.jsonl"], 2, "--votes needs --human"),
        (["--human", "--port", "70000"], 2, "--port"),
    ],
)
def test_wrong_usage(
    edgeft: Callable[..., Ran],
    arms: tuple[Path, Path],
    questions: Path,
    more: list[str],
    code: int,
    says: str,
) -> None:
    ran = edgeft("ab", *arms, "--items", questions, *more)
    assert ran.code == code and says in ran.err, ran.err


def test_the_same_model_twice_is_refused(
    edgeft: Callable[..., Ran], arms: tuple[Path, Path], questions: Path
) -> None:
    ran = edgeft("ab", arms[0], arms[0], "--items", questions, "--human")
    assert ran.code == 1 and "the same model" in ran.err


def test_a_missing_extra_is_named_before_anything_is_measured(
    edgeft: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "starlette", None)
    ran = edgeft("ab", tmp_path / "a.gguf", tmp_path / "b.gguf", "--items", "smart_home", "--human")
    assert ran.code == 1
    assert ran.err == ("edgeft: error: starlette is not installed (pip install 'edgeft[serve]')\n")
