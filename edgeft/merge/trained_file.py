"""Adapter of a training with --ship-from -> the GGUF file that it began with, with the codes that it moved.

    file = TrainedFile.of(adapter, card, config, changes, shapes)
    file.values(name, rows)             # float32, what the training's last step computed with
    file.rows(name, rows)               # the same as bytes of the file's type: a `BlockSource`

The adapter's change is added to `KeptScales.start`, and each sum becomes the nearest value on the file's
scales. What has no change keeps the file's values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeft import store
from edgeft.adapter.deltas import WeightDelta
from edgeft.adapter.folder import adapter_home, file_facts
from edgeft.errors import AdapterError, StaleError
from edgeft.models import Card
from edgeft.quantization import ggml
from edgeft.quantization.kept_scales import KeptScales
from edgeft.weights.checkpoint import Array, Checkpoint, Rows

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

    from edgeft.merge.base_weights import BaseWeights
    from edgeft.quantization.ggml_blocks import Bytes


def _found(adapter: Path, facts: Mapping[str, str]) -> Path:
    """The file at its recorded place, in the adapter's folder, beside that, or in a folder beside it.

    StaleError where it is not there.
    """
    recorded, home = Path(facts["path"]), adapter_home(adapter).absolute()
    places = [
        path
        for path in (
            recorded,
            home / recorded.name,
            home.parent / recorded.name,
            home.parent / recorded.parent.name / recorded.name,
            home.parent / f"{home.name}.file" / recorded.name,
        )
        if path.is_file()
    ]
    for path in places:
        if store.identity(path) == facts["identity"]:
            return path
    if places:
        raise StaleError(
            f"{places[0]} is no longer the file that {adapter} was trained from",
            "export it again with the options of its manifest",
        )
    raise StaleError(
        f"{adapter} was trained from {recorded}, which is gone",
        "put it there or beside the adapter",
    )


class TrainedFile:
    """Values and bytes of the trained file, by names and rows of the checkpoint; safe for threads."""

    def __init__(self, kept: KeptScales, changes: Mapping[str, WeightDelta]) -> None:
        self.kept, self._changes = kept, changes

    @classmethod
    def of(
        cls,
        adapter: Path,
        card: Card,
        config: Mapping[str, Any],
        changes: Mapping[str, WeightDelta],
        shapes: Mapping[str, Any],
    ) -> TrainedFile:
        """StaleError where the file is gone or another one, AdapterError for a change that is no LoRA of it."""
        path = _found(adapter, file_facts(adapter))
        kept = KeptScales(path, card, config, shapes)
        for name, change in changes.items():
            if change.whole or change.tokens or not kept.moves(name):
                raise AdapterError(f"{adapter} changes {name}, which {path} has no codes of")
        return cls(kept, changes)

    def block_type(self, source: str) -> GGMLQuantizationType | None:
        return self.kept.type_of(source)

    def rows(self, source: str, rows: Rows) -> Bytes:
        change = self._changes.get(source)
        if change is None:
            return self.kept.data(source, rows)
        start = self.kept.start(source, rows)
        delta = change.delta(rows, start, lambda more: self.kept.start(source, more))
        return self.kept.nearest(source, rows, start + delta)

    def values(self, name: str, rows: Rows) -> Array:
        qtype = self.kept.type_of(name)
        assert qtype is not None
        return ggml.dequantize(self.rows(name, rows), qtype)

    def base(self, weights: Checkpoint) -> BaseWeights:
        """The file's values before the training; of what it does not have as it is the checkpoint's."""
        return _FileValues(self.kept, weights)


@dataclass(frozen=True)
class _FileValues:
    kept: KeptScales
    weights: Checkpoint

    def rows(self, name: str, rows: Rows) -> Array:
        if name in self.kept.vectors:
            return self.kept.vectors[name][rows].copy()
        if self.kept.type_of(name) is None:
            return self.weights.rows(name, rows)
        return self.kept.values(name, rows)
