"""Run a GGUF file on llama.cpp: token ids -> logits, streamed tokens, replies, embeddings.

    with GGUFRuntime(Path("model.gguf")) as model:
        ids = model.encode(model.chat.render([Message("user", "hi")]))
        print("".join(token.text for token in model.stream(ids, Limits())))

llama.cpp is called over its C interface, which is faster than llama-cpp-python's class `Llama`.
`stream` and `logits` share one context, whose tokens are kept: the next turn of a conversation
decodes only what is new. `replies`, `embed_all` and `watch` make a context of their own and close it at
the end. Calls may be interleaved but not run in parallel: a server puts a lock around each.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from edgeft import machine
from edgeft.errors import InputError, TooLong
from edgeft.models.text_model import no_language_model
from edgeft.records import Limits, Reply, Token
from edgeft.runtimes.continuous_batching import greedy_replies
from edgeft.runtimes.eval_callback import Observer, run_observed
from edgeft.runtimes.llama_context import BATCH_TOKENS, LlamaContext, LlamaModel, Logits
from edgeft.runtimes.llama_vocabulary import LlamaVocabulary
from edgeft.runtimes.protocol import DEFAULT_CONTEXT_TOKENS
from edgeft.runtimes.sampling import common_prefix
from edgeft.runtimes.sequences import MAX_AHEAD, Sequences

MAX_ANSWERS = 16
"""that `replies` writes at the same time"""
REPLIES_CACHE_CONTEXTS = 4
"""times `context`: tokens that all answers of `replies` may hold together"""


class GGUFRuntime:
    def __init__(
        self,
        path: Path,
        threads: int | None = None,
        context: int | None = None,
        exact: bool = False,
        repack: bool = True,
        kv_type: str = "f16",
        batch_invariant: bool = False,
        rates: bool = False,
    ) -> None:
        """`context`: tokens, default what the model was trained on up to 4096. `rates`: open a reward model,
        for `scores` alone. The other options are those of `LlamaModel`. InputError for a reward model where a
        language model is asked for, and the other way round."""
        self.path = path
        with contextlib.ExitStack() as resources:
            self._model = LlamaModel(path, threads, exact, repack, kv_type, batch_invariant)
            resources.callback(self._model.close)
            outputs = self._model.head_outputs
            if rates and outputs != 2:
                raise _no_head(path)
            if not rates and outputs > 1:
                raise no_language_model(path)
            self._vocabulary = vocabulary = LlamaVocabulary(self._model)
            self.encode, self.decoder = vocabulary.encode, vocabulary.decoder
            self.piece, self.eos_ids = vocabulary.piece, vocabulary.eos_ids
            self.file_eos_ids = vocabulary.file_eos_ids
            self.vocab_size, self.adds_bos = vocabulary.size, vocabulary.adds_bos
            self.chat = vocabulary.chat
            self.context = context or min(self._model.training_context, DEFAULT_CONTEXT_TOKENS)
            self._check_memory(self.context)
            self._resources = resources.pop_all()

    @property
    def is_recurrent(self) -> bool:
        """Has the model layers with a state that cannot be rewound to an earlier token?"""
        return self._model.is_recurrent

    @functools.cached_property
    def special_tokens(self) -> dict[str, int]:
        """As `LlamaVocabulary` has them."""
        return self._vocabulary.special_tokens

    @functools.cached_property
    def _conversation(self) -> Sequences:
        """One sequence, which `stream` and `logits` share."""
        sequences = self._sequences(self.context, 1, outputs=BATCH_TOKENS)
        self._resources.callback(sequences.close)
        return sequences

    def logits(self, ids: Sequence[int], last: int | None = None) -> Logits:
        """(len(ids), vocab_size): row i predicts token i + 1; only the `last` rows where given."""
        self._check(ids)
        count = min(last or len(ids), len(ids))
        first = len(ids) - count
        rows = np.empty((count, self.vocab_size), dtype=np.float32)
        self._conversation.truncate(0, 0)
        self._conversation.reserve(len(ids))
        for start in range(0, len(ids), self._conversation.batch_tokens):
            part = ids[start : start + self._conversation.batch_tokens]
            begin = max(first - start, 0)
            self._conversation.read(0, part, outputs=max(1, len(part) - begin))
            if begin < len(part):
                rows[start + begin - first :][: len(part) - begin] = self._conversation.rows
        self._conversation.truncate(0, 0)
        return rows

    def stream(self, ids: Sequence[int], limits: Limits) -> Iterator[Token]:
        """Generate one reply. Stops at an eos token, which is not yielded."""
        self._check(ids)
        return self._generate(list(ids), limits, time.perf_counter())

    def _generate(self, ids: list[int], limits: Limits, start: float) -> Iterator[Token]:
        text = self.decoder()
        end = min(len(ids) + limits.max_tokens, self.context + 1)
        with contextlib.closing(self._conversation.sampler(limits.sampling)) as sampler:
            while len(ids) < end:
                self._read(ids)
                token = self._conversation.choose(0, sampler)
                if token in self.eos_ids and not limits.ignore_eos:
                    return
                ids.append(token)
                yield Token(token, text(token), time.perf_counter() - start)

    def _read(self, ids: list[int]) -> None:
        """Compute the logits after `ids`; only tokens that the cache does not hold are decoded."""
        cached, needed = self._conversation.tokens[0], ids[:-1]
        shared = len(cached) if cached == needed else common_prefix(cached, needed)
        shared = self._conversation.truncate(0, shared)
        self._conversation.read(0, ids[shared:])

    def replies(
        self,
        prompts: Sequence[Sequence[int]],
        limits: Limits,
        progress: Callable[[int], None] | None = None,
    ) -> list[Reply]:
        """Answer many prompts greedily, `MAX_ANSWERS` at a time where the cache has room for them.
        `progress` gets the number of replies that are complete."""
        for prompt in prompts:
            self._check(prompt)
        replies = [Reply("", (), False) for _ in prompts]
        if not prompts or limits.max_tokens < 1:
            return replies
        longest = min(max(map(len, prompts)) + limits.max_tokens, self.context)
        room = REPLIES_CACHE_CONTEXTS * self.context // longest - 1
        slots = max(1, min(MAX_ANSWERS, len(prompts), room))
        with self._sequences(longest, slots + 1) as sequences:
            ended = greedy_replies(sequences, self._vocabulary, prompts, limits, self.context)
            for count, (index, reply) in enumerate(ended, start=1):
                replies[index] = reply
                if progress:
                    progress(count)
        return replies

    def embed(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """(width,): the mean of the last layer's states over 1 to `context` tokens, scaled to length 1."""
        state: npt.NDArray[np.float32] = self.embed_all([ids])[0]
        return state

    def embed_all(self, sequences: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        """(sequences, width): `embed` of each, in one context."""
        return np.stack([state for state in self.embeddings(sequences) if state is not None])

    def embeddings(
        self, sequences: Sequence[Sequence[int]]
    ) -> Generator[npt.NDArray[np.float32] | None]:
        """`embed` of each in turn; None after each batch, where a server may compute something else.
        Close it before the runtime."""
        for ids in sequences:
            if not 0 < len(ids) <= self.context:
                raise InputError(f"{len(ids)} tokens to embed, 1 to {self.context} are possible")
        longest = max(map(len, sequences), default=0)
        params = self._model.context_params(max(BATCH_TOKENS, longest))
        params.embeddings = True
        params.pooling_type = self._model.lib.LLAMA_POOLING_TYPE_NONE
        with contextlib.closing(LlamaContext(self._model, params)) as context:
            for ids in sequences:
                context.clear()
                mean = np.zeros(self._model.width, dtype=np.float64)
                for begin in range(0, len(ids), context.batch_tokens):
                    part = ids[begin : begin + context.batch_tokens]
                    context.decode([(t, i, 0) for i, t in enumerate(part, begin)], len(part))
                    mean += context.states(len(part)).sum(axis=0, dtype=np.float64) / len(ids)
                    yield None
                yield (mean / max(float(np.linalg.norm(mean)), 1e-12)).astype(np.float32)

    def scores(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """The score of each, of 1 token to as many as the model was trained on, by the head of a reward model.

        llama.cpp gives the softmax of the score and 0 (`models.transforms.ScoreAndZero`).
        """
        longest = max(map(len, sequences), default=1)
        if longest > self._model.training_context:
            raise TooLong(longest, self._model.training_context)
        self._check_memory(longest)
        padding = self._model.score_padding_id
        params = self._model.context_params(max(BATCH_TOKENS, longest))
        params.embeddings = True
        params.pooling_type = self._model.lib.LLAMA_POOLING_TYPE_RANK
        scores = []
        with contextlib.closing(LlamaContext(self._model, params)) as context:
            for ids in sequences:
                context.clear()
                length = max((i for i, token in enumerate(ids, 1) if token != padding), default=1)
                for begin in range(0, length, context.batch_tokens):
                    part = ids[begin : min(begin + context.batch_tokens, length)]
                    context.decode([(t, i, 0) for i, t in enumerate(part, begin)], len(part))
                chances = context.head_outputs(0, 2).astype(np.float64)
                scores.append(float(np.log(chances[0]) - np.log(chances[1])))
        return scores

    def watch(self, sequences: Sequence[Sequence[int]], observer: Observer) -> Iterator[int]:
        """Compute every sequence while `observer` sees the tensors; yields the tokens of each batch
        (`edgeft.runtimes.eval_callback`)."""
        for ids in sequences:
            self._check(ids)
        return run_observed(self._model, sequences, observer)

    def sequences(self, count: int, isolated: bool = True, grows: bool = True) -> Sequences:
        """A context for `count` conversations side by side, for a scheduler.

        ResourceError where all of them at their full length would not fit into the memory that is free.
        `isolated`: each sequence gets the bits that it gets alone. A cache in float16 then does
        without flash attention: it splits the keys of a single token among the threads, but not
        those of several (ggml-cpu/ops.cpp: `use_split_kv_path`). It never splits quantized ones.
        `grows`: the cache grows by need; otherwise it has its full size at once.
        """
        self._check_memory(count * self.context)
        flash_attention = not isolated or self._model.kv_type.is_quantized
        sequences = self._sequences(self.context, count, MAX_AHEAD, flash_attention, grows)
        if isolated:
            try:
                sequences.probe_batch_invariance()
            except BaseException:
                sequences.close()
                raise
        return sequences

    def _sequences(
        self,
        length: int,
        count: int,
        outputs: int = 1,
        flash_attention: bool = True,
        grows: bool = True,
    ) -> Sequences:
        """`count` sequences of at most `length` tokens in a new context."""

        def open_context(room: int) -> LlamaContext:
            params = self._model.context_params(room * count, count, outputs)
            if not flash_attention:
                params.flash_attn_type = self._model.lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
            return LlamaContext(self._model, params)

        return Sequences(self._model, open_context, count, length, grows)

    def _check_memory(self, tokens: int) -> None:
        """ResourceError where a cache of so many tokens does not fit into the memory that is free."""
        memory = self._model.cache_bytes(tokens)
        machine.preflight(Path(), f"a context of {tokens} tokens", memory=memory)

    def _check(self, ids: Sequence[int]) -> None:
        if not ids:
            raise InputError("the prompt is empty")
        if len(ids) > self.context:
            raise TooLong(len(ids), self.context)
        if not 0 <= min(ids) <= max(ids) < self.vocab_size:
            raise InputError(f"the ids of tokens go from 0 to {self.vocab_size - 1}")

    def close(self) -> None:
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _no_head(path: Path) -> InputError:
    return InputError(
        f"{path} has no head that rates texts",
        "merge-export of a reward model of the Qwen3 family writes one",
    )
