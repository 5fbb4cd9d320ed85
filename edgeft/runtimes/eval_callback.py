"""Run token sequences through a model while a callback sees each tensor that llama.cpp computes.

The callback is that of ggml-backend.h, `ggml_backend_sched_eval_callback`: it gets the address of a
tensor twice, before the tensor is computed (then it says whether it wants to see the result) and
after (then it says whether to go on).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from edgeft.runtimes.llama_context import BATCH_TOKENS, BatchToken, LlamaContext, LlamaModel

Observer = Callable[[int, bool], bool]
"""(address of a ggml_tensor, before it is computed?) -> see it / go on"""

MAX_SEQUENCES = 64
"""that share one batch"""


def run_observed(
    model: LlamaModel, sequences: Sequence[Sequence[int]], observer: Observer
) -> Iterator[int]:
    """Compute every sequence, as many in one batch as fit into it; yields each batch's tokens.

    An exception of `observer` is raised here. All tokens count as outputs, because llama.cpp computes
    the feed-forward part of the last layer for outputs only.
    """
    raised: list[BaseException] = []

    @model.lib.ggml_backend_sched_eval_callback  # type: ignore[untyped-decorator, unused-ignore]
    def callback(tensor: int, ask: bool, _: object) -> bool:
        try:
            return ask if raised else observer(tensor, ask)
        except BaseException as error:  # noqa: BLE001  ctypes would print it and go on
            raised.append(error)
            return False

    # A recurrent model would cut a batch of several sequences into parts of equal length.
    count = 1 if model.is_recurrent else MAX_SEQUENCES
    params = model.context_params(max(map(len, sequences), default=0) + BATCH_TOKENS, count)
    params.cb_eval = callback
    params.kv_unified = True  # sequences of any length in one pass
    context = LlamaContext(model, params)
    try:
        for batch in packed_batches(sequences, count):
            _, position, sequence = batch[0]
            if position:
                context.keep_only(sequence)
            else:
                context.clear()
            context.decode(batch, outputs=len(batch))
            if raised:
                raise raised[0]
            yield len(batch)
    finally:
        context.close()


def packed_batches(sequences: Sequence[Sequence[int]], count: int) -> Iterator[list[BatchToken]]:
    """Full batches from at most `count` sequences each. The first sequence of a batch may be the rest
    of the last one of the batch before."""
    batch: list[BatchToken] = []
    for number, ids in enumerate(sequences):
        if batch and number % count == batch[0][2]:
            yield batch
            batch = []
        for position, token in enumerate(ids):
            batch.append((token, position, number % count))
            if len(batch) == BATCH_TOKENS:
                yield batch
                batch = []
    if batch:
        yield batch
