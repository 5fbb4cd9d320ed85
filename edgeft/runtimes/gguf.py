"""Run a GGUF file on llama.cpp, over its C interface rather than its slower `Llama` class.

`stream` and `logits` share one context, whose tokens are kept: the next turn of a conversation
decodes only what is new. `replies` makes a context for many sequences and drops it at the end.
Calls may be interleaved but not run in parallel: a server puts a lock around each.

    with GGUFRuntime(Path("model.gguf")) as model:
        ids = model.encode(model.chat.render([Message("user", "hi")]))
        print("".join(token.text for token in model.stream(ids, Limits())))
"""

from __future__ import annotations

import codecs
import contextlib
import ctypes
import functools
import itertools
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from edgeft import machine
from edgeft.errors import EdgeftError, InputError, ResourceError
from edgeft.records import Limits, Reply, Token
from edgeft.runtimes.sampling import common_prefix
from edgeft.runtimes.sequences import Sampler, Sequences
from edgeft.tokenizer.chat_template import ALPACA, ChatTemplate

Logits = npt.NDArray[np.float32]

BATCH = 512
"""tokens that one call of llama_decode takes"""
WORD = 8000
BLANK = r" \t\n\v\f\r\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
WORDS = re.compile(rf"[^{BLANK}.,!?…。，、।۔،]+|(?:[^\w{BLANK}]|_)+|[{BLANK}]+")
"""what a regular expression of llama.cpp may take for one word, at most"""
SLOTS = 16
"""answers that `replies` writes at the same time"""
MEMORY = 4
"""times `context`: tokens that all answers of `replies` may hold together"""
SEQUENCES = 64
"""that `watch` puts into one batch at most"""
LOG_ERROR = 4
"""ggml_log_level in ggml.h"""


