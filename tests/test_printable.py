"""What a stranger's file says, on one line of a terminal."""

from __future__ import annotations

import pytest

from edgeft.errors import InputError
from edgeft.printable import one_printable_line
from edgeft.progress import say

pytestmark = pytest.mark.unit

CASES = {
    "plain, h\u00e9, \U0001f600": "plain, h\u00e9, \U0001f600",
    "two\nlines\r\tx": "two\\nlines\\r\\tx",
    "\x1b]0;title\x07\x1b[2J": "\\x1b]0;title\\x07\\x1b[2J",
    "half \ud800": "half \\ud800",
    "\u202eright to left": "\\u202eright to left",
    "\u2028": "\\u2028",
}


@pytest.mark.parametrize("text", CASES)
def test_controls_are_escaped(text: str) -> None:
    assert one_printable_line(text) == CASES[text]


def test_a_long_text_is_cut() -> None:
    assert one_printable_line("x" * 9, 5) == "xxxx…"
    assert len(one_printable_line("\n" * 10**6)) == 4000


def test_errors_are_one_line_and_notes_are_printable(capsys: pytest.CaptureFixture[str]) -> None:
    error = InputError("a\nb" + "x" * 10**6, hint="\x1b[2J")
    assert str(error).isprintable() and len(str(error)) < 2000
    say("a\nb\x1b[2J")
    assert capsys.readouterr().err == "edgeft: a\nb\\x1b[2J\n"
