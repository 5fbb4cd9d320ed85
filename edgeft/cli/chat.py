"""`edgeft chat`: talk to an artifact on the CPU, on a terminal or through a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeft.cli._options import configurable
from edgeft.errors import EdgeftError, InputError, did_you_mean
from edgeft.progress import say
from edgeft.records import Limits, Message, Token

if TYPE_CHECKING:
    from edgeft.runtimes import Runtime

COMMANDS = {
    "/reset": "forget the conversation",
    "/system": "TEXT: set the system message and start over",
    "/stats": "speed of the last reply",
    "/help": "this list",
    "/exit": "leave (Ctrl-D too)",
}


@dataclass(frozen=True)
class ChatOptions:
    artifact: Path
    system: str = ""
    limits: Limits = field(default_factory=Limits)
    threads: int | None = None
    context: int | None = None
    """tokens; None = what the runtime chooses"""
    stats: bool = False


class Conversation:
    """The turns so far and the model that answers them; reads and prints nothing."""

    def __init__(self, model: Runtime, system: str, limits: Limits) -> None:
        self.model = model
        self.limits = limits
        self.start(system)

    def start(self, system: str) -> None:
        """Forget everything but `system`."""
        self.system = system
        self.turns: list[Message] = []
        self.prompt_tokens = 0
        self.tokens: list[Token] = []

    def ask(self, text: str) -> Iterator[str]:
        """The reply piece by piece; what was said is remembered when the iterator is closed."""
        turns, ids = self._fitting([*self.turns, Message("user", text)])
        self.turns = turns
        self.prompt_tokens, self.tokens = len(ids), []
        try:
            for token in self.model.stream(ids, self.limits):
                self.tokens.append(token)
                yield token.text
        finally:
            said = "".join(token.text for token in self.tokens)
            self.turns.append(Message("assistant", said))

    def stats(self) -> str:
        if not self.tokens:
            return "no reply yet"
        first, last = self.tokens[0].seconds, self.tokens[-1].seconds
        rate = (len(self.tokens) - 1) / (last - first) if last > first else 0.0
        used = self.prompt_tokens + len(self.tokens)
        return (
            f"prompt {self.prompt_tokens} tokens, first after {first * 1000:.0f} ms, "
            f"{len(self.tokens)} tokens at {rate:.0f} tokens/s, "
            f"context {used} of {self.model.context}"
        )

    def _fitting(self, turns: list[Message]) -> tuple[list[Message], list[int]]:
        """(turns, ids) that leave room for a reply; the oldest turns are dropped for it."""
        room = min(self.limits.max_tokens, self.model.context // 4)
        while True:
            system = [Message("system", self.system)] if self.system else []
            text = self.model.chat.render([*system, *turns])
            ids = self.model.encode(text)
            if len(ids) + room <= self.model.context:
                return turns, ids
            if len(turns) < 3:
                raise InputError(
                    f"the message has {len(ids)} tokens, the context {self.model.context}",
                    "shorten it or raise --context",
                )
            turns = turns[2:]
            say("the conversation is longer than the context, its oldest turn was dropped")


@click.command("chat", short_help="Talk to an artifact on the CPU; reads a pipe too.")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--system", default="", help="System message.  [default: the template's]")
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="0 always takes the likeliest token.",
)
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True)
@click.option(
    "--max-tokens", type=click.IntRange(min=1), default=512, show_default=True, help="Of one reply."
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="[default: all cores]")
@click.option("--context", type=click.IntRange(min=16), help="Tokens.  [default: up to 4096]")
@click.option("--stats", is_flag=True, help="Tokens/s after every reply, on stderr.")
@configurable
def command(
    artifact: Path, system: str, temperature: float, top_p: float, max_tokens: int, seed: int,
    threads: int | None, context: int | None, stats: bool,
) -> None:  # fmt: skip
    """Stream replies. On a terminal /help lists the commands; from a pipe each line is one turn
    and only the replies go to stdout.

    \b
    edgeft chat out/q4_k_m.gguf
    echo "turn off the bedroom lamp" | edgeft chat out/q4_k_m.gguf
    """
    from edgeft.runtimes import open_runtime

    limits = Limits(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
    options = ChatOptions(artifact, system, limits, threads, context, stats)
    with open_runtime(options.artifact, options.threads, options.context) as model:
        talk(Conversation(model, options.system, options.limits), options)


def talk(conversation: Conversation, options: ChatOptions) -> None:
    """Lines in, replies out, until the input ends or /exit."""
    terminal = sys.stdin.isatty()
    if terminal:
        say(f"{options.artifact.name}, /help for commands, Ctrl-D to leave")
    for line in _lines(terminal):
        if line.startswith("/"):
            if not _obey(conversation, line):
                return
            continue
        try:
            _reply(conversation, line)
        except EdgeftError as error:
            if not terminal:
                raise
            say(f"error: {error}")
        if options.stats:
            say(conversation.stats())


def _reply(conversation: Conversation, text: str) -> None:
    pieces = conversation.ask(text)
    try:
        for piece in pieces:
            click.echo(piece, nl=False)
            sys.stdout.flush()
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
        say("(stopped)")
    finally:
        pieces.close()  # type: ignore[attr-defined]
    click.echo()


def _lines(terminal: bool) -> Iterator[str]:
    """Non-empty lines; on a terminal with a prompt and a history."""
    if not terminal:
        yield from (line.strip() for line in sys.stdin if line.strip())
        return
    import contextlib

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - gives input() its line editing
    while True:
        try:
            line = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            click.echo(err=True)
            return
        if line:
            yield line


def _obey(conversation: Conversation, line: str) -> bool:
    """Carry out a /command; False to leave."""
    name, _, rest = line.partition(" ")
    match name:
        case "/exit" | "/quit":
            return False
        case "/reset":
            conversation.start(conversation.system)
            say("the conversation starts over")
        case "/system":
            conversation.start(rest.strip())
            say("system message set, the conversation starts over")
        case "/stats":
            say(conversation.stats())
        case "/help":
            for command_name, meaning in COMMANDS.items():
                say(f"{command_name} {meaning}")
        case _:
            say(f"no command {name!r}; {did_you_mean(name, COMMANDS)}")
    return True
