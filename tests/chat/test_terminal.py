"""`edgeft chat` as it is typed at a terminal: a pseudo-terminal, keys in, screen out."""

from __future__ import annotations

import fcntl
import json
import os
import re
import select
import signal
import stat
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgeft.data.rows import load_examples
from helpers.paths import ROOT

readline = pytest.importorskip("readline")
GNU = "GNU" in (readline.__doc__ or "")
ECHO = (sys.executable, str(Path(__file__).resolve().parents[1] / "helpers" / "echo_chat.py"))
DIM = "\x1b[2m"
UP, BACKSPACE, CTRL_C, CTRL_D = "\x1b[A", "\x7f", "\x03", "\x04"


class Terminal:
    """A program that has a terminal of its own."""

    def __init__(
        self, argv: tuple[str, ...], home: Path, rows: int = 24, columns: int = 80,
        out: Path | None = None, **env: str,
    ) -> None:  # fmt: skip
        self.fd, inner = os.openpty()
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "LINES")}
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        given = {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8", "EDGEFT_HOME": str(home),
                 "PYTHONPATH": path, "INPUTRC": "/dev/null"}  # fmt: skip
        stdout = out.open("wb") if out else None
        self.process = subprocess.Popen(
            # What a shell or nohup lets these tests ignore, a new terminal does not.
            ["env", "--default-signal", "setsid", "--ctty", *argv],
            stdin=inner, stdout=stdout or inner, stderr=inner, cwd=home, env=kept | given | env,
        )  # fmt: skip
        os.close(inner)
        self.all = ""
        self._new = ""

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def until(self, wanted: str, seconds: float = 30.0) -> str:
        """What came until the text `wanted`, itself included."""
        deadline = time.monotonic() + seconds
        while (at := self._new.find(wanted)) < 0:
            if not self._read(deadline - time.monotonic()):
                raise AssertionError(f"{wanted!r} did not come; the screen:\n{self.all!r}")
        came, self._new = self._new[: at + len(wanted)], self._new[at + len(wanted) :]
        return came

    def ask(self, text: str, wanted: str) -> str:
        """Type a line when the prompt is there; what came after it."""
        self.until("> ")
        self.type(text + "\r")
        return self.until(wanted)

    def interrupt(self) -> None:
        """Ctrl-C at a prompt. Python misses one that comes before its readline waits for keys."""
        time.sleep(0.3)
        self.type(CTRL_C)

    def ends(self) -> int:
        """The exit status; what is left on the screen is read first."""
        deadline = time.monotonic() + 30
        while self._read(deadline - time.monotonic()):
            pass
        return self.process.wait(10)

    def _read(self, seconds: float) -> bool:
        if not select.select([self.fd], [], [], max(0, seconds))[0]:
            return False
        try:
            data = os.read(self.fd, 65536).decode("utf-8", "replace")
        except OSError:  # Linux tells the end so
            return False
        self.all += data
        self._new += data
        return bool(data)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.fd)


Open = Callable[..., Terminal]


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Open]:
    opened: list[Terminal] = []

    def start(*argv: str, **how: object) -> Terminal:
        opened.append(Terminal(argv or ECHO, tmp_path, **how))  # type: ignore[arg-type]
        return opened[-1]

    yield start
    for each in opened:
        each.close()


def test_a_reply_is_followed_by_its_speed_in_dim(terminal: Open) -> None:
    screen = terminal()
    said = screen.ask("turn it off", "tokens/s")
    assert "TURN IT OFF\r\n" in said
    assert f"{DIM}first after 100 ms, 11 tokens at 10 tokens/s" in said
    screen.until("> ")
    screen.type(CTRL_D)
    assert screen.ends() == 0


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_without_colour_the_speed_is_plain(terminal: Open, env: dict[str, str]) -> None:
    screen = terminal(**env)
    said = screen.ask("hello", "tokens/s")
    assert "HELLO\r\n" in said and DIM not in screen.all
    screen.ask("again", "AGAIN\r\n")
    screen.until("> ")
    screen.type(CTRL_D)
    assert screen.ends() == 0
    if env.get("TERM") == "dumb":
        assert "\x1b" not in screen.all


