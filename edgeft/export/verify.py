"""Finished artifact and Merged view -> facts of its comparison with tokenizer and live model.

    with ArtifactVerifier(adapters, examples, threads=2) as verifier:
        facts = verifier.verify(format_named("gguf"), "q4_k_m", path, merged)

Every artifact must have the tokenizer's token ids, template and stops. Its logits on 32 prompts are
compared with the live model: the base with the unmerged adapter (peft, float32). f16 and f32 must
also generate the same first greedy tokens. After answers of the data it must end its turn where the
live model does, at a stop that its own files name. The live model is loaded once, for the first artifact.
Without it (no torch, no memory, a family that transformers lacks) the facts hold the reason.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from edgeft import machine
from edgeft.adapter.read import Weighted
from edgeft.benchmarks.fidelity import parity
from edgeft.benchmarks.fidelity.turn_ends import TurnEnds, check_ends, check_named, expect_ends
from edgeft.errors import EdgeftError, InputError, ProofError
from edgeft.formats import Format, load
from edgeft.merge.view import Merged
from edgeft.progress import say
from edgeft.records import Example, Message
from edgeft.runtimes.reference import ReferenceRuntime
from edgeft.tokenizer.hf_files import eos_ids

STRICT_QUANTS = ("f32", "f16")
"""quantizations whose logits and greedy tokens must equal the float32 model's"""
LIVE_PROMPTS = 32
"""prompts whose logits are compared with the live model's"""
LIVE_BYTES_PER_WEIGHT = 9
"""memory of the live model, bytes per weight: float32, twice during loading"""


