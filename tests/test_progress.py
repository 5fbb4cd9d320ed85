"""Progress on a terminal and elsewhere; stdout stays free."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeft import progress
from edgeft.progress import Progress, say
from helpers.paths import ROOT

pytestmark = pytest.mark.unit

CODE = """
import os, signal, sys, time
from edgeft.progress import Progress, say
with Progress("training [x]", 3) as bar:
    for step in range(3):
        time.sleep(0.15)
        bar.update(1, units=10, loss=0.25)
        if step == 1:
            say("a note")
            if "--interrupt" in sys.argv:
                os.kill(os.getpid(), signal.SIGINT)
print("result")
"""
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"


def on_a_terminal(*args: str, **env: str) -> tuple[int, str, bytes]:
    """(exit code, what the terminal of stderr got, stdout)."""
    outer, inner = pty.openpty()
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, *args],
        stdout=subprocess.PIPE,
        stderr=inner,
        env=kept | {"TERM": "xterm-256color", "PYTHONPATH": os.pathsep.join(sys.path)} | env,
        cwd=ROOT,
    )
    os.close(inner)
    screen = b""
    while True:
        try:
            data = os.read(outer, 65536)
        except OSError:  # Linux: the other end is closed
            break
        if not data:
            break
        screen += data
    out = process.communicate()[0]
    os.close(outer)
    return process.returncode, screen.decode(), out


def test_a_terminal_shows_a_bar_and_the_time_left() -> None:
    code, screen, out = on_a_terminal()
    assert code == 0 and out == b"result\n"
    text = CONTROL.sub("", screen)
    assert re.search(r"━+ training \[x\] 3/3  loss 0.25  \d+ tokens/s  \d s, 0 s left", text)
    assert "edgeft: a note" in text
    assert screen.count(HIDE_CURSOR) == screen.count(SHOW_CURSOR) == 1


def test_an_interrupt_leaves_the_terminal_clean() -> None:
    code, screen, out = on_a_terminal("--interrupt")
    assert code != 0 and out == b""
    assert HIDE_CURSOR in screen and SHOW_CURSOR in screen
    after = screen[screen.rindex(SHOW_CURSOR) :]
    assert "KeyboardInterrupt" in after and "\x1b[2K" not in after


def test_a_dumb_terminal_gets_plain_lines() -> None:
    code, screen, _ = on_a_terminal(TERM="dumb")
    assert code == 0 and "\x1b" not in screen and "━" not in screen
    assert "edgeft: training [x] 3/3" in screen


def test_elsewhere_lines_are_plain_and_rare(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LINE_INTERVAL_S", 0.2)
    with Progress("answering", 100) as bar:
        for _ in range(100):
            time.sleep(0.005)
            bar.update(1)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == "" and 2 <= len(lines) <= 8
    assert all(re.fullmatch(r"edgeft: answering \d+/100  \d s, \d s left", line) for line in lines)
    assert lines[-1].startswith("edgeft: answering 100/100")


def test_short_work_prints_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("writing", 2, short=True) as bar:
        bar.update(2)
    assert capsys.readouterr() == ("", "")


def test_a_resumed_run_estimates_from_its_own_steps(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("training", 100) as bar:
        bar.start_at(99)
        time.sleep(0.01)
        bar.update(1, units=5)
    assert re.search(r"training 100/100  \d+ tokens/s  \d s, 0 s left", capsys.readouterr().err)
    assert (bar.done, bar.units) == (100, 5)


@pytest.fixture
def json_lines(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """What was written to stderr since the last call, with --progress json."""
    progress.write_json_lines(True)
    yield lambda: [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    progress.write_json_lines(False)


def test_json_lines_have_every_value_and_the_end(
    json_lines: Callable[[], list[dict[str, Any]]],
) -> None:
    with Progress("training", 1000) as bar:
        bar.start_at(900)
        for step in range(100):
            bar.update(1, units=10, **({"loss": step / 10} if step % 50 == 0 else {}))
    say("a note\nof two lines")
    *lines, note = json_lines()
    assert {line["event"] for line in lines} == {"progress"} and all(line["time"] for line in lines)
    assert [line["values"] for line in lines if line["values"]] == [{"loss": 0.0}, {"loss": 5.0}]
    assert len(lines) < 10, "one line for each step without values"
    last = lines[-1]
    assert (last["done"], last["total"], last["tokens"], last["left_s"]) == (1000, 1000, 1000, 0)
    assert note["event"] == "note" and note["text"] == "a note\nof two lines"


def test_a_loss_that_is_no_number_is_still_json(
    json_lines: Callable[[], list[dict[str, Any]]],
) -> None:
    with Progress("training", 2) as bar:
        bar.update(1, loss=float("nan"))
    assert json_lines()[-1]["values"] == {"loss": None}


def test_errors_of_a_command_are_json_lines(edgeft: Callable[..., Any]) -> None:
    ran = edgeft("inspect", "/no/such/file", "--progress", "json")
    (line,) = map(json.loads, ran.err.splitlines())
    assert (ran.code, line["event"], line["exit_code"]) == (1, "error", 1)
    assert "/no/such/file" in line["message"] and line["hint"]
    ran = edgeft("inspect", "/no/such/file")
    assert ran.err.startswith("edgeft: error: ") and line["message"] in ran.err


def test_importing_progress_imports_no_rich() -> None:
    code = "import sys, edgeft.progress, edgeft.files; print({'rich', 'platformdirs'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(ROOT)
    )
    assert done.stdout == "set()\n"
