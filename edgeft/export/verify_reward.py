"""Finished artifact of a reward model and Merged view -> facts of its comparison with the live reward model.

    with RewardVerifier(adapters, examples, threads=2) as verifier:
        facts = verifier.verify(format_named("hf"), "f32", path, merged)         # or a GGUF file

The live model is transformers' model for sequence classification on the base, with the unmerged adapter (peft,
float32). Both rate the same conversations; their scores have to agree.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from edgeft import machine
from edgeft.adapter.folder import open_adapter
from edgeft.adapter.read import Weighted
from edgeft.benchmarks.fidelity import parity
from edgeft.data.encoding import encode
from edgeft.errors import EdgeftError, ProofError, require
from edgeft.export.verify import LIVE_BYTES_PER_WEIGHT, LIVE_PROMPTS, STRICT_QUANTS, first_line
from edgeft.formats import Format, load
from edgeft.merge.view import Merged
from edgeft.models import transformers_config
from edgeft.models.text_model import reward_config
from edgeft.progress import quiet_libraries, say
from edgeft.records import Example, Message
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.tokenizer.hf_files import encoder
from edgeft.tokenizer.training_settings import config_overrides
from edgeft.train.reward_model import RewardModel
from edgeft.weights.text_base import open_base

MAX_SCORE_DIFFERENCE = {"f32": 1e-3, "f16": 1e-2, "bf16": 5e-2}
"""type -> largest difference of two scores over the largest score of the live model"""
MIN_CORRELATION = 0.5
"""of the scores with the live model's, where their spread is more than the type's rounding: less is another
model"""
MAX_TOKENS = 512
"""of a conversation that is compared"""


class RewardVerifier:
    """Compares artifacts of a reward model with the live one; loads the live one once."""

    def __init__(
        self,
        adapters: Sequence[Weighted],
        examples: Sequence[Example],
        threads: int,
        live: bool = True,
    ) -> None:
        """`examples`: the validation split, rated first. `live=False`: no scores."""
        self._adapters = adapters
        self._examples = examples
        self._threads = threads
        self._why_not_live = "" if live else "switched off"
        self._expected: list[float] | None = None

    def verify(self, fmt: Format, quant: str, path: Path, merged: Merged) -> dict[str, Any]:
        """Facts for the manifest; ProofError where the artifact does not rate as the live model does."""
        conversations = self._conversations(merged)
        expected = self._live_scores(merged, conversations)
        scores: list[float] = []
        if fmt.by_torch:
            facts = parity.check_tokens(parity.Folder(path), merged.tokenizer)
            if expected is not None:
                scores = RewardModel.open(path).scores(conversations)
        else:
            exact = quant in STRICT_QUANTS
            with load(fmt.runtime)(path, threads=self._threads, exact=exact, rates=True) as model:
                facts = parity.check_tokens(model, merged.tokenizer)
                scores = model.scores(conversations)
        if expected is None:
            return facts | {"live": f"not compared: {self._why_not_live}"}
        return facts | {
            "live": "scores compared",
            "scores": compare_scores(scores, expected, quant),
        }

    def _conversations(self, merged: Merged) -> list[list[int]]:
        """Token ids of LIVE_PROMPTS conversations at most: of the examples, then general questions."""
        chat, tokenize = ChatTemplate.from_folder(merged.tokenizer), encoder(merged.tokenizer)
        general = (
            Example((Message("user", question), Message("assistant", answer)))
            for question, answer in zip(parity.PROMPTS, parity.PROMPTS[1:], strict=False)
        )
        encoded = (encode(example, chat, tokenize).ids for example in (*self._examples, *general))
        return list(
            itertools.islice((ids for ids in encoded if len(ids) <= MAX_TOKENS), LIVE_PROMPTS)
        )

    def _live_scores(
        self, merged: Merged, conversations: Sequence[list[int]]
    ) -> list[float] | None:
        if self._expected is not None or self._why_not_live:
            return self._expected
        weights = sum(math.prod(shape) for shape in merged.shapes.values())
        if machine.available_memory() < 2 * LIVE_BYTES_PER_WEIGHT * weights:
            self._why_not_live = "the float32 model does not fit into memory"
        else:
            try:
                with quiet_libraries():
                    require("torch", "train").set_num_threads(self._threads)
                    model = live_model(merged, self._adapters[0].path)
                chat = ChatTemplate.from_folder(merged.tokenizer)
                live = RewardModel(self._adapters[0].path, model, chat, encoder(merged.tokenizer))
                self._expected = live.scores(conversations)
            except (EdgeftError, RuntimeError, ValueError, MemoryError) as error:
                self._why_not_live = first_line(error)
        if self._why_not_live:
            say(f"scores not compared with the live model: {self._why_not_live}")
        return self._expected

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def compare_scores(
    scores: Sequence[float], expected: Sequence[float], quant: str
) -> dict[str, Any]:
    """Facts for the manifest; ProofError where the scores are not those of the live model, within what the type
    rounds."""
    spread, largest = float(np.std(expected)), float(np.abs(expected).max())
    difference = float(np.abs(np.subtract(scores, expected)).max())
    correlation = float(np.corrcoef(scores, expected)[0, 1]) if spread and np.std(scores) else 0.0
    tolerance = MAX_SCORE_DIFFERENCE.get(quant, math.inf) * largest
    comparable = spread > min(tolerance, largest / 100)
    if not difference <= tolerance or (comparable and not correlation >= MIN_CORRELATION):
        raise ProofError(
            f"the scores are not those of the live model: they differ by {difference:.3g}, their spread is "
            f"{spread:.3g}, the correlation {correlation:.3f}",
            "a finer --quant" if quant != "f32" else "",
        )
    return {
        "conversations": len(scores), "difference": difference, "spread": spread,
        "correlation": correlation,
    }  # fmt: skip


def live_model(merged: Merged, adapter: Path) -> Any:
    """peft's model of the base with the adapter's matrices and its head, float32."""
    peft = require("peft", "train")
    torch = require("torch", "train")
    transformers = require("transformers", "train")

    base = open_base(merged.base)
    config = transformers_config(base.config | config_overrides(merged.base))
    config.num_labels, config.pad_token_id = 1, reward_config(base.config)["pad_token_id"]
    config.dtype = torch.float32
    with torch.device("meta"):
        architecture = type(transformers.AutoModelForSequenceClassification.from_config(config))
    weights = {name: torch.from_numpy(values) for name, values in merged.base_tensors()}
    model = architecture.from_pretrained(None, config=config, state_dict=weights)
    if merged.vocabulary != model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(merged.vocabulary, mean_resizing=False)
    folder = open_adapter(adapter, merged.base, reward=True).folder
    return peft.PeftModel.from_pretrained(model, folder).eval()
