"""What is typed at a terminal: line editing, a history, messages of several lines."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import click

from edgeft import files
from edgeft.progress import say

LINES = 1000
CHARACTERS = 200_000
"""that the history keeps at most"""
BLOCK = '"""'


def dumb() -> bool:
    """A terminal that knows no escape sequences."""
    return os.environ.get("TERM", "dumb") in ("dumb", "unknown", "")


def typed(history: Path) -> Generator[str]:
    """One message or command after the other, until Ctrl-D or Ctrl-C at the prompt.

    A line that ends in \\ goes on in the next one, and so does all between two \"\"\"; Ctrl-C there
    forgets what was typed.
    """
    # Where stdout is a file, input() would write the prompt among the replies.
    first, more = ("> ", ". ") if sys.stdout.isatty() else ("", "")
    with _remembering(history):
        while True:
            started = False
            try:
                line = input(first)
                started = True
                text = _whole(line, more)
            except (EOFError, KeyboardInterrupt) as end:
                click.echo(err=True)
                if started and isinstance(end, KeyboardInterrupt):
                    continue
                return
            if text:
                yield text


def _whole(line: str, more: str) -> str:
    """A message from its first line on; reads the others."""
    if line.lstrip().startswith(BLOCK):
        text = line.lstrip().removeprefix(BLOCK)
        while not text.rstrip().endswith(BLOCK):
            text += "\n" + input(more)
        return text.rstrip().removesuffix(BLOCK).strip("\n")
    while line.endswith("\\"):
        line = line.removesuffix("\\") + "\n" + input(more)
    return line.strip()


@contextlib.contextmanager
def _remembering(file: Path) -> Iterator[None]:
    """Line editing by readline, where Python has it, and a history over several conversations."""
    try:
        import readline
    except ImportError:
        yield
        return
    if "GNU" in (readline.__doc__ or "") and not dumb():
        # Python turns it off; with it, pasted lines are one message.
        readline.parse_and_bind("set enable-bracketed-paste on")
    for line in _kept(file):
        readline.add_history(line)
    begin = readline.get_current_history_length()
    try:
        yield
    finally:
        items = range(begin + 1, readline.get_current_history_length() + 1)
        new = [item for i in items if (item := readline.get_history_item(i))]
        if new:
            try:
                _keep(file, new)
            except OSError as error:
                say(f"the history was not kept: {file}: {error.strerror}")


def _kept(file: Path) -> list[str]:
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return [line for line in text.split("\n") if line]


def _keep(file: Path, new: list[str]) -> None:
    """Add lines to the history, which another conversation may have written to meanwhile."""
    text = "\n".join([*_kept(file), *new])
    text = "\n".join(text.split("\n")[-LINES:]) + "\n"
    if len(text) > CHARACTERS:
        text = text[-CHARACTERS:].partition("\n")[2]
    file.parent.mkdir(parents=True, exist_ok=True)
    with files.whole_file(file) as temp:
        temp.touch(mode=0o600)
        temp.write_text(text, encoding="utf-8", errors="replace")