def test_lines_go_on_after_a_backslash_and_in_a_block(terminal: Open) -> None:
    screen = terminal()
    screen.ask("one\\", ". ")
    screen.type("two\r")
    screen.until("ONE|TWO\r\n")
    screen.ask('"""first', ". ")
    screen.type('\r  /reset\rlast"""\r')
    screen.until("FIRST||  /RESET|LAST\r\n")
    screen.ask('"""all in one"""', "ALL IN ONE\r\n")
    screen.ask("//help is a message", "/HELP IS A MESSAGE\r\n")


def test_ctrl_c_in_a_block_forgets_it(terminal: Open) -> None:
    screen = terminal()
    screen.ask('"""one', ". ")
    screen.type("two\r")
    screen.until(". ")
    screen.interrupt()
    screen.ask("three", "THREE\r\n")
    assert "ONE" not in screen.all


@pytest.mark.skipif(not GNU, reason="libedit has no bracketed paste")
def test_pasted_lines_are_one_message(terminal: Open) -> None:
    screen = terminal()
    screen.until("> ")
    screen.type("\x1b[200~a\nb\n/reset\x1b[201~\r")
    screen.until("A|B|/RESET\r\n")


def test_ctrl_c_stops_the_reply_and_keeps_what_came(terminal: Open, tmp_path: Path) -> None:
    screen = terminal(ECHO_SECONDS="0.02")
    screen.ask("x" * 200, "XXX")
    screen.type(CTRL_C)
    screen.until("edgeft: stopped")
    screen.ask("/show", "edgeft: assistant: ")
    assert re.fullmatch("X{3,190}\r\n", screen.until("\r\n"))
    screen.ask("and you", "AND YOU\r\n")
    screen.ask("/save talk.jsonl", "saved to")
    screen.until("> ")
    screen.interrupt()
    assert screen.ends() == 0
    (example,) = load_examples(tmp_path / "talk.jsonl")
    assert [m.role for m in example.messages] == ["user", "assistant"] * 2
    assert 3 <= len(example.messages[1].content) < 200


def test_the_history_is_kept_private_and_comes_back(terminal: Open, tmp_path: Path) -> None:
    first = terminal()
    first.ask("erste Frage", "ERSTE FRAGE\r\n")
    first.until("> ")
    first.type(CTRL_D)
    assert first.ends() == 0
    kept = tmp_path / "chat_history"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert kept.read_text() == "erste Frage\n"
    second = terminal()
    second.ask(UP, "ERSTE FRAGE\r\n")
    second.ask("/exit", "\n")
    assert second.ends() == 0
    assert kept.read_text().splitlines() == ["erste Frage", "/exit"]


def test_the_history_is_bounded(terminal: Open, tmp_path: Path) -> None:
    kept = tmp_path / "chat_history"
    kept.write_text("".join(f"{i} {'x' * 300}\n" for i in range(3000)))
    screen = terminal()
    screen.ask("/exit", "\n")
    assert screen.ends() == 0
    lines = kept.read_text().splitlines()
    assert lines[-1] == "/exit" and lines[-2].startswith("2999 ")
    assert kept.stat().st_size <= 200_000 and len(lines) > 600
    assert all(re.fullmatch(r"\d+ x{300}", line) for line in lines[:-1])


