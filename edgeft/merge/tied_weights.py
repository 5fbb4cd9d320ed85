"""Changes of embedding and output layer -> TiedWeights: whether they still share a weight.

peft's live adapter changes only the layer that it wraps. So a change of one layer, or two different
changes, turn the shared weight into two weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgeft import models
from edgeft.adapter.deltas import WeightDelta
from edgeft.errors import AdapterError


@dataclass(frozen=True)
class TiedWeights:
    """The changes of an adapter, and which weights are tied, after untying."""

    embedding: str
    """name of the embedding in the checkpoint; "" where the family has none"""
    output: str
    """name of the output layer; "" where the family has none"""
    tied: bool
    """whether the output layer of the merged model is the embedding"""
    changes: Mapping[str, WeightDelta]
    """tensor -> its change; a tied output layer has none"""
    source: Mapping[str, str]
    """merged weight -> the base tensor that it starts from, where the names differ"""
    notes: tuple[str, ...] = ()
    """messages to the user"""

    @property
    def untied(self) -> bool:
        return bool(self.source)


def untied_weights(
    card: models.Card, config: dict[str, Any], changes: Mapping[str, WeightDelta]
) -> TiedWeights:
    """Untie embedding and output layer where the adapter changes them differently.

    AdapterError where the family has no output layer to untie.
    """
    embedding = card.hf_name("token_embd.weight") or ""
    output = card.hf_name("output.weight") or ""
    if not card.value(config, "tie_word_embeddings"):
        return TiedWeights(embedding, output, False, changes, {})
    change, other = changes.get(embedding), changes.get(output)
    if change and not output:
        raise AdapterError(
            f"the {card.family} family has no output layer of its own, and the adapter "
            f"changes {embedding}"
        )
    if change is other or (change and change.equals(other)):
        shared = {name: entry for name, entry in changes.items() if name != output}
        return TiedWeights(embedding, output, True, shared, {})
    note = f"the adapter changes {embedding} and {output} differently: they are no longer tied"
    return TiedWeights(embedding, output, False, changes, {output: embedding}, (note,))


def resized_vocabulary(rows: Mapping[str, int]) -> int:
    """The number of tokens, from the rows of embedding and output layer; AdapterError where they
    differ.
    """
    if len(set(rows.values())) > 1:
        raise AdapterError(
            "the adapter brings other numbers of tokens: "
            + ", ".join(f"{name} has {count} rows" for name, count in rows.items()),
            "save both embedding layers with it",
        )
    return next(iter(rows.values()))