class GGUFRuntime:
    def __init__(
        self,
        path: Path,
        threads: int | None = None,
        context: int | None = None,
        exact: bool = False,
        repack: bool = True,
    ) -> None:
        """`exact` computes attention in float32, slower and larger: for comparisons. `repack` lets
        llama.cpp copy 4-bit weights into an order that it multiplies faster; without, they stay in
        the file's pages."""
        self.path = path
        self._exact = exact
        lib, self._errors, log = _llama_cpp()
        lib.llama_log_set(log, None)  # each time: another user of the library may have set its own
        self._lib = lib
        self._threads = threads or len(os.sched_getaffinity(0))
        self._batch = lib.llama_batch_init(BATCH, 0, 1)
        self._context: Any = None
        self._held: list[int] = []
        self._errors.clear()
        params = lib.llama_model_default_params()
        params.use_extra_bufts = repack
        self._model: Any = None
        with contextlib.ExitStack() as on_error:
            on_error.callback(self.close)
            with _interrupts_wait():
                self._model = lib.llama_model_load_from_file(os.fsencode(path), params)
            if not self._model:
                told = f"cannot load {path}: {_reason(self._errors)}"
                raise InputError(told, "is the file whole, and a language model?")
            self._vocab = lib.llama_model_get_vocab(self._model)
            kind = lib.llama_vocab_type(self._vocab)
            if kind == lib.LLAMA_VOCAB_TYPE_NONE or lib.llama_model_has_encoder(self._model):
                raise InputError(f"{path} is not a decoder-only language model with a tokenizer")
            self._is_bpe = kind == lib.LLAMA_VOCAB_TYPE_BPE
            key = b"tokenizer.ggml.add_space_prefix"
            value = ctypes.create_string_buffer(16)
            known = lib.llama_model_meta_val_str(self._model, key, value, 16) >= 0
            by_default = kind == lib.LLAMA_VOCAB_TYPE_SPM
            self._space_prefix = value.value == b"true" if known else by_default
            self.vocab_size: int = lib.llama_vocab_n_tokens(self._vocab)
            self.adds_bos: bool = lib.llama_vocab_get_add_bos(self._vocab)
            ends = map(
                lib.llama_vocab_is_eog, itertools.repeat(self._vocab), range(self.vocab_size)
            )
            self.ends = frozenset(i for i, is_end in enumerate(ends) if is_end)
            """ids that end a turn"""
            self.chat = self._chat_template()
            trained: int = lib.llama_model_n_ctx_train(self._model)
            self.context = context or min(trained, 4096)
            self._context = self._new_context(self.context, sequences=1, rows=BATCH)
            on_error.pop_all()

    def encode(self, text: str) -> list[int]:
        """InputError for what llama.cpp would not survive: its std::regex calls itself once for each
        character of a word, with a frame on the stack."""
        if (
            len(text) > WORD
            and self._is_bpe
            and any(len(m[0]) > WORD for m in WORDS.finditer(text))
        ):
            raise InputError(f"more than {WORD} characters without a space or a mark between them")
        data = text.encode("utf-8", errors="replace")
        vocab = self._alive(self._vocab)
        tokenize = functools.partial(self._lib.llama_tokenize, vocab, data, len(data))
        # Without room for them it tells the number of ids, negated.
        ids = (ctypes.c_int32 * -tokenize(None, 0, False, True))()
        tokenize(ids, len(ids), False, True)
        return list(ids)

    def logits(self, ids: Sequence[int], last: int | None = None) -> Logits:
        self._check(ids)
        first = len(ids) - min(last or len(ids), len(ids))
        result = np.empty((len(ids) - first, self.vocab_size), dtype=np.float32)
        self._rewind([])
        for start in range(0, len(ids), BATCH):
            part = [(token, i, 0) for i, token in enumerate(ids[start : start + BATCH], start)]
            wanted = start + len(part) - max(first, start)
            rows = self._decode(self._context, part, max(1, wanted))
            if wanted > 0:
                result[max(first, start) - first :][:wanted] = rows
        return result

    def stream(self, ids: Sequence[int], limits: Limits) -> Iterator[Token]:
        self._check(ids)
        return self._generate(list(ids), limits, time.perf_counter())

    def _generate(self, ids: list[int], limits: Limits, start: float) -> Iterator[Token]:
        text = self.decoder()
        end = min(len(ids) + limits.max_tokens, self.context + 1)
        sampler = Sampler(self._lib, self._vocab, self.vocab_size, self.context, limits.sampling)
        try:
            while len(ids) < end:
                row = self._read(ids)
                if sampler.chain:
                    token = self._lib.llama_sampler_sample(sampler.chain, self._context, -1)
                else:  # llama.cpp's greedy sampler would copy the vocabulary first.
                    token = int(row.argmax())
                if not limits.past_stops and token in self.ends:
                    return
                ids.append(token)
                yield Token(token, text(token), time.perf_counter() - start)
        finally:
            sampler.close()

    def _read(self, ids: list[int]) -> Logits:
        """What follows `ids`, of which only what the context does not hold yet is decoded."""
        self._rewind(ids[:-1])
        row = self._feed(self._context, ids, len(self._held), 0)
        # Recorded last: what an interrupt leaves unrecorded, the next `_rewind` removes.
        self._held[:] = ids
        return row

    def _rewind(self, ids: list[int]) -> None:
        """Drop from the context what `ids` does not begin with."""
        same = len(ids) if self._held == ids else common_prefix(self._held, ids)
        memory = self._lib.llama_get_memory(self._alive(self._context))
        if not self._lib.llama_memory_seq_rm(memory, 0, same, -1):
            # A recurrent model cannot take back a part of what it has read.
            self._lib.llama_memory_clear(memory, True)
            same = 0
        del self._held[same:]

    def _feed(self, context: Any, ids: Sequence[int], begin: int, sequence: int) -> Logits:
        """Decode ids[begin:] as one sequence; the logits after the last of them."""
        for start in range(begin, len(ids), BATCH):
            part = enumerate(ids[start : start + BATCH], start)
            rows = self._decode(context, [(token, i, sequence) for i, token in part], 1)
        row: Logits = rows[0]
        return row

    def _decode(
        self, context: Any, tokens: Sequence[tuple[int, int, int]], outputs: int | None = None
    ) -> Logits:
        """(id, position, sequence) -> logits after every token, or after so many at the end.

        They lie in llama.cpp's memory: the next call overwrites them.
        """
        outputs = outputs or len(tokens)
        self._compute(context, tokens, outputs)
        shape = (outputs, self.vocab_size)
        rows: Logits = np.ctypeslib.as_array(self._lib.llama_get_logits(context), shape)
        return rows

    def _compute(self, context: Any, tokens: Sequence[tuple[int, int, int]], outputs: int) -> None:
        batch = self._alive(self._batch)
        batch.n_tokens = len(tokens)
        for i, (token, position, sequence) in enumerate(tokens):
            batch.token[i], batch.pos[i] = token, position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            batch.logits[i] = i >= len(tokens) - outputs
        self._run(context, batch)

    def _run(self, context: Any, batch: Any) -> None:
        self._errors.clear()
        if code := self._lib.llama_decode(context, batch):
            reason = _reason(self._errors) or f"llama_decode returned {code}"
            raise EdgeftError(f"llama.cpp could not run the model: {reason}")

    def replies(
        self,
        prompts: Sequence[Sequence[int]],
        limits: Limits,
        progress: Callable[[int], None] | None = None,
    ) -> list[Reply]:
        for prompt in prompts:
            self._check(prompt)
        replies = [Reply("", (), False) for _ in prompts]
        if not prompts or limits.max_tokens < 1:
            return replies
        longest = min(max(map(len, prompts)) + limits.max_tokens, self.context)
        width = max(1, min(SLOTS, len(prompts), MEMORY * self.context // longest - 1))
        context = self._new_context(longest * (width + 1), sequences=width + 1, rows=1)
        try:
            answers = self._answers(context, prompts, width, limits)
            for done, (index, reply) in enumerate(answers, start=1):
                replies[index] = reply
                if progress:
                    progress(done)
        finally:
            self._lib.llama_free(context)
        return replies

    def _answers(
        self, context: Any, prompts: Sequence[Sequence[int]], width: int, limits: Limits
    ) -> Iterator[tuple[int, Reply]]:
        """Continuous batching: when an answer ends, the next prompt takes its place.

        Each sequence has its own part of the cache. In a unified one, attention adds its terms in
        another order, which changed most free-running answers of a 4-bit model.
        llama.cpp then runs only neighbouring sequences together, and only by the same number of
        tokens: so prompts are read one by one, and the sequences in use stay without gaps.
        """
        memory = self._lib.llama_get_memory(context)
        start = time.perf_counter()
        times: list[list[float]] = [[] for _ in prompts]

        def take(index: int, ids: list[int], token: int) -> Reply | None:
            stopped = token in self.ends and not limits.past_stops
            if not stopped:
                ids.append(token)
                times[index].append(time.perf_counter() - start)
            new = ids[len(prompts[index]) :]
            if stopped or len(new) == limits.max_tokens or len(ids) > self.context:
                text = "".join(map(self.decoder(), new))
                return Reply(text, tuple(new), stopped, tuple(times[index]))
            return None

        # One sequence more keeps the beginning that all prompts share.
        shared = min(common_prefix(prompts[0], prompt[:-1]) for prompt in prompts)
        if shared:
            self._feed(context, prompts[0][:shared], 0, width)
        waiting = list(enumerate(map(list, prompts)))[::-1]
        running: list[tuple[int, list[int]]] = []
        while waiting or running:
            while waiting and len(running) < width:
                index, ids = waiting.pop()
                self._lib.llama_memory_seq_rm(memory, len(running), -1, -1)
                if shared:
                    self._lib.llama_memory_seq_cp(memory, width, len(running), -1, -1)
                row = self._feed(context, ids, shared, len(running))
                if reply := take(index, ids, int(row.argmax())):
                    yield index, reply
                else:
                    running.append((index, ids))
            if not running:
                break
            step = [(ids[-1], len(ids) - 1, i) for i, (_, ids) in enumerate(running)]
            chosen = self._decode(context, step).argmax(axis=1).tolist()
            for i in reversed(range(len(chosen))):
                if reply := take(*running[i], chosen[i]):
                    yield running[i][0], reply
                    last = running.pop()
                    if i < len(running):
                        running[i] = last
                        self._lib.llama_memory_seq_cp(memory, len(running), i, -1, -1)

    def watch(
        self, sequences: Sequence[Sequence[int]], observer: Callable[[int, bool], bool]
    ) -> Iterator[int]:
        """Read every sequence, as many as fit into a batch; yields the tokens of each batch.

        `observer` is the scheduler's callback (ggml-backend.h: `ggml_backend_sched_eval_callback`):
        it gets the address of each tensor. All tokens count as outputs, because llama.cpp does
        not run the last block's feed-forward part for others.
        """
        for ids in sequences:
            self._check(ids)
        raised: list[BaseException] = []

        @self._lib.ggml_backend_sched_eval_callback  # type: ignore[untyped-decorator, unused-ignore]
        def callback(tensor: int, ask: bool, _: object) -> bool:
            try:
                return ask if raised else observer(tensor, ask)
            except BaseException as error:  # noqa: BLE001  ctypes would print it and go on
                raised.append(error)
                return False

        # A recurrent model would cut a batch of several sequences into parts of equal length.
        lib, model = self._lib, self._model
        recurrent = lib.llama_model_is_recurrent(model) or lib.llama_model_is_hybrid(model)
        width = 1 if recurrent else SEQUENCES
        cells = max(map(len, sequences), default=0) + BATCH
        context = self._new_context(cells, sequences=width, rows=BATCH, callback=callback)
        try:
            memory = lib.llama_get_memory(context)
            for batch in _batches(sequences, width):
                _, position, sequence = batch[0]
                if position:
                    lib.llama_memory_seq_keep(memory, sequence)
                else:
                    lib.llama_memory_clear(memory, False)
                self._decode(context, batch)
                if raised:
                    raise raised[0]
                yield len(batch)
        finally:
            lib.llama_free(context)

    def sequences(self, count: int, isolated: bool = True) -> Sequences:
        """A context for `count` conversations side by side, for whoever schedules them. The runtime
        gives its own one up for that: `encode` and `decoder` are what still works.

        `isolated`: without flash attention, which splits the keys of a lone token among the threads,
        but not those of several (ggml-cpu/ops.cpp: `use_split_kv_path`).
        """
        if self._context:
            self._lib.llama_free(self._context)
            self._context = None
        cells = self.context * count
        context = self._new_context(cells, sequences=count, rows=1, flash=not isolated)
        run = functools.partial(self._run, context)
        many = Sequences(self._lib, context, self._vocab, run, count, self.context)
        if isolated:
            many.settle()
        return many

    def close(self) -> None:
        if self._batch:
            self._lib.llama_batch_free(self._batch)
        if self._context:
            self._lib.llama_free(self._context)
        if self._model:
            self._lib.llama_model_free(self._model)
        self._batch = self._context = self._model = self._vocab = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _alive(self, pointer: Any) -> Any:
        """llama.cpp itself would crash the process."""
        if not pointer:
            raise ValueError("the runtime is closed")
        return pointer

    def _check(self, ids: Sequence[int]) -> None:
        if not ids:
            raise InputError("the prompt is empty")
        if len(ids) > self.context:
            problem = f"the prompt has {len(ids)} tokens, the context only {self.context}"
            raise InputError(problem, "shorten it or raise --context")

    def embed(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """(width,): the mean of the last layer's states over at most `BATCH` tokens, of length 1."""
        if not 0 < len(ids) <= BATCH:
            raise InputError(f"{len(ids)} tokens to embed, 1 to {BATCH} are possible")
        lib = self._lib
        context = self._new_context(BATCH, sequences=1, rows=BATCH, pooled=True)
        try:
            self._compute(context, [(token, i, 0) for i, token in enumerate(ids)], len(ids))
            width = lib.llama_model_n_embd(self._model)
            row = np.ctypeslib.as_array(lib.llama_get_embeddings_seq(context, 0), (width,)).copy()
        finally:
            lib.llama_free(context)
        row /= np.float32(max(float(np.linalg.norm(row)), 1e-12))
        unit: npt.NDArray[np.float32] = row
        return unit

    def _new_context(
        self, cells: int, sequences: int, rows: int, callback: Any = None, flash: bool = True,
        pooled: bool = False,
    ) -> Any:  # fmt: skip
        machine.preflight(Path(), f"a context of {cells} tokens", memory=self._cache_bytes(cells))
        params = self._lib.llama_context_default_params()
        params.n_ctx, params.n_seq_max = cells, sequences
        params.n_batch = params.n_ubatch = BATCH
        params.n_outputs_max_per_seq = rows
        if self._exact:
            params.type_k = params.type_v = 0  # ggml.h: GGML_TYPE_F32
        if self._exact or not flash:
            params.flash_attn_type = 0  # it rounds to float16 on the way
        params.n_threads = params.n_threads_batch = self._threads
        if pooled:
            params.embeddings, params.pooling_type = True, self._lib.LLAMA_POOLING_TYPE_MEAN
        if callback:
            params.cb_eval = callback
            params.kv_unified = True  # sequences of any length in one pass
        self._errors.clear()
        with _interrupts_wait():
            context = self._lib.llama_init_from_model(self._alive(self._model), params)
        if not context:
            reason = _reason(self._errors)
            raise ResourceError(f"no context of {cells} tokens: {reason}", "lower --context")
        return context

    def _cache_bytes(self, cells: int) -> int:
        """Keys and values of so many tokens in float16; llama.cpp takes it all at the start, and the
        system ends the process that took too much."""
        lib, model = self._lib, self._alive(self._model)
        shared = lib.llama_model_n_head_kv(model) / max(1, lib.llama_model_n_head(model))
        return int(
            4 * cells * lib.llama_model_n_layer(model) * lib.llama_model_n_embd(model) * shared
        )

    def decoder(self) -> Callable[[int], str]:
        """The tokens of one answer, one after the other -> the text that each completes.

        SentencePiece writes a space before the first word, which is not part of the answer.
        """
        utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        strip = itertools.chain([int(self._space_prefix)], itertools.repeat(0))
        return lambda token: utf8.decode(self.piece(token, next(strip)))

    def piece(self, token: int, strip: int = 0) -> bytes:
        room = 1024  # Runs of spaces are the longest tokens, at some hundred bytes.
        buffer = ctypes.create_string_buffer(room)
        count = self._lib.llama_token_to_piece(self._vocab, token, buffer, room, strip, True)
        return buffer.raw[: max(count, 0)]

    def _chat_template(self) -> ChatTemplate:
        lib, vocab = self._lib, self._vocab

        def text(token: int) -> str:
            return self.piece(token).decode("utf-8", "replace") if token >= 0 else ""

        eos = text(lib.llama_vocab_eos(vocab))
        source = lib.llama_model_chat_template(self._model, None)
        number = ctypes.create_string_buffer(16)
        key = b"tokenizer.ggml.unknown_token_id"
        known = lib.llama_model_meta_val_str(self._model, key, number, 16) > 0
        return ChatTemplate(
            source=source.decode("utf-8", "replace") if source else ALPACA,
            bos_token=text(lib.llama_vocab_bos(vocab)),
            eos_token=eos,
            stops=tuple(
                stop for stop in dict.fromkeys([eos, *map(text, sorted(self.ends))]) if stop
            ),
            unk_token=text(int(number.value)) if known else "",
            pad_token=text(lib.llama_vocab_pad(vocab)),
        )


def _batches(
    sequences: Sequence[Sequence[int]], width: int
) -> Iterator[list[tuple[int, int, int]]]:
    """(id, position, sequence), BATCH of them from at most `width` sequences; the first sequence of
    a batch may be the rest of the one before."""
    batch: list[tuple[int, int, int]] = []
    for number, ids in enumerate(sequences):
        if batch and number % width == batch[0][2]:
            yield batch
            batch = []
        for position, token in enumerate(ids):
            batch.append((token, position, number % width))
            if len(batch) == BATCH:
                yield batch
                batch = []
    if batch:
        yield batch


@contextlib.contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Hold Ctrl-C back while llama.cpp runs: raised inside a callback of its log it would be lost."""
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if callable(signal.getsignal(n))]
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    before = [signal.signal(number, lambda number, _: came.append(number)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt


def _reason(errors: list[str]) -> str:
    """llama.cpp names the cause first; then each of its callers says that it failed, too."""
    return re.sub(r"^\w+: (error loading model: )?", "", errors[0].strip()) if errors else ""


@functools.cache
def _llama_cpp() -> tuple[Any, list[str], Any]:
    """llama.cpp's functions; the error lines that it would print; what must not be collected."""
    from llama_cpp import llama_cpp

    errors: list[str] = []

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator, unused-ignore]
    def log(level: int, text: bytes, _: object) -> None:
        if level == LOG_ERROR and len(errors) < 100:
            errors.append(text.decode("utf-8", "replace"))

    llama_cpp.llama_backend_init()
    return llama_cpp, errors, log
