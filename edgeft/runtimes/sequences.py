"""Several sequences in one context of llama.cpp: token ids -> logits and the next token of each.

The caller decides what is computed when:

    with GGUFRuntime(path) as model, model.sequences(4) as sequences:
        sequences.read(0, ids)                                   # a prompt, or a part of it
        token = sequences.choose(0, sequences.sampler(Sampling()))   # from row 0 of the logits
        sequences.step([(0, token), (3, other)])                 # one token each

Each sequence has its own part of the cache: in a unified cache, attention adds its terms in an order
that depends on the other sequences. llama.cpp then computes only sequences with neighbouring numbers
together, so a gap of one is filled with a padding token that is taken back (`batch_invariance`).

The parts grow with the longest sequence. llama.cpp allocates and touches a cache as a whole, so a
larger one is a new context, into which the bytes of the old one are copied.
Used by one thread; samplers may be made and freed in others.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np

from edgeft.records import Sampling
from edgeft.runtimes.batch_invariance import PROBED_SEQUENCES, BatchInvariance, probe
from edgeft.runtimes.grammar import GrammarVocabulary, Matcher
from edgeft.runtimes.llama_context import BatchToken, LlamaContext, LlamaModel, Logits
from edgeft.runtimes.llama_vocabulary import LlamaVocabulary

FIRST_ROOM_TOKENS = 256
"""of each sequence at the start; llama.cpp's caches are multiples of it"""
MAX_AHEAD = 8
"""tokens of a sequence that are computed together, of which all but the first are a guess"""
PROBE_PROMPT_TOKENS = 8
PROBE_VALUES = 2**17
"""states of all layers to compare: in a small model two kernels often round to the same bits"""
PROBE_MAX_STEPS = 16


