"""Many sequences in one context of llama.cpp, for a scheduler that decides what is computed when.

    with GGUFRuntime(path) as model, model.sequences(4) as many:
        many.read(0, ids)                                  # a prompt, or a part of it
        token = many.choose(0, many.sampler(Sampling()))   # what follows it
        many.step([(0, token), (3, other)])                # one token each

Each sequence has its own part of the cache: in a unified one attention adds its terms in an order
that depends on the neighbours. llama.cpp then computes only sequences with neighbouring numbers
together; a gap of one is filled with a token that is taken back. Used by one thread; samplers may be
made and freed in others.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from edgeft.records import Sampling
from edgeft.runtimes.grammar import GrammarVocabulary, Matcher

Logits = npt.NDArray[np.float32]
Entry = tuple[int, int, int]
"""(id, position, sequence)"""


class Sequences:
    def __init__(
        self,
        lib: Any,
        context: Any,
        vocab: Any,
        run: Callable[[Any], None],
        count: int,
        length: int,
    ) -> None:
        """`run`: decode a llama_batch or raise. `length`: tokens that each sequence may have."""
        self._lib, self._context, self._vocab, self._run = lib, context, vocab, run
        self.count, self.length = count, length
        self.held: list[list[int]] = [[] for _ in range(count)]
        """the tokens of each sequence; read only"""
        self._memory = lib.llama_get_memory(context)
        self._room: int = lib.llama_n_batch(context)
        self._batch = lib.llama_batch_init(self._room, 0, 1)
        self._size: int = lib.llama_vocab_n_tokens(vocab)
        self._rows: Logits = np.empty((0, self._size), np.float32)
        self._at: list[int] | None = None
        """where the wanted ones are among `_rows`; None = all"""
        self._seen: tuple[Any, int] = (None, 0)
        model = lib.llama_get_model(context)
        recurrent = lib.llama_model_is_recurrent(model) or lib.llama_model_is_hybrid(model)
        self._takes_back = not recurrent
        self.width = count
        """so many sequences step together"""
        self.prompts = [0] * count
        """tokens at the beginning of each sequence that were read and not stepped to"""
        self.paired = False
        """a lone token is computed beside one that is taken back"""

    def read(self, number: int, ids: Sequence[int], outputs: int = 1) -> None:
        """Append `ids` to a sequence; `rows` then tells what follows each of the last `outputs`."""
        held = self.held[number]
        self._decode([(token, i, number) for i, token in enumerate(ids, len(held))], outputs)
        if self.prompts[number] == len(held):
            self.prompts[number] += len(ids)
        held.extend(ids)

    def step(self, tokens: Sequence[tuple[int, int]]) -> None:
        """(number of the sequence, token) in the order of the numbers; a row for each of them."""
        self._decode([(token, len(self.held[n]), n) for n, token in tokens], len(tokens))
        for number, token in tokens:
            self.held[number].append(token)

    def settle(self) -> None:
        """Find out how many sequences may step together so that each gets, bit for bit, what it
        gets alone; to be asked before anything is read.

        ggml has other kernels for one row of float16 than for several (llamafile/sgemm.cpp: "only
        enable sgemm for prompt processing"), and for eight rows of K-quants (tiled/tiled.cpp:
        `ggml_tiled_min_batch`). The former is met by pairing a lone token, the latter by `width`.
        """
        lib, model = self._lib, self._lib.llama_get_model(self._context)
        # In a small model two kernels often round to the same bits.
        values = lib.llama_model_n_embd(model) * lib.llama_model_n_layer(model)
        rounds = max(1, min(16, 2**17 // values))
        count = min(self.count, 9)
        for number in range(count):
            self.read(number, [(number * 31 + i * 7) % self._size for i in range(8)])

        def stepped(width: int) -> Logits:
            rows = []
            for turn, begin in itertools.product(range(rounds), range(0, count, width)):
                numbers = range(begin, min(begin + width, count))
                self.step([(n, (n * 13 + turn) % self._size) for n in numbers])
                rows.append(self.rows.copy())
                for number in numbers:
                    self.keep(number, 8)
            return np.concatenate(rows)

        alone = stepped(1)
        if self._takes_back and count > 1 and (stepped(2) != alone).any():
            self.paired = True
            alone = stepped(1)
        widths = [width for width in (count, 7, 3, 2) if width <= count]
        width = next((width for width in widths if (stepped(width) == alone).all()), 1)
        self.width = self.count if width == count else width
        for number in range(count):
            self.keep(number, 0)

    @property
    def rows(self) -> Logits:
        """(outputs, vocabulary), in llama.cpp's memory: the next call overwrites them."""
        return self._rows if self._at is None else self._rows[self._at]

    def row(self, number: int) -> Logits:
        row: Logits = self._rows[number if self._at is None else self._at[number]]
        return row

    def keep(self, number: int, length: int) -> int:
        """Forget all but the beginning of a sequence; the length that is left.

        That is 0 for a recurrent model, which cannot take back a part of what it has read.
        """
        if not self._lib.llama_memory_seq_rm(self._memory, number, length, -1):
            self._lib.llama_memory_seq_rm(self._memory, number, -1, -1)
            length = 0
        del self.held[number][length:]
        self.prompts[number] = min(self.prompts[number], length)
        return length

    def copy(self, source: int, target: int) -> None:
        """Make one sequence as another, which costs as much as moving its whole part of the cache."""
        self._lib.llama_memory_seq_rm(self._memory, target, -1, -1)
        self._lib.llama_memory_seq_cp(self._memory, source, target, -1, -1)
        self.held[target][:] = self.held[source]
        self.prompts[target] = self.prompts[source]

    def sampler(self, sampling: Sampling) -> Sampler:
        """InputError for a grammar that is invalid or too complex."""
        matcher = self._grammars.matcher(sampling.grammar) if sampling.grammar else None
        return Sampler(self._lib, self._vocab, self._size, self.length, sampling, matcher)

    @functools.cached_property
    def _grammars(self) -> GrammarVocabulary:
        return grammar_vocabulary(self._lib, self._vocab)

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
        return int(self._lib.llama_sampler_sample(sampler.chain, self._context, index))

    def _decode(self, tokens: Sequence[Entry], outputs: int) -> None:
        """Logits after the last `outputs` tokens."""
        extra = self._extra(tokens) if len(tokens) == outputs and self._takes_back else []
        try:
            if extra:
                every = sorted([*tokens, *extra], key=lambda entry: entry[2])
                self._compute(every, len(every))
                self._at = [i for i, entry in enumerate(every) if entry not in extra]
            else:
                self._compute(tokens, outputs)
                self._at = None
        except BaseException:
            for number in {number for _, _, number in tokens}:
                self.keep(number, len(self.held[number]))
            raise
        finally:
            for _, position, number in extra:
                self._lib.llama_memory_seq_rm(self._memory, number, position, -1)

    def _extra(self, tokens: Sequence[Entry]) -> list[Entry]:
        """Tokens of other sequences that let llama.cpp compute these together. They are outputs, too:
        the last block is computed for outputs only."""
        numbers = [number for _, _, number in tokens]
        if len(set(numbers)) < len(numbers):
            return []  # a part of a prompt

        def possible(number: int) -> bool:
            return 0 <= number < self.count and len(self.held[number]) < self.length

        gaps = {a + 1 for a, b in itertools.pairwise(numbers) if b == a + 2 and possible(a + 1)}
        if len(gaps) + len(numbers) > self.width:
            gaps.clear()
        if self.paired:
            present = gaps.union(numbers)
            lone = [n for n in numbers if not present & {n - 1, n + 1}]
            near = (next(filter(possible, (n + 1, n - 1)), None) for n in lone)
            gaps |= {number for number in near if number is not None}
        return [(0, len(self.held[number]), number) for number in sorted(gaps)]

    def _compute(self, tokens: Sequence[Entry], outputs: int) -> None:
        if not self._context:
            raise ValueError("the sequences are closed")
        if len(tokens) > self._room:
            raise ValueError(f"{len(tokens)} tokens at a time, {self._room} are possible")
        batch = self._batch
        batch.n_tokens = len(tokens)
        first = len(tokens) - outputs
        for i, (token, position, number) in enumerate(tokens):
            batch.token[i], batch.pos[i] = token, position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, number
            batch.logits[i] = i >= first
        self._run(batch)
        pointer = self._lib.llama_get_logits(self._context)
        seen = (ctypes.cast(pointer, ctypes.c_void_p).value, outputs)
        if seen != self._seen:
            self._seen = seen
            self._rows = np.ctypeslib.as_array(pointer, (outputs, self._size))

    def close(self) -> None:
        if self._context:
            self._lib.llama_batch_free(self._batch)
            self._lib.llama_free(self._context)
        self._context = None

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
        vocab: Any,
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
            parts.append(lib.llama_sampler_init_penalties(size, length, *penalties))
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