class ArtifactVerifier:
    """Compares artifacts with the tokenizer and the live model; loads the live model once."""

    def __init__(
        self,
        adapters: Sequence[Weighted],
        examples: Sequence[Example],
        threads: int,
        live: bool = True,
        answers: Sequence[Example] = (),
    ) -> None:
        """`examples`: the validation split, whose prompts come first. `live=False`: no logits.
        `answers`: examples after whose answers the artifact has to end its turn."""
        self._adapters = adapters
        self._examples = examples
        self._answers = answers or examples
        self._threads = threads
        self._why_not_live = "" if live else "switched off"
        self._reference: ReferenceRuntime | None = None
        self._expected: parity.Expected | None = None
        self._ends: TurnEnds | None = None

    def verify(self, fmt: Format, quant: str, path: Path, merged: Merged) -> dict[str, Any]:
        """Facts for the manifest; ProofError where the artifact is not the merged model."""
        reference = self._live_model(merged, copies=2 if fmt.by_torch else 1)
        if reference is None:
            return self._verify_without_live(fmt, path, merged) | {
                "live": f"not compared: {self._why_not_live}"
            }
        # Rounding to float16 can route a token to another expert. Mixtures of experts are compared
        # without a half-precision cache, and strictly in f32 only.
        experts = bool(merged.card.fused)
        strict = quant in STRICT_QUANTS and not (experts and quant == "f16")
        exact = {"exact": True} if experts and fmt.name == "gguf" and quant in STRICT_QUANTS else {}
        with self._open(fmt, path, **exact) as model:
            facts = parity.check_tokens(model, merged.tokenizer)
            if self._expected is None:
                texts = self._prompts(reference)
                self._expected = parity.expect(reference, texts, model.context)
            facts["live"] = parity.check_live(model, self._expected, strict)
            if merged.blocks():
                facts["reference"] = "the merged view"
            if strict and not fmt.by_torch:
                facts["greedy"] = parity.check_greedy(model, reference)
            stops = _check_stops(fmt, path, model, merged)
            facts["ends"] = check_ends(model, stops, self._live_ends(reference, merged), strict)
            return facts

    def _verify_without_live(self, fmt: Format, path: Path, merged: Merged) -> dict[str, Any]:
        """The checks that need no torch and no memory for all weights."""
        if fmt.by_torch:
            _check_stops(fmt, path, None, merged)
            return parity.check_tokens(parity.Folder(path), merged.tokenizer)
        with self._open(fmt, path, repack=False) as model:
            facts = parity.check_tokens(model, merged.tokenizer)
            parity.check_runs(model)
            _check_stops(fmt, path, model, merged)
            return facts

    def _open(self, fmt: Format, path: Path, **runtime_options: Any) -> Any:
        try:
            return load(fmt.runtime)(path, threads=self._threads, **runtime_options)
        except InputError as error:
            # The message names a temporary file, which is deleted afterwards.
            reason = error.message.removeprefix(f"cannot load {path}: ")
            raise ProofError(
                f"the artifact does not load: {reason}",
                "are config.json and weights of the base whole, and of the same model?",
            ) from None

    def _live_model(self, merged: Merged, copies: int) -> ReferenceRuntime | None:
        if self._reference is not None or self._why_not_live:
            return self._reference
        weights = sum(math.prod(shape) for shape in merged.shapes.values())
        logits = 2 * LIVE_PROMPTS * parity.LOGIT_POSITIONS * 4 * merged.vocabulary
        if machine.available_memory() < LIVE_BYTES_PER_WEIGHT * weights * copies + logits:
            self._why_not_live = "the float32 model does not fit into memory"
        else:
            try:
                self._reference = self._load(merged)
            except (EdgeftError, RuntimeError, ValueError, MemoryError) as error:
                # No torch, no memory or an unknown architecture says nothing about the artifact.
                self._why_not_live = first_line(error)
        if self._reference is None:
            say(f"logits not compared with the live model: {self._why_not_live}")
        return self._reference

    def _load(self, merged: Merged) -> ReferenceRuntime:
        # transformers reads the stored weights itself, so it shares no code with the merge.
        stored, from_file = (merged.base_precision == kind for kind in ("stored", "file"))
        weights = ((name, merged.tensor(name)) for name in merged.shapes)
        adapters = [(adapter.path, adapter.weight) for adapter in self._adapters]
        return ReferenceRuntime(
            merged.base,
            threads=self._threads,
            weights=None if stored else weights if from_file else merged.base_tensors(),
            adapters=[] if from_file else adapters,
            tokenizer=merged.tokenizer,
            vocabulary=merged.vocabulary,
        )

    def _live_ends(self, reference: ReferenceRuntime, merged: Merged) -> TurnEnds:
        if self._ends is None:
            self._ends = expect_ends(reference, self._answers, merged.tokenizer)
            if self._answers and not self._ends.ends:
                say(
                    f"the live model ends its turn after none of {self._ends.answers} answers of the "
                    "data: it did not learn to stop"
                )
        return self._ends

    def _prompts(self, reference: ReferenceRuntime) -> list[str]:
        """LIVE_PROMPTS texts: the examples, every second one with its answer, then general prompts."""
        texts = []
        for number, example in enumerate(self._examples[:LIVE_PROMPTS]):
            prompt = reference.chat.render(example.prompt, tools=example.tools)
            texts.append(prompt + example.answer if number % 2 else prompt)
        for question in itertools.islice(parity.PROMPTS, LIVE_PROMPTS - len(texts)):
            texts.append(reference.chat.render([Message("user", question)]))
        return texts

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._reference is not None:
            self._reference.close()


def first_line(error: Exception) -> str:
    """The first line of an error's text without its hint, or its type where it has no text."""
    text = error.message if isinstance(error, EdgeftError) else str(error)
    return text.strip().partition("\n")[0] or type(error).__name__


def _check_stops(fmt: Format, path: Path, model: Any, merged: Merged) -> frozenset[int]:
    """Ids of the stops that the artifact's files name; ProofError where one of the template's lacks.

    Programs for folders of transformers read them from generation_config.json.
    """
    stops: frozenset[int] = frozenset(eos_ids(path)) if fmt.reference else model.file_eos_ids
    check_named(stops, merged.tokenizer, merged.vocabulary)
    return stops
