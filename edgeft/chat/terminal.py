"""The chat in a terminal: read a line, stream the reply, run commands."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import threading
from collections.abc import Generator, Iterator

import click

from edgeft.chat.commands import Leave, Session, obey, shown
from edgeft.chat.conversation import Conversation
from edgeft.chat.options import ChatOptions
from edgeft.chat.prompt import dumb, typed
from edgeft.errors import EdgeftError
from edgeft.progress import say


def talk(conversation: Conversation, options: ChatOptions) -> None:
    """Lines in, replies out, until the input ends or /exit."""
    from edgeft.files import home

    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    terminal = sys.stdin is not None and sys.stdin.isatty()
    if terminal:
        say(f"{options.artifact.name}, /help for commands, Ctrl-D to leave")
    session = Session(conversation)
    lines = typed(home() / "chat_history") if terminal else _piped()
    with contextlib.closing(lines), _ended_by_signals() if terminal else contextlib.nullcontext():
        for line in lines:
            try:
                if reply := _answer(session, line):
                    _print_reply(conversation, reply, options.stats, terminal)
            except Leave:
                return
            except (EdgeftError, KeyboardInterrupt) as error:
                if not terminal:
                    raise
                say(f"error: {error}" if isinstance(error, EdgeftError) else "stopped")


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Ctrl-C stops a reply; these end the conversation, whose history is then kept."""

    def leave(*_: object) -> None:
        raise click.Abort

    caught = [
        number
        for number in (signal.SIGTERM, signal.SIGHUP)
        if threading.current_thread() is threading.main_thread()
        and signal.getsignal(number) != signal.SIG_IGN
    ]
    before = [signal.signal(number, leave) for number in caught]
    try:
        yield
    finally:
        for number, handler in zip(caught, before, strict=True):
            signal.signal(number, handler)


def _piped() -> Generator[str]:
    yield from (line.strip() for line in sys.stdin or () if line.strip())


def _answer(session: Session, line: str) -> Generator[str] | None:
    """What the model says to a message or, if anything, after a command."""
    if line.startswith("/") and not line.startswith("//") and "\n" not in line:
        return obey(session, line)
    return session.conversation.ask(line[1:] if line.startswith("//") else line)


def _print_reply(
    conversation: Conversation, reply: Generator[str], stats: bool, terminal: bool
) -> None:
    if conversation.dropped:
        say(f"the context is full: the oldest {conversation.dropped} turns were dropped")
    shows = shown if sys.stdout.isatty() else str
    with contextlib.closing(reply) as pieces:
        try:
            for piece in pieces:
                click.echo(shows(piece), nl=False)
        finally:
            click.echo()
    if stats:
        say(conversation.stats)
    elif terminal and sys.stderr.isatty():
        plain = dumb() or os.environ.get("NO_COLOR")
        click.echo(
            conversation.speed if plain else click.style(conversation.speed, dim=True), err=True
        )
