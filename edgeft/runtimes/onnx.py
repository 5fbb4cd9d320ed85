"""Run an ONNX folder on the CPU: onnxruntime-genai generates, onnxruntime computes all logits.

    with ONNXRuntime(Path("onnx-int4")) as model:
        ids = model.encode(model.chat.render([Message("user", "hi")]))
        print("".join(token.text for token in model.stream(ids, Limits())))

The graph computes the logits after the last token only. `logits`, which serves to compare models,
opens it a second time with the logits after all tokens; both are in memory then. Calls may be
interleaved but not run in parallel.
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
from edgeft.runtimes.onnx_session import LOG_FATAL, open_session, unloadable
from edgeft.runtimes.protocol import DEFAULT_CONTEXT_TOKENS
from edgeft.runtimes.sampling import choose, common_prefix, in_turn
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.tokenizer.hf_files import encoder, load_tokenizer
from edgeft.tokenizer.stops import stop_ids
from edgeft.weights.onnx_graph import ONNXGraph

Logits = npt.NDArray[np.float32]

MIN_CACHE_TOKENS = 512
"""that the first cache has room for; a larger one has the next power of two"""
SPIN_US = "50"
"""microseconds that a thread spins for work before it sleeps. onnxruntime's default is much longer:
the threads of two programs on the same cores then keep each other from working."""


class ONNXRuntime:
    def __init__(
        self,
        path: Path,
        threads: int | None = None,
        context: int | None = None,
        repack: bool = True,
    ) -> None:
        """`threads`: default all cores of the process. `context`: tokens, default what the model allows
        up to 4096. `repack`: onnxruntime may copy weights into an order that it multiplies faster;
        otherwise they stay in the pages of the file."""
        self.path = path
        self._graph = ONNXGraph(path)
        self._threads = threads or len(os.sched_getaffinity(0))
        self.encode = encoder(path)
        self._tokenizer = load_tokenizer(path)
        self.chat = ChatTemplate.from_folder(path)
        self.file_eos_ids = self._graph.stops
        """ids of genai_config.json"""
        self.eos_ids = self.file_eos_ids.union(stop_ids(self.chat, path))
        self.vocab_size = self._graph.vocabulary
        self.context = min(self._graph.context, context or DEFAULT_CONTEXT_TOKENS)
        self._session: Any = None
        """onnxruntime's session for `logits`, opened by the first call"""
        self._generator: Any = None
        self._cache_tokens = 0
        """tokens that the generator's cache has room for"""
        self._cached: list[int] = []
        """tokens that the generator's cache holds"""
        require("onnxruntime", "onnx")  # onnxruntime_genai imports it
        genai = require("onnxruntime_genai", "onnx")
        getattr(genai, "disable_telemetry_events", lambda: None)()
        self._genai = genai
        options: dict[str, Any] = {
            "intra_op_num_threads": self._threads,
            "log_severity_level": LOG_FATAL,
            "session.intra_op.spin_duration_us": SPIN_US,
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
        if self._session is None:
            self._session = open_session(self._graph, self._threads)
        known = {
            "input_ids": np.array([ids], np.int64),
            "attention_mask": np.ones((1, len(ids)), np.int64),
            "position_ids": np.arange(len(ids))[None],
        }
        feeds = {}
        for entry in self._session.get_inputs():
            if entry.name in known:
                feeds[entry.name] = known[entry.name]
            else:  # keys or values of a cache without tokens
                shape = (1, entry.shape[1], 0, self._graph.head_size)
                feeds[entry.name] = np.zeros(shape, np.float32)
        try:
            (rows,) = self._session.run(["logits"], feeds)
        except Exception as error:  # noqa: BLE001 - onnxruntime's errors have no common class
            raise unloadable(self.path, error) from None
        return np.asarray(rows[0, -(last or len(ids)) :], np.float32)

    def stream(self, ids: Sequence[int], limits: Limits) -> Iterator[Token]:
        self._check(ids)
        return self._generate(list(ids), limits, time.perf_counter())

    def _generate(self, ids: list[int], limits: Limits, start: float) -> Iterator[Token]:
        from tokenizers.decoders import DecodeStream

        text = DecodeStream(skip_special_tokens=False)
        rng = np.random.default_rng(limits.seed & 0xFFFFFFFF)
        end = min(len(ids) + limits.max_tokens, self.context + 1)
        matcher = self.matcher(limits.grammar) if limits.grammar else None

        def sample(row: Logits) -> int:
            return choose(row, limits, rng)

        while len(ids) < end:
            row = self._read(ids, end)
            token = matcher.choose(row, sample) if matcher else sample(row)
            if token in self.eos_ids and not limits.ignore_eos:
                return
            ids.append(token)
            piece = text.step(self._tokenizer, token) or ""
            yield Token(token, piece, time.perf_counter() - start)

    def _read(self, ids: list[int], end: int) -> Logits:
        """The logits (vocabulary,) after `ids`; only tokens that the cache does not hold are computed.
        `end`: tokens that the conversation may get."""
        try:
            return self._append(ids, end)
        except BaseException as error:
            # How much of it the cache holds after an interrupt is unknown.
            self._generator, self._cached = None, []
            if isinstance(error, RuntimeError):
                raise unloadable(self.path, error) from None
            raise

    def _append(self, ids: list[int], end: int) -> Logits:
        generator = self._generator_for(end)
        shared = min(common_prefix(self._cached, ids), len(ids) - 1)
        if shared < len(self._cached):
            del self._cached[shared:]
            generator.rewind_to(shared)
        generator.append_tokens(np.array(ids[shared:], np.int32))
        self._cached[:] = ids
        row: Logits = generator.get_logits()[0, -1]
        return row[: self.vocab_size]

    def _generator_for(self, tokens: int) -> Any:
        """A generator whose cache has room for `tokens`; a larger one starts with an empty cache."""
        if self._model is None:
            raise EdgeftError(f"{self.path} is closed")
        if self._generator is None or tokens > self._cache_tokens:
            self._generator, self._cached = None, []
            self._cache_tokens = max(MIN_CACHE_TOKENS, 1 << (tokens - 1).bit_length())
            params = self._genai.GeneratorParams(self._model)
            params.set_search_options(
                max_length=min(self._cache_tokens, self.context),
                batch_size=1,
                num_beams=1,
                num_return_sequences=1,
                min_length=0,
            )
            self._generator = self._genai.Generator(self._model, params)
        return self._generator

    @functools.cached_property
    def special_tokens(self) -> dict[str, int]:
        """text -> id of the tokens that llguidance takes for no part of a text."""
        added = self._tokenizer.get_added_tokens_decoder().items()
        return {
            token.content: i
            for i, token in added
            if token.special or (token.content[:1] == "<" and token.content[-1:] == ">")
        }

    def matcher(self, grammar: str) -> Matcher:
        """For `Limits.grammar`; InputError for a grammar that is invalid or too complex."""
        return self._grammars.matcher(grammar)

    @functools.cached_property
    def _grammars(self) -> GrammarVocabulary:
        return GrammarVocabulary.from_tokenizer(self._tokenizer, self.vocab_size, self.eos_ids)

    def replies(
        self,
        prompts: Sequence[Sequence[int]],
        limits: Limits,
        progress: Callable[[int], None] | None = None,
    ) -> list[Reply]:
        """One after the other. The beginning that a prompt shares with the one before is not computed
        again."""

        def max_new_tokens(prompt: Sequence[int]) -> int:
            return min(limits.max_tokens, self.context + 1 - len(prompt))

        return in_turn(self.stream, prompts, limits, max_new_tokens, progress)

    def close(self) -> None:
        self._generator = self._session = self._model = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check(self, ids: Sequence[int]) -> None:
        if not ids:
            raise InputError("there are no tokens to read")
        if len(ids) > self.context:
            raise InputError(f"{len(ids)} tokens are more than the context of {self.context}")
        if not 0 <= min(ids) <= max(ids) < self.vocab_size:
            raise InputError(f"the ids of tokens go from 0 to {self.vocab_size - 1}")
