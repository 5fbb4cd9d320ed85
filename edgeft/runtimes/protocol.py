"""Runtimes open an artifact and answer prompts; chat, bench and ab know nothing else of it.

with open_runtime(Path("q4_k_m.gguf")) as model:
    for token in model.stream(model.encode(model.chat.render(messages)), Limits()):
        print(token.text, end="")
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

from edgeft.errors import EdgeftError, FormatError
from edgeft.formats import FORMATS, format_of, load
from edgeft.records import Limits, Reply, Token
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.tokenizer.template_lock import check_template_lock


class Runtime(Protocol):
    chat: ChatTemplate
    vocab_size: int
    context: int
    """tokens that a conversation may have"""

    def encode(self, text: str) -> list[int]:
        """Text -> ids, special tokens recognised, nothing added."""

    def logits(self, ids: Sequence[int], last: int | None = None) -> npt.NDArray[np.float32]:
        """Teacher forcing: (len(ids), vocab_size), row i predicts token i + 1; only the `last` so
        many rows where that is given."""

    def stream(self, ids: Sequence[int], limits: Limits) -> Iterator[Token]:
        """Generate one reply. Stops at a stop token, which is not yielded."""

    def replies(
        self,
        prompts: Sequence[Sequence[int]],
        limits: Limits,
        progress: Callable[[int], None] | None = None,
    ) -> list[Reply]:
        """Answer many prompts greedily, as many at a time as the engine does best."""

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def open_runtime(
    path: Path,
    threads: int | None = None,
    context: int | None = None,
    exact: bool = False,
    repack: bool = True,
) -> Runtime:
    """Open an artifact with the runtime that the formats table names for it.

    `threads`: default all cores of the process. `context`: tokens, default what the engine and the
    model allow up to 4096. `exact`: by the reference, in float32. `repack`: whether the engine may
    copy weights into an order that it multiplies faster. TemplateError where the artifact no longer
    carries the chat template and the stops that its manifest names.
    """
    row = format_of(path)
    if exact and not row.reference:
        raise FormatError(
            f"{path} cannot be computed exactly: its engine rounds on the way",
            f"a folder of {' or '.join(name for name, row in FORMATS.items() if row.reference)}",
        )
    entry = row.reference if exact else row.runtime
    how = {} if repack or entry == row.reference else {"repack": False}
    runtime: Runtime = load(entry)(path, threads=threads, context=context, **how)
    try:
        check_template_lock(path, runtime.chat)
    except EdgeftError:
        runtime.close()
        raise
    return runtime
