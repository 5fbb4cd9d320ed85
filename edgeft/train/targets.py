"""`--target-modules` -> which modules it names, as peft reads `target_modules`.

targets = pattern_of(chosen) or chosen
is_target("model.layers.0.self_attn.q_proj", targets)
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from edgeft.errors import InputError

ALL_LINEAR = "all-linear"
"""every linear layer but the head"""


def pattern_of(chosen: Sequence[str]) -> str:
    """The regular expression, whose commas may have cut it; "" where `chosen` are names.

    InputError where it is none.
    """
    pattern = ",".join(chosen)
    if not re.search(r"[\\^$*+?()\[\]{}|]", pattern):
        return ""
    try:
        re.compile(pattern)
    except re.error as error:
        raise InputError(f"--target-modules {pattern!r} is no pattern: {error}") from None
    return pattern


def is_target(module: str, targets: Sequence[str] | str) -> bool:
    """Whether names, or a regular expression for a module's whole name, mean a module."""
    if isinstance(targets, str):
        return bool(re.fullmatch(targets, module))
    return any(module == target or module.endswith(f".{target}") for target in targets)
