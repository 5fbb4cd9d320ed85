"""Run an ONNX decoder on the CPU: onnxruntime-genai writes, plain onnxruntime gives all logits.

    with ONNXRuntime(Path("onnx-int4")) as model:
        ids = model.encode(model.chat.render([Message("user", "hi")]))
        print("".join(token.text for token in model.stream(ids, Limits())))

The graph computes the logits after the last token only. `logits`, which compares models, opens it a
second time without that cut, so that both are in memory then. Calls may be interleaved but not run
in parallel.
"""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from edgeft.errors import EdgeftError, InputError, require
from edgeft.records import Limits, Reply, Token
from edgeft.runtimes.grammar import GrammarVocabulary, Matcher
from edgeft.runtimes.sampling import choose, common_prefix, in_turn
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.tokenizer.hf_files import encoder, load_tokenizer
from edgeft.weights.onnx_graph import FATAL, ONNXGraph, unloadable

Logits = npt.NDArray[np.float32]

ROOM = 512
"""tokens that the first cache has room for; each further one has twice as many"""
SPIN = "50"
"""microseconds that a thread waits for work before it sleeps; with onnxruntime's own, much longer
time threads of two programs on the same cores keep each other from working (benchmarks/LOG.md)"""


class ONNXRuntime:
    def __init__(
        self,
        path: Path,
        threads: int | None = None,
        context: int | None = None,
        repack: bool = True,
    ) -> None:
        """`repack` lets onnxruntime copy weights into an order that it multiplies faster; without,
        they stay in the file's pages."""
        self.path = path
        self._graph = ONNXGraph(path)
        self._threads = threads or len(os.sched_getaffinity(0))
        self.encode = encoder(path)
        self._tokenizer = load_tokenizer(path)
        self._stops = self._graph.stops
        self.chat = ChatTemplate.from_folder(path)
        self.vocab_size = self._graph.vocabulary
        self.context = min(self._graph.context, context or 4096)
        self._all: Any = None
        self._writer: Any = None
        self._room = 0
        self._held: list[int] = []
        require("onnxruntime", "onnx")  # which the other imports
        genai = require("onnxruntime_genai", "onnx")
        getattr(genai, "disable_telemetry_events", lambda: None)()
        self._genai = genai
        options: dict[str, Any] = {
            "intra_op_num_threads": self._threads,
            "log_severity_level": FATAL,
            "session.intra_op.spin_duration_us": SPIN,
        }
        if not repack:
            options["session.disable_prepacking"] = "1"
        try:
            config = genai.Config(str(path))
            config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
            self._model: Any = genai.Model(config)
        except RuntimeError as error:
            raise unloadable(path, error) from None

    def logits(self, ids: Sequence[int], last: int | None = None) -> Logits:
        self._check(ids)
        session = self._uncut()
        feeds: dict[str, Any] = {}
        for given in session.get_inputs():
            if given.name == "input_ids":
                feeds[given.name] = np.array([ids], np.int64)
            elif given.name == "attention_mask":
                feeds[given.name] = np.ones((1, len(ids)), np.int64)
            elif given.name == "position_ids":
                feeds[given.name] = np.arange(len(ids))[None]
            else:
                feeds[given.name] = np.zeros((1, given.shape[1], 0, self._graph.head), np.float32)
        try:
            (rows,) = session.run(["logits"], feeds)
        except Exception as error:  # noqa: BLE001 - onnxruntime's own, of no common kind
            raise unloadable(self.path, error) from None
        return np.asarray(rows[0, -(last or len(ids)) :], np.float32)

    def stream(self, ids: Sequence[int], limits: Limits) -> Iterator[Token]:
        self._check(ids)
        return self._generate(list(ids), limits, time.perf_counter())

    def _generate(self, ids: list[int], limits: Limits, start: float) -> Iterator[Token]:
        from tokenizers.decoders import DecodeStream

        text, draw = (
            DecodeStream(skip_special_tokens=False),
            np.random.default_rng(limits.seed & 0xFFFFFFFF),
        )
        end = min(len(ids) + limits.max_tokens, self.context + 1)
        matcher = self.matcher(limits.grammar) if limits.grammar else None

        def sample(row: Logits) -> int:
            return choose(row, limits, draw)

        while len(ids) < end:
            row = self._read(ids, end)
            token = matcher.choose(row, sample) if matcher else sample(row)
            if token in self._stops and not limits.past_stops:
                return
            ids.append(token)
            piece = text.step(self._tokenizer, token) or ""
            yield Token(token, piece, time.perf_counter() - start)

    def _read(self, ids: list[int], end: int) -> Logits:
        """What follows `ids`, of which only what the cache does not hold yet is computed."""
        try:
            return self._computed(ids, end)
        except BaseException as error:
            # Stopped on the way, the cache holds nobody knows how much.
            self._writer, self._held = None, []
            if isinstance(error, RuntimeError):
                raise unloadable(self.path, error) from None
            raise

    def _computed(self, ids: list[int], end: int) -> Logits:
        writer = self._writer_for(end)
        same = min(common_prefix(self._held, ids), len(ids) - 1)
        if same < len(self._held):
            del self._held[same:]
            writer.rewind_to(same)
        writer.append_tokens(np.array(ids[same:], np.int32))
        self._held[:] = ids
        row: Logits = writer.get_logits()[0, -1]
        return row[: self.vocab_size]

    def _writer_for(self, tokens: int) -> Any:
        """A generator whose cache has room for so many; a larger one begins anew."""
        if self._model is None:
            raise EdgeftError(f"{self.path} is closed")
        if self._writer is None or tokens > self._room:
            self._writer, self._held = None, []
            self._room = max(ROOM, 1 << (tokens - 1).bit_length())
            params = self._genai.GeneratorParams(self._model)
            room = min(self._room, self.context)
            params.set_search_options(
                max_length=room, batch_size=1, num_beams=1, num_return_sequences=1, min_length=0
            )
            self._writer = self._genai.Generator(self._model, params)
        return self._writer

    def matcher(self, grammar: str) -> Matcher:
        """For `Limits.grammar`; InputError for a grammar that is invalid or too complex."""
        return self._grammars.matcher(grammar)

    @functools.cached_property
    def _grammars(self) -> GrammarVocabulary:
        return GrammarVocabulary.from_tokenizer(self._tokenizer, self.vocab_size, self._stops)

    def replies(
        self,
        prompts: Sequence[Sequence[int]],
        limits: Limits,
        progress: Callable[[int], None] | None = None,
    ) -> list[Reply]:
        """One after the other; what a prompt begins with like the one before is not read again."""

        def room(prompt: Sequence[int]) -> int:
            return min(limits.max_tokens, self.context + 1 - len(prompt))

        return in_turn(self.stream, prompts, limits, room, progress)

    def close(self) -> None:
        self._writer = self._all = self._model = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check(self, ids: Sequence[int]) -> None:
        if not ids:
            raise InputError("there are no tokens to read")
        if len(ids) > self.context:
            raise InputError(f"{len(ids)} tokens are more than the context of {self.context}")

    def _uncut(self) -> Any:
        if self._all is None:
            self._all = self._graph.session(self._threads)
        return self._all
