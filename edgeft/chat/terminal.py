"""`ChatOptions` -> a chat in the terminal or through a pipe: lines in, streamed replies out.

    run_chat(ChatOptions(Path("out/q4_k_m.gguf")))

Only replies go to stdout.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import threading
from collections.abc import Generator, Iterator

import click

from edgeft.chat.commands import ChatSession, Exit, printable, run_command
from edgeft.chat.conversation import Conversation
from edgeft.chat.engine_client import open_model
from edgeft.chat.options import ChatOptions
from edgeft.chat.prompt import read_messages
from edgeft.errors import EdgeftError
from edgeft.files import home
from edgeft.progress import dumb_terminal, say


def run_chat(options: ChatOptions) -> None:
    """Open the artifact and talk to it until the input ends or /exit."""
    with open_model(
        options.artifact,
        options.threads,
        options.context,
        options.reference,
        options.batch_invariant,
        options.kv_type,
    ) as model:
        talk(Conversation(model, options.system, options.limits), options)


def talk(conversation: Conversation, options: ChatOptions) -> None:
    """Answer each message of stdin and run its commands, until the input ends or /exit.

    On a terminal an error is one line and the chat continues. From a pipe it is raised.
    """
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    terminal = sys.stdin is not None and sys.stdin.isatty()
    if terminal:
        say(f"{options.artifact.name}, /help for commands, Ctrl-D to leave")
    session = ChatSession(conversation)
    messages = read_messages(home() / "chat_history") if terminal else _piped_lines()
    ending = _end_on_signals() if terminal else contextlib.nullcontext()
    with contextlib.closing(messages), ending:
        for message in messages:
            try:
                if reply := _reply(session, message):
                    _print_reply(conversation, reply, options.stats, terminal)
            except Exit:
                return
            except (EdgeftError, KeyboardInterrupt) as error:
                if not terminal:
                    raise
                say(f"error: {error}" if isinstance(error, EdgeftError) else "stopped")


@contextlib.contextmanager
def _end_on_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the chat in order, so that its history is kept. Ctrl-C stops a reply."""

    def abort(*_: object) -> None:
        raise click.Abort

    numbers = [
        number
        for number in (signal.SIGTERM, signal.SIGHUP)
        if threading.current_thread() is threading.main_thread()
        and signal.getsignal(number) != signal.SIG_IGN
    ]
    handlers = [signal.signal(number, abort) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)


def _piped_lines() -> Generator[str]:
    yield from (line.strip() for line in sys.stdin or () if line.strip())


def _reply(session: ChatSession, message: str) -> Generator[str] | None:
    """The reply to a message piece by piece, or to a command that asks the model, else None."""
    if message.startswith("/") and not message.startswith("//") and "\n" not in message:
        return run_command(session, message)
    return session.conversation.ask(message[1:] if message.startswith("//") else message)


def _print_reply(
    conversation: Conversation, reply: Generator[str], stats: bool, terminal: bool
) -> None:
    if conversation.dropped:
        say(f"the context is full: the oldest {conversation.dropped} turns were dropped")
    format_piece = printable if sys.stdout.isatty() else str
    with contextlib.closing(reply) as pieces:
        try:
            for piece in pieces:
                click.echo(format_piece(piece), nl=False)
        finally:
            click.echo()
    if stats:
        say(conversation.stats)
    elif terminal and sys.stderr.isatty():
        plain = dumb_terminal() or os.environ.get("NO_COLOR")
        speed = conversation.speed if plain else click.style(conversation.speed, dim=True)
        click.echo(speed, err=True)
