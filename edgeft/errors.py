"""What can go wrong because of the user's input or machine, as one family.

EdgeftError                 one line, one hint, exit code 1
├── InputError              a file is missing, unreadable or says something impossible
│   ├── DataError           a row of a data file is broken (carries file and line)
│   └── TooLong             a prompt has more tokens than the context (edgeft.server.requests)
├── Busy                    the queue of the server is full (edgeft.server.jobs; carries seconds)
├── AdapterError            not an adapter, or the adapter of another base
├── FormatError             unknown format or quantization, or a family it does not know
├── ResourceError           not enough disk or memory (carries the needed figure)
├── StaleError              the output already holds something else
├── TemplateError           another chat template than the one that was learned
├── ProofError              a result was made but is not the same model: nothing is kept
└── MissingExtra            an optional package is not installed

Example: ``raise InputError("no such file: chats.jsonl", hint="check --data")``
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType


class EdgeftError(Exception):
    """A user error: printed as one line with a hint, never as a traceback."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class InputError(EdgeftError):
    pass


class DataError(InputError):
    def __init__(self, file: Path, line: int, problem: str, hint: str = "") -> None:
        super().__init__(f"{file}:{line}: {problem}", hint)


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


class ProofError(EdgeftError):
    pass


class MissingExtra(EdgeftError):
    pass


def require(module: str, extra: str) -> ModuleType:
    """Import `module`, or say which extra brings it.

    Only the absence of the named package itself is translated: an import that fails inside an
    installed package is a defect to see, not a package to install.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise MissingExtra(
            f"{error.name} is not installed", hint=f"pip install 'edgeft[{extra}]'"
        ) from None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint for an unknown `name`: its nearest neighbour, then everything that exists."""
    names = sorted(known)
    near = difflib.get_close_matches(name.lower(), names, n=1)
    guess = f"did you mean {near[0]!r}? " if near else ""
    return f"{guess}known: {', '.join(names)}"
