"""`edgeft chat`: talk to an artifact on the CPU, on a terminal or through a pipe."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from edgeft.cli._chat_commands import SETTINGS, Leave, Session, obey, shown
from edgeft.cli._options import configurable, finite
from edgeft.cli._prompt import dumb, typed
from edgeft.conversation import Conversation, answering
from edgeft.errors import EdgeftError
from edgeft.progress import say
from edgeft.records import Limits


@dataclass(frozen=True)
class ChatOptions:
    artifact: Path
    system: str = ""
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_tokens: int = 512
    seed: int = 0
    threads: int | None = None
    context: int | None = None
    """tokens; None = what the runtime chooses"""
    exact: bool = False
    isolate: bool = True
    """compute as the server does by default"""
    stats: bool = False

    @property
    def limits(self) -> Limits:
        return Limits(**{name: getattr(self, name) for name in SETTINGS})


@click.command("chat", short_help="Talk to an artifact on the CPU; reads a pipe too.")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--system", default="", help="System message.  [default: the template's]")
@click.option(
    "--temperature",
    type=SETTINGS["temperature"],
    default=0,
    callback=finite,
    help="How freely words are chosen.  [default: 0, always the likeliest]",
)
@click.option(
    "--top-p",
    type=SETTINGS["top_p"],
    default=1,
    show_default=True,
    callback=finite,
    help="Choose among the likeliest words that have this share together.",
)
@click.option(
    "--top-k",
    type=SETTINGS["top_k"],
    default=0,
    help="Choose among so many words.  [default: 0, among all]",
)
@click.option(
    "--min-p",
    type=SETTINGS["min_p"],
    default=0,
    callback=finite,
    help="Leave out words that are less likely than this share of the likeliest.  [default: 0]",
)
@click.option(
    "--max-tokens", type=SETTINGS["max_tokens"], default=512, help="Of a reply.  [default: 512]"
)
@click.option("--seed", type=SETTINGS["seed"], default=0, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="[default: all cores]")
@click.option(
    "--context",
    type=click.IntRange(min=16),
    help="Tokens that the conversation may have.  [default: up to 4096]",
)
@click.option("--exact", is_flag=True, help="Compute a folder in float32 by torch, slowly.")
@click.option(
    "--isolate/--no-isolate",
    default=True,
    show_default=True,
    help="Compute as `edgeft serve` does, whose answers are then the same; without, llama.cpp may use "
    "kernels that read long prompts faster.",
)
@click.option("--stats", is_flag=True, help="Tokens/s after every reply, on stderr.")
@configurable
def command(artifact: Path, **given: Any) -> None:
    """Stream replies. On a terminal /help lists the commands; from a pipe each line is one turn
    and only the replies go to stdout.

    \b
    edgeft chat out/q4_k_m.gguf
    echo "turn off the bedroom lamp" | edgeft chat out/q4_k_m.gguf
    """
    options = ChatOptions(artifact, **given)
    how = (options.threads, options.context, options.exact, options.isolate)
    with answering(artifact, *how) as model:
        talk(Conversation(model, options.system, options.limits), options)


def talk(conversation: Conversation, options: ChatOptions) -> None:
    """Lines in, replies out, until the input ends or /exit."""
    from edgeft.base import home

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
