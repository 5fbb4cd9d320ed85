"""`edgeft chat`: talk to an artifact on the CPU, on a terminal or through a pipe."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeft.cli._options import configurable, finite
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
    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 512
    seed: int = 0
    threads: int | None = None
    context: int | None = None
    """tokens; None = what the runtime chooses"""
    exact: bool = False
    stats: bool = False

    @property
    def limits(self) -> Limits:
        return Limits(self.max_tokens, self.temperature, self.top_p, self.seed)


class Conversation:
    """The turns so far and the model that answers them; reads and prints nothing."""

    def __init__(self, model: Runtime, system: str, limits: Limits) -> None:
        self.model = model
        self.limits = limits
        self.system = system
        self.reset()

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.turns: list[Message] = []
        self.dropped = 0
        """turns that the last message pushed out of the context"""
        self.prompt_tokens = 0
        self.tokens: list[Token] = []

    def ask(self, text: str) -> Generator[str]:
        """The reply piece by piece; closed early, what it said until then is remembered."""
        turns = [*self.turns, Message("user", text)]
        ids = self._fit(turns)
        self.dropped = len(self.turns) + 1 - len(turns)
        return self._reply(turns, ids)

    def _reply(self, turns: list[Message], ids: list[int]) -> Generator[str]:
        self.turns, self.prompt_tokens, self.tokens = turns, len(ids), []
        try:
            for token in self.model.stream(ids, self.limits):
                self.tokens.append(token)
                yield token.text
        finally:
            turns.append(Message("assistant", "".join(token.text for token in self.tokens)))

    def _fit(self, turns: list[Message]) -> list[int]:
        """Ids of `turns`, the oldest of which are removed until a reply has room."""
        context = self.model.context
        room = min(self.limits.max_tokens, context // 4)
        system = [Message("system", self.system)] if self.system else []
        while True:
            ids = self.model.encode(self.model.chat.render([*system, *turns]))
            if len(ids) + room <= context:
                return ids
            if len(turns) == 1:
                raise InputError(
                    f"the message has {len(ids)} tokens, the context {context} with the reply",
                    "shorten it or raise --context",
                )
            del turns[:2]

    @property
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


@click.command("chat", short_help="Talk to an artifact on the CPU; reads a pipe too.")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--system", default="", help="System message.  [default: the template's]")
@click.option(
    "--temperature",
    type=click.FloatRange(0),
    default=0,
    callback=finite,
    help="How freely words are chosen.  [default: 0, always the likeliest]",
)
@click.option(
    "--top-p",
    type=click.FloatRange(0, 1, min_open=True),
    default=1,
    show_default=True,
    callback=finite,
    help="Choose among the likeliest words that have this share together.",
)
@click.option(
    "--max-tokens", type=click.IntRange(1), default=512, help="Of a reply.  [default: 512]"
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="[default: all cores]")
@click.option(
    "--context",
    type=click.IntRange(min=16),
    help="Tokens that the conversation may have.  [default: up to 4096]",
)
@click.option("--exact", is_flag=True, help="Compute a folder in float32 by torch, slowly.")
@click.option("--stats", is_flag=True, help="Tokens/s after every reply, on stderr.")
@configurable
def command(artifact: Path, **given: Any) -> None:
    """Stream replies. On a terminal /help lists the commands; from a pipe each line is one turn
    and only the replies go to stdout.

    \b
    edgeft chat out/q4_k_m.gguf
    echo "turn off the bedroom lamp" | edgeft chat out/q4_k_m.gguf
    """
    from edgeft.runtimes import open_runtime

    options = ChatOptions(artifact, **given)
    with open_runtime(artifact, options.threads, options.context, options.exact) as model:
        talk(Conversation(model, options.system, options.limits), options)


def talk(conversation: Conversation, options: ChatOptions) -> None:
    """Lines in, replies out, until the input ends or /exit."""
    terminal = sys.stdin is not None and sys.stdin.isatty()
    if terminal:
        say(f"{options.artifact.name}, /help for commands, Ctrl-D to leave")
    for line in _lines(terminal):
        if line.startswith("/"):
            if not _obey(conversation, line):
                return
            continue
        try:
            _print_reply(conversation, line, options.stats)
        except (EdgeftError, KeyboardInterrupt) as error:
            if not terminal:
                raise
            say(f"error: {error}" if isinstance(error, EdgeftError) else "stopped")


def _print_reply(conversation: Conversation, text: str, stats: bool) -> None:
    with contextlib.closing(conversation.ask(text)) as pieces:
        if conversation.dropped:
            say(f"the context is full: the oldest {conversation.dropped} turns were dropped")
        try:
            for piece in pieces:
                click.echo(piece, nl=False)
        finally:
            click.echo()
    if stats:
        say(conversation.stats)


def _lines(terminal: bool) -> Iterator[str]:
    """Non-empty lines; on a terminal with a prompt and a history."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    if not terminal:
        yield from (line.strip() for line in sys.stdin or () if line.strip())
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - gives input() its line editing
    # Where stdout is a file, input() would write the prompt among the replies.
    prompt = "> " if sys.stdout.isatty() else ""
    while True:
        try:
            line = input(prompt).strip()
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
            conversation.reset()
            say("the conversation starts over")
        case "/system":
            conversation.system = rest.strip()
            conversation.reset()
            say("system message set, the conversation starts over")
        case "/stats":
            say(conversation.stats)
        case "/help":
            for command_name, meaning in COMMANDS.items():
                say(f"{command_name} {meaning}")
        case _:
            say(f"no command {name!r}; {did_you_mean(name, COMMANDS)}")
    return True
