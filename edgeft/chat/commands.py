"""A line such as "/save talk.jsonl" -> the command it names, carried out on a chat."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from edgeft.chat.conversation import Conversation
from edgeft.errors import InputError, did_you_mean
from edgeft.progress import say

SETTINGS: dict[str, click.ParamType[Any]] = {
    "temperature": click.FloatRange(0),
    "top_p": click.FloatRange(0, 1, min_open=True),
    "top_k": click.IntRange(0),
    "min_p": click.FloatRange(0, 1),
    "seed": click.INT,
    "max_tokens": click.IntRange(1),
}
"""field of `edgeft.records.Limits` -> its range, for the options of the command and for /set"""


class Exit(Exception):
    """The user typed /exit."""


@dataclass
class ChatSession:
    """A conversation and its file."""

    conversation: Conversation
    file: Path | None = None
    """where /save without a name writes to; None = nowhere yet"""


Reply = Generator[str] | None
"""pieces of the model's reply, None for a command that does not ask the model"""


def run_command(session: ChatSession, line: str) -> Reply:
    """Carry out a command. EdgeftError where it cannot be done; Exit after /exit."""
    name, _, rest = line.partition(" ")
    name = {"/quit": "/exit"}.get(name, name)
    if name not in COMMANDS:
        say(f"no command {name!r}; {did_you_mean(name, COMMANDS)}")
        return None
    return COMMANDS[name][1](session, rest.strip())


def _help(session: ChatSession, rest: str) -> None:
    for name, (meaning, _) in COMMANDS.items():
        say(f"{name} {meaning}")
    say('a message goes on in the next line after \\, and between two """')
    say("// begins a message with a slash")


def _save(session: ChatSession, rest: str) -> None:
    file = _file(rest) if rest else session.file
    if file is None:
        raise InputError("no file was named", "/save FILE")
    if file != session.file and file.exists():
        raise InputError(f"{file} is there already", "choose another name")
    with _file_errors(file):
        session.conversation.save(file)
    session.file = file
    say(f"saved to {file}")


def _load(session: ChatSession, rest: str) -> None:
    if not rest:
        raise InputError("no file was named", "/load FILE")
    file = _file(rest)
    with _file_errors(file):
        session.conversation.load(file)
        is_saved_chat = file.read_text(encoding="utf-8") == session.conversation.to_json()
    session.file = file if is_saved_chat else None  # other files are not overwritten
    say(f"{len(session.conversation.turns)} turns of {file}; /show shows them")


def _file(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # ~ of a user who does not exist
        raise InputError(f"no such file: {text}: {error}") from None


@contextlib.contextmanager
def _file_errors(file: Path) -> Iterator[None]:
    """Errors of the system as InputError, which is one line."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{file}: {error.strerror or error}") from None
    except ValueError as error:  # a NUL in the name, or no name at all
        raise InputError(f"{file}: {error}", "the name of a file") from None


def _retry(session: ChatSession, rest: str) -> Reply:
    if session.conversation.limits.temperature == 0:
        say("the temperature is 0: the likeliest reply stays the same; /set temperature 0.7")
    return session.conversation.retry()


def _undo(session: ChatSession, rest: str) -> None:
    session.conversation.undo()
    say("the last message and its reply are forgotten")


def _system(session: ChatSession, rest: str) -> None:
    session.conversation.system = rest
    session.conversation.reset()
    say("system message set, the conversation starts over")


def _reset(session: ChatSession, rest: str) -> None:
    session.conversation.reset()
    say("the conversation starts over")


def _set(session: ChatSession, rest: str) -> None:
    name, _, value = rest.replace("=", " ").partition(" ")
    name = name.replace("-", "_")
    if name not in SETTINGS:
        raise InputError(f"no setting {name!r}", did_you_mean(name, SETTINGS))
    try:
        number = SETTINGS[name].convert(value.strip(), None, None)
    except click.BadParameter as error:
        raise InputError(f"{name}: {error.message}", f"now {_settings(session, name)}") from None
    if not math.isfinite(number):
        raise InputError(f"{name}: {number} is not a number to count with")
    conversation = session.conversation
    conversation.limits = dataclasses.replace(conversation.limits, **{name: number})
    say(_settings(session, name))


def _settings(session: ChatSession, *names: str) -> str:
    limits = session.conversation.limits
    return ", ".join(f"{name} {getattr(limits, name)}" for name in names)


def _show(session: ChatSession, rest: str) -> None:
    say(_settings(session, *SETTINGS))
    for message in session.conversation.messages:
        say(f"{message.role}: {printable(message.content)}")


def _stats(session: ChatSession, rest: str) -> None:
    say(session.conversation.stats)


def _exit(session: ChatSession, rest: str) -> None:
    raise Exit


COMMANDS: dict[str, tuple[str, Callable[[ChatSession, str], Reply]]] = {
    "/save": ("FILE: keep the conversation as a row of data", _save),
    "/load": ("FILE: go on with such a row", _load),
    "/retry": ("answer the last message again", _retry),
    "/undo": ("forget the last message and its reply", _undo),
    "/reset": ("forget the conversation", _reset),
    "/system": ("TEXT: set the system message and start over", _system),
    "/set": (f"NAME VALUE: {', '.join(SETTINGS)}", _set),
    "/show": ("settings and conversation", _show),
    "/stats": ("speed of the last reply", _stats),
    "/help": ("this list", _help),
    "/exit": ("leave (Ctrl-D too)", _exit),
}
"""name -> (help, function of the session and the rest of the line)"""

_CONTROLS = {
    code: "\N{REPLACEMENT CHARACTER}"
    for code in (*range(32), *range(127, 160))
    if code not in (9, 10)
}


def printable(text: str) -> str:
    """Text without control characters: a terminal would carry out a model's escape sequences."""
    return text.translate(_CONTROLS)
