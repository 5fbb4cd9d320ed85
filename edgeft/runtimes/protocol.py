"""The protocol of a runtime, and a path -> the runtime of its format.

Chat, bench and ab use a model through this protocol only:

with open_runtime(Path("q4_k_m.gguf")) as model:
    for token in model.stream(model.encode(model.chat.render(messages)), Limits()):
        print(token.text, end="")
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from edgeft.errors import EdgeftError, FormatError
from edgeft.formats import FORMATS, Format, format_of, load
from edgeft.records import Limits, Reply, Token
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.tokenizer.template_lock import check_template_lock

DEFAULT_CONTEXT_TOKENS = 4096
"""that a conversation may have, where the model allows so many and the user names no number"""


class Runtime(Protocol):
    """A model that is open; a context manager that closes it."""

    chat: ChatTemplate
    vocab_size: int
    context: int
    """tokens that a conversation may have"""

    def encode(self, text: str) -> list[int]:
        """Text -> ids, special tokens recognised, nothing added."""

    def logits(self, ids: Sequence[int], last: int | None = None) -> npt.NDArray[np.float32]:
        """Teacher forcing: (len(ids), vocab_size), row i predicts token i + 1. With `last`, only the
        last so many rows."""

    def stream(self, ids: Sequence[int], limits: Limits) -> Iterator[Token]:
        """Generate one reply. Stops at an eos token, which is not yielded."""

    def replies(
        self,
        prompts: Sequence[Sequence[int]],
        limits: Limits,
        progress: Callable[[int], None] | None = None,
    ) -> list[Reply]:
        """Answer many prompts greedily, as many at a time as suits the engine. `progress` gets the
        number of replies that are complete."""

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


def checked_format(path: Path) -> Format:
    """The format of an artifact. InputError where the engine would end the process that opens it."""
    model_format = format_of(path)
    if model_format.trial:
        load(model_format.trial)(path)
    return model_format


def open_runtime(
    path: Path,
    threads: int | None = None,
    context: int | None = None,
    exact: bool = False,
    repack: bool = True,
    kv_type: str = "f16",
    batch_invariant: bool = False,
) -> Runtime:
    """Open an artifact with the runtime that the table of formats names for it.

    `threads`: default all cores of the process. `context`: tokens, default what the engine and the
    model allow up to 4096. `exact`: run the reference, in float32. `repack`: the engine may copy
    weights into an order that it multiplies faster. `kv_type`: of the cache, a name of
    `edgeft.kv_cache.KV_TYPES`. `batch_invariant`: the weights are multiplied by kernels that give a row the
    same bits in a batch of any size; an engine that computes one row at a time does so anyway.

    FormatError where `exact` or `kv_type` is not possible. InputError for a file that would end this process.
    TemplateError where the artifact no longer carries the
    chat template and the stop tokens that its manifest names.
    """
    model_format = checked_format(path)
    if exact and not model_format.reference:
        raise FormatError(
            f"{path} cannot be computed exactly: its engine rounds on the way",
            f"a folder of {' or '.join(name for name, row in FORMATS.items() if row.reference)}",
        )
    entry = model_format.reference if exact else model_format.runtime
    options: dict[str, Any] = {}
    if not repack and entry != model_format.reference:
        options["repack"] = False
    llama_cpp = "llama-cpp-python" in model_format.engines and entry != model_format.reference
    if batch_invariant and llama_cpp:
        options["batch_invariant"] = True
    if kv_type != "f16":
        if not llama_cpp:
            raise FormatError(
                f"{path}: only llama.cpp's cache can be in {kv_type}", "--kv-type f16"
            )
        options["kv_type"] = kv_type
    runtime: Runtime = load(entry)(path, threads=threads, context=context, **options)
    try:
        check_template_lock(path, runtime.chat)
    except EdgeftError:
        runtime.close()
        raise
    return runtime
