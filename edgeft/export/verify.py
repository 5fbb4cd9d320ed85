"""The finished artifact against the live model, before it gets its name.

    with Checks(adapters, examples, threads=2) as checks:
        facts = checks.run(format_named("gguf"), "q4_k_m", path, merged)

Of every artifact: token ids, template and stops, and the logits on 32 prompts against the base with
its adapter beside it (peft, float32; nothing merged). Of f16 and f32 also the first greedy tokens. The live model is loaded once, when the first artifact asks for it; where it cannot be (no
torch, no memory, a family that transformers lacks) the facts say why it was not compared.
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
from edgeft.errors import EdgeftError, InputError, ProofError
from edgeft.formats import Format, load
from edgeft.merge.view import Merged
from edgeft.progress import say
from edgeft.records import Example, Message
from edgeft.runtimes.reference import ReferenceRuntime

EXACT = ("f32", "f16")
"""quantizations that have to answer as the float32 model does"""
PROMPTS = 32
MEMORY = 9
"""bytes per weight that the live model may need: float32, twice while it is loaded"""


class Checks:
    def __init__(
        self,
        adapters: Sequence[Weighted],
        examples: Sequence[Example],
        threads: int,
        live: bool = True,
    ) -> None:
        """`examples`: the fine-tune's own, to ask about first; `live` off: tokens and stops only."""
        self._adapters = adapters
        self._examples = examples
        self._threads = threads
        self._why_not = "" if live else "switched off"
        self._reference: ReferenceRuntime | None = None
        self._expected: parity.Expected | None = None

    def run(self, row: Format, quant: str, path: Path, merged: Merged) -> dict[str, Any]:
        """Facts for the manifest; ProofError when it is not the same model."""
        reference = self._live(merged, copies=2 if row.by_torch else 1)
        if reference is None:
            return self._without(row, path, merged) | {"live": f"not compared: {self._why_not}"}
        # Rounding to float16 sends tokens to other experts now and then: not the artifact's doing.
        # So experts are compared without a half-precision cache, and strictly in f32 only.
        experts = bool(merged.card.fused)
        strict = quant in EXACT and not (experts and quant == "f16")
        exact = {"exact": True} if experts and row.name == "gguf" and quant in EXACT else {}
        with self._opened(row, path, **exact) as model:
            facts = parity.check_tokens(model, merged.tokenizer)
            if self._expected is None:
                texts = self._texts(reference)
                self._expected = parity.expect(reference, texts, model.context)
            facts["live"] = parity.check_live(model, self._expected, strict)
            if strict and not row.by_torch:
                facts["greedy"] = parity.check_greedy(model, reference)
            return facts

    def _without(self, row: Format, path: Path, merged: Merged) -> dict[str, Any]:
        """What can be checked without torch, in a process that does not grow with the model."""
        if row.by_torch:
            return parity.check_tokens(parity.Folder(path), merged.tokenizer)
        with self._opened(row, path, repack=False) as model:
            facts = parity.check_tokens(model, merged.tokenizer)
            parity.check_runs(model)
            return facts

    def _opened(self, row: Format, path: Path, **how: Any) -> Any:
        try:
            return load(row.runtime)(path, threads=self._threads, **how)
        except InputError as error:
            # The temporary file that it names is gone when the user reads this.
            reason = error.message.removeprefix(f"cannot load {path}: ")
            raise ProofError(
                f"the artifact does not load: {reason}",
                "are config.json and weights of the base whole, and of the same model?",
            ) from None

    def _live(self, merged: Merged, copies: int) -> ReferenceRuntime | None:
        if self._reference is not None or self._why_not:
            return self._reference
        weights = sum(math.prod(shape) for shape in merged.shapes.values())
        logits = 2 * PROMPTS * parity.LOGIT_POSITIONS * 4 * merged.vocabulary
        if machine.available_memory() < MEMORY * weights * copies + logits:
            self._why_not = "the float32 model does not fit into memory"
        else:
            try:
                self._reference = self._load(merged)
            except (EdgeftError, RuntimeError, ValueError, MemoryError) as missing:
                # No torch, no memory, no such architecture there: not the artifact's fault.
                text = missing.message if isinstance(missing, EdgeftError) else str(missing)
                self._why_not = text.strip().partition("\n")[0] or type(missing).__name__
        if self._reference is None:
            say(f"logits not compared with the live model: {self._why_not}")
        return self._reference

    def _load(self, merged: Merged) -> ReferenceRuntime:
        # The stored weights are read by transformers itself, which shares nothing with the merge.
        stored = merged.base_precision == "stored"
        return ReferenceRuntime(
            merged.base,
            threads=self._threads,
            weights=None if stored else merged.base_tensors(),
            adapters=[(adapter.path, adapter.weight) for adapter in self._adapters],
            tokenizer=merged.tokenizer,
            vocabulary=merged.vocabulary,
        )

    def _texts(self, reference: ReferenceRuntime) -> list[str]:
        """Own prompts in turn as asked and as answered, then general ones, up to PROMPTS."""
        texts = []
        for number, example in enumerate(self._examples[:PROMPTS]):
            asked = reference.chat.render(example.prompt)
            texts.append(asked + example.answer if number % 2 else asked)
        for prompt in itertools.islice(parity.PROMPTS, PROMPTS - len(texts)):
            texts.append(reference.chat.render([Message("user", prompt)]))
        return texts

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._reference is not None:
            self._reference.close()