def grammar_vocabulary(lib: Any, vocab: Any) -> GrammarVocabulary:
    """A llama_vocab as grammars read it. Control tokens are special, and so are the user's own tokens
    in angle brackets (llguidance/llamacpp.py has the same rule)."""
    ids = range(lib.llama_vocab_n_tokens(vocab))
    buffer = ctypes.create_string_buffer(1024)

    def piece(token: int) -> bytes:
        count = lib.llama_token_to_piece(vocab, token, buffer, len(buffer), 0, True)
        return buffer.raw[: max(count, 0)]

    def is_special(token: int) -> bool:
        attributes = lib.llama_vocab_get_attr(vocab, token)
        if attributes & lib.LLAMA_TOKEN_ATTR_USER_DEFINED:
            return pieces[token][:1] == b"<" and pieces[token][-1:] == b">"
        return bool(attributes & (lib.LLAMA_TOKEN_ATTR_CONTROL | lib.LLAMA_TOKEN_ATTR_UNKNOWN))

    pieces = list(map(piece, ids))
    ends = [token for token in ids if lib.llama_vocab_is_eog(vocab, token)]
    return GrammarVocabulary.from_pieces(pieces, list(filter(is_special, ids)), ends)


def log_probabilities(row: Logits, token: int, top: int) -> tuple[float, list[tuple[int, float]]]:
    """Of `token`, and (id, log probability) of the `top` likeliest, the likeliest first."""
    highest = row.max()
    norm = float(highest + np.log(np.exp(row - highest).sum(dtype=np.float64)))
    best: list[int] = []
    if top:
        near = np.argpartition(row, -top)[-top:]
        best = near[np.argsort(-row[near], kind="stable")].tolist()
    return float(row[token]) - norm, [(i, float(row[i]) - norm) for i in best]
