"""A small model of the same vocabulary -> guesses of the next tokens, for a larger one to verify.

    with GGUFRuntime(small) as runtime:
        model = DraftModel(runtime, target)
        draft = ModelDraft(model, prompt_ids)   # one for each answer; they share the model's one sequence
        draft.propose(most=7)

It guesses greedily and stops where it is unsure. What it computes changes no answer, so its cache and its
kernels are the fastest ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from edgeft.errors import InputError, ResourceError
from edgeft.runtimes.gguf import GGUFRuntime
from edgeft.runtimes.llama_context import Logits
from edgeft.runtimes.sampling import common_prefix
from edgeft.runtimes.speculation import Draft

MIN_PROBABILITY = 0.75
"""of a token that is guessed; llama.cpp's default of --draft-p-min"""
MAX_PADDING_IDS = 128
"""by which two vocabularies may differ in length: some families pad the embedding to a round number
(llama.cpp, common/speculative.cpp: `SPEC_VOCAB_MAX_SIZE_DIFFERENCE`)"""
READ_TOKENS = 256
"""of a prompt that are read at once: others wait meanwhile"""


class DraftModel:
    """Used by one thread."""

    def __init__(self, runtime: GGUFRuntime, target: GGUFRuntime, grows: bool = True) -> None:
        """Takes `runtime` over, and closes it in the end; `grows` as in `GGUFRuntime.sequences`.

        InputError where its tokens are not those of `target`, or where it cannot take tokens back.
        """
        self._runtime = runtime
        if runtime.is_recurrent:
            problem = f"{runtime.path} cannot go back to an earlier token, which a draft does often"
            raise InputError(problem, "--draft with a model without recurrent layers")
        check_same_vocabulary(runtime, target)
        self.vocab_size = min(runtime.vocab_size, target.vocab_size)
        """tokens that both have"""
        self._sequences = runtime.sequences(1, isolated=False, grows=grows)
        self._length = self._sequences.length
        """tokens of a conversation with which it guesses"""

    def guess(self, ids: Sequence[int], most: int) -> list[int]:
        """At most so many tokens after `ids`; none while it has not read all of them."""
        sequences = self._sequences
        if len(ids) + most > self._length:
            return []
        try:
            sequences.reserve(len(ids) + most)
        except ResourceError:  # the answer goes on without guesses
            self._length = sequences.room
            return []
        shared = sequences.truncate(0, common_prefix(sequences.tokens[0], ids[:-1]))
        unread = ids[shared : shared + READ_TOKENS]
        if max(unread) >= self.vocab_size:
            return []
        sequences.read(0, unread)
        if shared + len(unread) < len(ids):
            return []
        guessed: list[int] = []
        while (token := self._sure_token(sequences.row(0))) is not None:
            guessed.append(token)
            if len(guessed) == most:
                break
            sequences.step([(0, token)])
        return guessed

    def _sure_token(self, row: Logits) -> int | None:
        """The likeliest token, None where it is not likely enough."""
        token = int(row[: self.vocab_size].argmax())
        probability = 1 / np.exp(row - row[token]).sum(dtype=np.float64)
        return token if probability >= MIN_PROBABILITY else None

    def close(self) -> None:
        self._sequences.close()
        self._runtime.close()


class ModelDraft(Draft):
    def __init__(self, model: DraftModel, ids: Iterable[int]) -> None:
        self._model = model
        super().__init__(ids)

    def guess(self, most: int) -> list[int]:
        return self._model.guess(self.ids, most)


def check_same_vocabulary(draft: GGUFRuntime, target: GGUFRuntime) -> None:
    """InputError where a token of one has another text in the other. One may have some more, which
    pad its embedding."""
    size = min(draft.vocab_size, target.vocab_size)
    if max(draft.vocab_size, target.vocab_size) - size > MAX_PADDING_IDS:
        difference = f"{draft.vocab_size} and {target.vocab_size} tokens"
    else:
        ids = (i for i in range(size) if draft.piece(i) != target.piece(i))
        if (differs := next(ids, None)) is None:
            return
        texts = (f"{runtime.piece(differs)!r:.40}" for runtime in (draft, target))
        difference = f"token {differs} is {' and '.join(texts)}"
    raise InputError(
        f"{draft.path} has another vocabulary than {target.path}: {difference}",
        "--draft with a smaller model of the same family",
    )
