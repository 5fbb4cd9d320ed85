"""Keys at a terminal -> messages and commands: line editing, a history, messages of several lines."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import click

from edgeft import files
from edgeft.progress import dumb_terminal, say

MAX_HISTORY_LINES = 1000
MAX_HISTORY_CHARACTERS = 200_000
BLOCK = '"""'
"""begins and ends a message of several lines"""


def read_messages(history: Path) -> Generator[str]:
    """One message or command after the other, until Ctrl-D or Ctrl-C at the prompt.

    A line that ends in \\ continues in the next line. So do all lines between two \"\"\". Ctrl-C within
    such a message drops it. `history` is the file of earlier lines.
    """
    # Where stdout is a file, input() would write the prompt between the replies.
    first, more = ("> ", ". ") if sys.stdout.isatty() else ("", "")
    with _line_editing(history):
        while True:
            started = False
            try:
                line = input(first)
                started = True
                message = _read_message(line, more)
            except (EOFError, KeyboardInterrupt) as end:
                click.echo(err=True)
                if started and isinstance(end, KeyboardInterrupt):
                    continue
                return
            if message:
                yield message


def _read_message(line: str, more: str) -> str:
    """The whole message that begins with `line`; reads its other lines with the prompt `more`."""
    if line.lstrip().startswith(BLOCK):
        text = line.lstrip().removeprefix(BLOCK)
        while not text.rstrip().endswith(BLOCK):
            text += "\n" + input(more)
        return text.rstrip().removesuffix(BLOCK).strip("\n")
    while line.endswith("\\"):
        line = line.removesuffix("\\") + "\n" + input(more)
    return line.strip()


@contextlib.contextmanager
def _line_editing(history: Path) -> Iterator[None]:
    """Line editing by readline, where Python has it. New lines are added to `history` at the end."""
    try:
        import readline
    except ImportError:
        yield
        return
    if "GNU" in (readline.__doc__ or "") and not dumb_terminal():
        # Python turns it off. With it, pasted lines are one message.
        readline.parse_and_bind("set enable-bracketed-paste on")
    for line in _read_history(history):
        readline.add_history(line)
    begin = readline.get_current_history_length()
    try:
        yield
    finally:
        indexes = range(begin + 1, readline.get_current_history_length() + 1)
        lines = [line for i in indexes if (line := readline.get_history_item(i))]
        if lines:
            try:
                _add_to_history(history, lines)
            except OSError as error:
                say(f"the history was not kept: {history}: {error.strerror}")


def _read_history(file: Path) -> list[str]:
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return [line for line in text.split("\n") if line]


def _add_to_history(file: Path, lines: list[str]) -> None:
    """Add lines to the file. It is read again: another chat may have added to it meanwhile."""
    text = "\n".join([*_read_history(file), *lines])
    text = "\n".join(text.split("\n")[-MAX_HISTORY_LINES:]) + "\n"
    if len(text) > MAX_HISTORY_CHARACTERS:
        text = text[-MAX_HISTORY_CHARACTERS:].partition("\n")[2]
    file.parent.mkdir(parents=True, exist_ok=True)
    with files.whole_file(file) as temp:
        temp.touch(mode=0o600)  # messages are private
        temp.write_text(text, encoding="utf-8", errors="replace")