class Sequences:
    def __init__(
        self,
        model: LlamaModel,
        open_context: Callable[[int], LlamaContext],
        count: int,
        length: int,
        grows: bool = True,
    ) -> None:
        """`open_context`: tokens of each sequence -> a context for `count` sequences of `model`, which
        is closed in the end. `length`: tokens that each may have. `grows`: the cache begins small;
        otherwise it has its full size at once."""
        self._model, self._open_context = model, open_context
        self._lib, self._vocab = model.lib, model.vocab
        self._size: int = self._lib.llama_vocab_n_tokens(self._vocab)
        self._can_pad = not model.is_recurrent
        self._invariance = BatchInvariance(max_batch=count)
        self.max_ahead = MAX_AHEAD if self._can_pad else 1
        """tokens that `step_ahead` may take; 1 where the model cannot go back to an earlier one"""
        self.count, self.length = count, length
        # A recurrent state has the same size at any length.
        grows &= not model.is_recurrent
        self.room = min(FIRST_ROOM_TOKENS, length) if grows else length
        """tokens that each sequence can have before the cache grows; read only"""
        self._context = open_context(self.room)
        self.tokens: list[list[int]] = [[] for _ in range(count)]
        """the token ids of each sequence; read only"""
        self.prompt_lengths = [0] * count
        """tokens at the beginning of each sequence that were read, not stepped to; read only"""
        self._rows: Logits = np.empty((0, self._size), np.float32)
        self._at: list[int] | None = None
        """the rows of `_rows` that are not of padding tokens; None = all"""

    @property
    def batch_tokens(self) -> int:
        """tokens that one batch takes at most"""
        return self._context.batch_tokens

    @property
    def max_batch(self) -> int:
        """sequences that one `step` may take"""
        return self._invariance.max_batch

    @property
    def pad_single_token(self) -> bool:
        """a single token is decoded beside a padding token"""
        return self._invariance.pad_single_token

    def read(self, number: int, ids: Sequence[int], outputs: int = 1) -> None:
        """Append `ids` to a sequence, in as many batches as they need. `rows` then has the logits after
        each of the last `outputs` tokens, which must fit into the last batch."""
        tokens = self.tokens[number]
        self.reserve(len(tokens) + len(ids))
        for start in range(0, len(ids), self.batch_tokens):
            part = ids[start : start + self.batch_tokens]
            batch = [(token, i, number) for i, token in enumerate(part, len(tokens))]
            self._decode(batch, min(outputs, len(part)))
            if self.prompt_lengths[number] == len(tokens):
                self.prompt_lengths[number] += len(part)
            tokens.extend(part)

    def step(self, tokens: Sequence[tuple[int, int]]) -> None:
        """Append one token to each of several sequences, given as (number of the sequence, token id) in
        ascending order; `rows` then has a row for each."""
        self._decode([(token, len(self.tokens[n]), n) for n, token in tokens], len(tokens))
        for number, token in tokens:
            self.tokens[number].append(token)

    def step_ahead(self, number: int, ids: Sequence[int]) -> None:
        """Append several tokens to one sequence in one batch; `rows` then has a row for each. At most
        `max_ahead` of them get the logits that they get one by one."""
        tokens = self.tokens[number]
        batch = [(token, i, number) for i, token in enumerate(ids, len(tokens))]
        self._decode(batch, len(batch))
        tokens.extend(ids)

    def reserve(self, tokens: int) -> None:
        """Let the cache grow, so that each sequence can have so many tokens, at most `length`. `rows` are
        lost where it grows.

        ResourceError where memory is short; the cache is then as it was.
        """
        room = self.room
        while room < min(tokens, self.length):
            room = min(2 * room, self.length)
        if room == self.room:
            return
        states = {n: self._context.state(n) for n, ids in enumerate(self.tokens) if ids}
        self._rows, self._at = np.empty((0, self._size), np.float32), None
        self._context.close()  # before, so that there are never two caches
        try:
            self._context = self._open_context(room)
            self.room = room
        except BaseException:
            self._context = self._open_context(self.room)
            raise
        finally:
            for number, state in states.items():
                self._context.restore(number, state)

    def probe_batch_invariance(self) -> None:
        """Measure how many sequences may step together so that each gets, bit for bit, the logits that
        it gets alone. To be called while the sequences are empty."""
        probed = range(min(self.count, PROBED_SEQUENCES))
        for number in probed:
            ids = [(number * 31 + i * 7) % self._size for i in range(PROBE_PROMPT_TOKENS)]
            self.read(number, ids)

        def decode(invariance: BatchInvariance) -> Logits:
            self._invariance = invariance
            rows = []
            for step in range(self._probe_steps):
                for begin in probed[:: invariance.max_batch]:
                    numbers = probed[begin : begin + invariance.max_batch]
                    self.step([(n, (n * 13 + step) % self._size) for n in numbers])
                    rows.append(self.rows.copy())
                    for number in numbers:
                        self.truncate(number, PROBE_PROMPT_TOKENS)
            return np.concatenate(rows)

        self._invariance = probe(decode, self.count, self._can_pad)
        for number in probed:
            self.truncate(number, 0)

    def probe_ahead(self) -> None:
        """Measure how many tokens of one sequence may be computed together (`max_ahead`), so that each
        gets the bits that it gets alone. To be called while the sequences are empty.

        1 for a cache in float16, whatever the probe of a short sequence would say: its attention
        has other kernels for several tokens, which differ from some length on.
        """
        if not self._model.kv_type.is_quantized:
            self.max_ahead = 1
        if self.max_ahead == 1:
            return
        self.read(0, [(i * 7) % self._size for i in range(PROBE_PROMPT_TOKENS)])
        guesses = [
            [(start * 37 + i * 11) % self._size for i in range(self.max_ahead)]
            for start in range(self._probe_steps)
        ]
        alone = [self._rows_of(ids, together=1) for ids in guesses]

        def differs(count: int, rounds: int) -> bool:
            return any(
                (self._rows_of(ids[:count], together=count) != rows[:count]).any()
                for ids, rows in zip(guesses[:rounds], alone, strict=False)
            )

        while self.max_ahead > 1 and (
            differs(self.max_ahead, len(guesses))
            or any(differs(count, 1) for count in range(2, self.max_ahead))
        ):
            self.max_ahead -= 1
        self.truncate(0, 0)

    def _rows_of(self, ids: Sequence[int], together: int) -> Logits:
        """(len(ids), vocabulary): the logits of `ids` behind the first sequence, computed so many at a
        time and taken back."""
        length, rows = len(self.tokens[0]), []
        for start in range(0, len(ids), together):
            part = ids[start : start + together]
            if together == 1:
                self.step([(0, part[0])])
            else:
                self.step_ahead(0, part)
            rows.append(self.rows.copy())
        self.truncate(0, length)
        return np.concatenate(rows)

    @property
    def _probe_steps(self) -> int:
        values = self._model.width * self._model.layers
        return max(1, min(PROBE_MAX_STEPS, PROBE_VALUES // values))

    @property
    def rows(self) -> Logits:
        """(outputs, vocabulary), in llama.cpp's memory: the next call overwrites them."""
        return self._rows if self._at is None else self._rows[self._at]

    def row(self, number: int) -> Logits:
        """(vocabulary,): one of `rows`."""
        row: Logits = self._rows[number if self._at is None else self._at[number]]
        return row

    def truncate(self, number: int, length: int) -> int:
        """Forget all but the first `length` tokens of a sequence; the length that is left.

        0 for a recurrent model, whose state cannot go back to an earlier token.
        """
        length = self._context.truncate(number, length)
        del self.tokens[number][length:]
        self.prompt_lengths[number] = min(self.prompt_lengths[number], length)
        return length

    def copy(self, source: int, target: int) -> None:
        """Overwrite one sequence with another. The cost is that of moving its keys and values."""
        self._context.copy(source, target)
        self.tokens[target][:] = self.tokens[source]
        self.prompt_lengths[target] = self.prompt_lengths[source]

    def sampler(self, sampling: Sampling) -> Sampler:
        """InputError for a grammar that is invalid or too complex."""
        matcher = self._grammars.matcher(sampling.grammar) if sampling.grammar else None
        return Sampler(self._lib, self._size, self.length, sampling, matcher)

    @functools.cached_property
    def _grammars(self) -> GrammarVocabulary:
        return grammar_vocabulary(self._model)

    def choose(self, row: int, sampler: Sampler) -> int:
        """The next token by a row of logits."""
        if sampler.matcher:
            token = sampler.matcher.choose(self.row(row), sampler.sample)
            if sampler.chain:
                self._lib.llama_sampler_accept(sampler.chain, token)
            return token
        if not sampler.chain:
            # llama.cpp's greedy sampler would copy the vocabulary first.
            return int(self.row(row).argmax())
        # Counted from the end, outputs are meant and not tokens.
        index = (row if self._at is None else self._at[row]) - len(self._rows)
        return int(self._lib.llama_sampler_sample(sampler.chain, self._context.pointer, index))

    def _decode(self, tokens: Sequence[BatchToken], outputs: int) -> None:
        """Logits after the last `outputs` tokens, into `rows`."""
        padding = self._padding_tokens(tokens) if len(tokens) == outputs else []
        # Padding tokens are outputs, too: the last layer is computed for outputs only.
        batch = sorted([*tokens, *padding], key=lambda token: token[2]) if padding else tokens
        self.reserve(max(position for _, position, _ in batch) + 1)
        try:
            self._context.decode(batch, outputs + len(padding))
            self._rows = self._context.logits(outputs + len(padding))
            real = (i for i, token in enumerate(batch) if token not in padding)
            self._at = list(real) if padding else None
        except BaseException:
            for number in {number for _, _, number in tokens}:
                self.truncate(number, len(self.tokens[number]))
            raise
        finally:
            for _, position, number in padding:
                self._context.truncate(number, position)

    def _padding_tokens(self, tokens: Sequence[BatchToken]) -> list[BatchToken]:
        """Tokens of other sequences, to be taken back, that let llama.cpp compute these together."""
        if not self._can_pad:
            return []

        def may_pad(number: int) -> bool:
            return 0 <= number < self.count and len(self.tokens[number]) < self.length

        numbers = self._invariance.padding([number for _, _, number in tokens], may_pad)
        return [(0, len(self.tokens[number]), number) for number in numbers]

    def close(self) -> None:
        self._context.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Sampler:
    """llama.cpp's samplers of one answer and the matcher of its grammar. Both remember what was
    chosen. Close it in the end."""

    def __init__(
        self,
        lib: Any,
        size: int,
        length: int,
        how: Sampling,
        matcher: Matcher | None = None,
    ) -> None:
        """`matcher`: follows `how.grammar`, where there is one; `Sequences.sampler` makes it."""
        if how.grammar and not matcher:
            raise ValueError("a grammar needs its matcher")
        self._lib = lib
        self.chain: Any = None
        """None: the likeliest token, which needs no sampler"""
        self.matcher = matcher
        penalties = how.repeat_penalty, how.frequency_penalty, how.presence_penalty
        parts = []
        if how.bias:
            biases = (lib.llama_logit_bias * len(how.bias))(*how.bias)
            parts.append(lib.llama_sampler_init_logit_bias(size, len(how.bias), biases))
        if penalties != (1, 0, 0):
            window = length if how.repeat_last_n < 0 else min(length, how.repeat_last_n)
            parts.append(lib.llama_sampler_init_penalties(size, window, *penalties))
        if how.temperature > 0:
            # The order of transformers: the temperature changes what top_p keeps.
            parts.append(lib.llama_sampler_init_temp(how.temperature))
            if how.top_k:
                parts.append(lib.llama_sampler_init_top_k(how.top_k))
            if how.top_p < 1:
                parts.append(lib.llama_sampler_init_top_p(how.top_p, 1))
            if how.min_p:
                parts.append(lib.llama_sampler_init_min_p(how.min_p, 1))
            parts.append(lib.llama_sampler_init_dist(how.seed & 0xFFFFFFFF))
        elif parts:
            parts.append(lib.llama_sampler_init_greedy())
        if parts:
            self.chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
            for part in parts:
                lib.llama_sampler_chain_add(self.chain, part)

    def sample(self, logits: Logits) -> int:
        """The chain's choice by these logits; the chain does not remember it."""
        if not self.chain:
            return int(logits.argmax())
        candidates = np.empty(len(logits), [("id", "i4"), ("logit", "f4"), ("p", "f4")])
        candidates["id"], candidates["logit"], candidates["p"] = np.arange(len(logits)), logits, 0
        data = candidates.ctypes.data_as(ctypes.POINTER(self._lib.llama_token_data))
        array = self._lib.llama_token_data_array(
            data=data, size=len(logits), selected=-1, sorted=False
        )
        self._lib.llama_sampler_apply(self.chain, ctypes.byref(array))
        return int(array.data[array.selected].id)

    def close(self) -> None:
        if self.chain:
            self._lib.llama_sampler_free(self.chain)
        self.chain = self.matcher = None


def grammar_vocabulary(model: LlamaModel) -> GrammarVocabulary:
    """The vocabulary of a GGUF file as grammars read it."""
    vocabulary = LlamaVocabulary(model)
    pieces = list(map(vocabulary.piece, range(vocabulary.size)))
    return GrammarVocabulary.from_pieces(pieces, vocabulary.special_ids, vocabulary.eos_ids)


def log_probabilities(row: Logits, token: int, top: int) -> tuple[float, list[tuple[int, float]]]:
    """Of `token`, and (id, log probability) of the `top` likeliest, the likeliest first."""
    highest = row.max()
    norm = float(highest + np.log(np.exp(row - highest).sum(dtype=np.float64)))
    best: list[int] = []
    if top:
        near = np.argpartition(row, -top)[-top:]
        best = near[np.argsort(-row[near], kind="stable")].tolist()
    return float(row[token]) - norm, [(i, float(row[i]) - norm) for i in best]
