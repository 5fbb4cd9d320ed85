"""llama.cpp's library: its functions, and the messages that it logs as errors."""

from __future__ import annotations

import functools
import os
import re
from typing import Any

LOG_LEVEL_ERROR = 4
"""ggml_log_level in ggml.h"""
MAX_ERRORS = 100
"""messages that are kept of one call"""


def load_library() -> tuple[Any, list[str]]:
    """llama.cpp's functions, and the list that its error messages are appended to.

    Its other messages are dropped. The log callback is set on each call, because another user of the
    library may have replaced it.
    """
    lib, errors, log = _library()
    lib.llama_log_set(log, None)
    return lib, errors


@functools.cache
def _library() -> tuple[Any, list[str], Any]:
    """(functions, error messages, log callback, which must outlive every call)"""
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # an abort would start a debugger
    from llama_cpp import llama_cpp

    errors: list[str] = []

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator, unused-ignore]
    def log(level: int, text: bytes, _: object) -> None:
        if level == LOG_LEVEL_ERROR and len(errors) < MAX_ERRORS:
            errors.append(text.decode("utf-8", "replace"))

    llama_cpp.llama_backend_init()
    return llama_cpp, errors, log


def first_error(errors: list[str]) -> str:
    """The cause of a failure: llama.cpp logs it first, and then each caller logs that it failed."""
    return re.sub(r"^\w+: (error loading model: )?", "", errors[0].strip()) if errors else ""