def test_a_history_that_cannot_be_kept_is_one_note(terminal: Open, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    screen = terminal(EDGEFT_HOME=str(tmp_path / "file"))
    screen.ask("/exit", "the history was not kept")
    assert screen.ends() == 0


def test_wide_characters_are_edited_as_characters(terminal: Open) -> None:
    screen = terminal()
    screen.ask("日本語🏠" + 2 * BACKSPACE + "é", "tokens/s")
    assert "日本É\r\n" in screen.all


def test_a_tiny_window(terminal: Open) -> None:
    screen = terminal(rows=3, columns=10)
    text = "a line that is longer than the window is wide, 日本語"
    screen.ask(text, "tokens/s")
    assert text.upper() in screen.all
    screen.ask("/show", "edgeft: assistant: ")
    screen.ask("more", "MORE\r\n")


def test_commands(terminal: Open, tmp_path: Path) -> None:
    screen = terminal()
    assert "did you mean '/retry'" in screen.ask("/retri", "known:")
    assert screen.ask("/retry", "\n").count("\n") == 1
    screen.until("error: nothing was asked yet")
    screen.ask("/save x.jsonl", "error: there is no conversation to save yet")
    screen.ask("/set temperature 0.7", "edgeft: temperature 0.7")
    screen.ask("/set max-tokens=3", "edgeft: max_tokens 3")
    screen.ask("/set top_p 2", "error: top_p: 2.0 is not in the range 0<x<=1.")
    screen.ask("/set temperature nan", "not a number to count with")
    screen.ask("/set temprature 1", "did you mean 'temperature'")
    screen.ask("/set seed 12345678", "edgeft: seed 12345678\r\n")
    screen.ask("hello", "HEL\r\n")
    screen.ask("/retry", "HEL\r\n")
    screen.ask("/show", "max_tokens 3")
    screen.until("edgeft: user: hello\r\nedgeft: assistant: HEL\r\n")
    screen.ask("/save dir/x.jsonl", "error: dir/x.jsonl: No such file or directory")
    screen.ask("/save x.jsonl", "saved to x.jsonl")
    screen.ask("/undo", "forgotten")
    screen.ask("/load x.jsonl", "2 turns of x.jsonl")
    screen.ask("more", "MOR\r\n")
    screen.ask("/save", "saved to x.jsonl")
    (tmp_path / "notes.txt").write_text("mine\n")
    screen.ask("/save notes.txt", "error: notes.txt is there already")
    screen.ask("/load notes.txt", "error: notes.txt:1: not JSON")
    screen.ask("/load nowhere.jsonl", "error: no such data file")
    screen.ask("/exit", "\n")
    assert screen.ends() == 0
    assert len(load_examples(tmp_path / "x.jsonl")[0].messages) == 4
    assert (tmp_path / "notes.txt").read_text() == "mine\n"
    assert "Traceback" not in screen.all


def test_escape_sequences_of_a_model_are_not_obeyed(terminal: Open, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "\x1b]0;title\x07"}]
    (tmp_path / "x.jsonl").write_text(json.dumps({"messages": turns}))
    screen = terminal()
    screen.ask("/load x.jsonl", "2 turns")
    screen.ask("/show", "assistant: \N{REPLACEMENT CHARACTER}]0;title\N{REPLACEMENT CHARACTER}")
    screen.ask("a\x16\x1bb", "A\N{REPLACEMENT CHARACTER}B\r\n")  # Ctrl-V: the next key as it is


def test_replies_that_go_to_a_file_are_alone_in_it(terminal: Open, tmp_path: Path) -> None:
    screen = terminal(out=tmp_path / "replies")
    screen.until("Ctrl-D to leave")
    screen.type("one\r")
    screen.until("tokens/s")
    screen.type("two\r")
    screen.until("tokens/s")
    screen.type(CTRL_D)
    assert screen.ends() == 0
    assert (tmp_path / "replies").read_text() == "ONE\nTWO\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_chat_amid_a_reply_and_keeps_the_history(
    terminal: Open, tmp_path: Path, number: int
) -> None:
    screen = terminal(ECHO_SECONDS="0.02")
    screen.ask("x" * 500, "XXX")
    screen.process.send_signal(number)
    assert screen.ends() != 0
    assert (tmp_path / "chat_history").read_text() == "x" * 500 + "\n"


def test_the_command_itself(terminal: Open, tmp_path: Path, tiny_base: Path) -> None:
    from edgeft.export.pipeline import ExportOptions, export

    artifact = export(
        ExportOptions(out=tmp_path, base=str(tiny_base), quants=("q8_0",), compare_live=False)
    )[0].path
    chat = (sys.executable, "-m", "edgeft", "chat", str(artifact), "--max-tokens", "8")
    screen = terminal(*chat)
    screen.ask("lamp", "tokens/s")
    screen.ask("/set temperature 2", "temperature 2")
    screen.ask("/retry", DIM)
    screen.ask("/retry", DIM)
    screen.ask("/save talk.jsonl", "saved to")
    screen.until("> ")
    screen.type(CTRL_D)
    assert screen.ends() == 0
    assert load_examples(tmp_path / "talk.jsonl")[0].messages[0].content == "lamp"
