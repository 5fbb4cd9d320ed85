"""The family of errors that a user can mend, each one line with a hint.

EdgeftError                 a user error, exit code 1
├── InputError              a file or an option is missing, unreadable or contradictory
│   ├── DataError           a line of a data file is broken (names file and line)
│   ├── ManifestError       a file is where a manifest goes, and is none
│   ├── TemplateLimitError  a chat template takes more time or memory than any template needs
│   └── TooLong             a prompt does not fit the context
├── AdapterError            not an adapter, or the adapter of another base
├── FormatError             unknown format, quantization or model family
├── ResourceError           too little disk or memory (names both figures), or a port in use
├── StaleError              the output already holds something else
├── TemplateError           the chat template differs from that of the training
├── ProofError              the result is not the same model; nothing is kept
├── MissingExtra            an optional package is not installed
└── Busy                    the queue is full (edgeft.server)

Example: ``raise InputError("no such file: chats.jsonl", hint="check --data")``
"""

from __future__ import annotations

import difflib
import errno
import importlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from edgeft.printable import one_printable_line

MAX_MESSAGE_CHARS, MAX_HINT_CHARS = 1500, 2500


class EdgeftError(Exception):
    """A user error. The command line prints it as one line with its hint, never as a traceback."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        # parts of both may come from a stranger's file
        message = one_printable_line(message, MAX_MESSAGE_CHARS)
        super().__init__(message)
        self.message = message
        """the problem"""
        self.hint = one_printable_line(hint, MAX_HINT_CHARS)
        """the remedy; "" = none is known"""

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class InputError(EdgeftError):
    pass


class DataError(InputError):
    def __init__(self, file: Path, line: int, problem: str, hint: str = "") -> None:
        super().__init__(f"{file}:{line}: {problem}", hint)
        self.problem = problem


class ManifestError(InputError):
    pass


class AdapterError(EdgeftError):
    pass


class FormatError(EdgeftError):
    pass


class ResourceError(EdgeftError):
    pass


class StaleError(EdgeftError):
    pass


class TemplateError(EdgeftError):
    pass


class TemplateLimitError(InputError):
    """A chat template takes more time or memory than any template needs."""


class TooLong(InputError):
    """A prompt of so many tokens does not fit the context."""

    def __init__(self, tokens: int, context: int) -> None:
        problem = f"the prompt has {tokens} tokens, the context only {context}"
        super().__init__(problem, "shorten it")
        self.tokens, self.context = tokens, context


class ProofError(EdgeftError):
    pass


class MissingExtra(EdgeftError):
    pass


def require(module: str, extra: str) -> ModuleType:
    """Import a `module`; MissingExtra names the `extra` that installs it.

    Only the absence of the package itself becomes MissingExtra. An import that fails inside an installed
    package is a defect, so its error passes through.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise MissingExtra(
            f"{error.name} is not installed", hint=f"pip install 'edgeft[{extra}]'"
        ) from None


RUST_ERROR = re.compile(r"\(os error (\d+)\)")
NUMPY_ERROR = re.compile(r"\d+ requested and \d+ written")
TORCH_MEMORY = ("can't allocate memory", "not enough memory", "CUDA out of memory")
TORCH_FILE = ("PytorchStreamWriter failed", "inline_container.cc")


def machine_error(error: BaseException) -> OSError | MemoryError | None:
    """What the machine lacks, None for a defect: a full disk, no rights, too little memory.

    Libraries in Rust (safetensors, tokenizers), torch and numpy report it as an exception of their own,
    which is told by its text.
    """
    if isinstance(error, MemoryError):
        return error
    if isinstance(error, OSError) and not (error.filename is None and error.errno is None):
        return error
    text = str(error)
    if match := RUST_ERROR.search(text):
        return OSError(int(match[1]), os.strerror(int(match[1])))
    if any(part in text for part in TORCH_MEMORY):
        return MemoryError(text)
    if NUMPY_ERROR.search(text) or any(part in text for part in TORCH_FILE):
        return OSError(errno.EIO, "a file could not be written whole: the disk may be full")
    return None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The hint for an unknown `name`: the most similar known name, then all of them."""
    names = sorted(known)
    matches = difflib.get_close_matches(name.lower(), names, n=1)
    guess = f"did you mean {matches[0]!r}? " if matches else ""
    return f"{guess}known: {', '.join(names)}"
