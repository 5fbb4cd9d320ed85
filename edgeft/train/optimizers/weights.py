"""A model + parameter groups -> the weights that an optimizer changes, and its settings.

    weights = Weights.of(model, [{"params": [...], "lr": 1e-3}])
    settings = Settings(1e-3, weight_decay=0.0, steps=100, warmup_steps=5, arguments={"rank": 32})
    groups, rest = projected_groups(weights, settings, {"scale": 1.0}, rank=128)

GaLore and APOLLO take the groups of `projected_groups`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

GroupList = list[dict[str, Any]]
"""parameter groups of torch: {"params": [tensors], "lr": …, "weight_decay": …}"""


@dataclass(frozen=True)
class Weights:
    """The weights that an optimizer changes."""

    groups: GroupList
    named: tuple[tuple[str, Any], ...]
    """(name, weight) of every weight that trains"""
    matrices: frozenset[int]
    """`id` of the 2-D weights of linear layers, without the output layer's"""
    model: Any

    @classmethod
    def of(cls, model: Any, groups: GroupList) -> Weights:
        import torch

        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        named = tuple((name, p) for name, p in model.named_parameters() if p.requires_grad)
        inputs = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
        ends = {id(getattr(layer, "weight", None)) for layer in (head, inputs)}
        matrices = {
            id(module.weight)
            for module in model.modules()
            if isinstance(module, torch.nn.Linear) and module.weight.dim() == 2
        }
        return cls(groups, named, frozenset(matrices - ends), model)

    def split(self) -> Iterator[tuple[dict[str, Any], list[Any], list[Any]]]:
        """For each group: (its settings, its matrices, its other weights)."""
        for group in self.groups:
            settings = {key: value for key, value in group.items() if key != "params"}
            matrices = [p for p in group["params"] if id(p) in self.matrices]
            yield settings, matrices, [p for p in group["params"] if id(p) not in self.matrices]


@dataclass(frozen=True)
class Settings:
    """What every optimizer is told."""

    learning_rate: float
    weight_decay: float
    """of the groups that do not say their own"""
    steps: int
    """optimizer steps of the run"""
    warmup_steps: int
    arguments: dict[str, Any]
    """--optimizer-args: keyword arguments of the optimizer's class"""


def projected_groups(
    weights: Weights, settings: Settings, rule: dict[str, Any], rank: int
) -> tuple[GroupList, Settings]:
    """(groups with a projection for every matrix, the settings without the projection's).

    A matrix is projected to `rank`, at most to half of its smaller side.
    """
    known = {"rank", *rule}
    rule = rule | {key: value for key, value in settings.arguments.items() if key in known}
    rank = rule.pop("rank", rank)
    if not isinstance(rank, int) or rank < 1:
        raise ValueError(f"rank {rank!r} is no number from 1")
    groups: GroupList = []
    for group, matrices, others in weights.split():
        by_rank: dict[int, list[Any]] = {}
        for matrix in matrices:
            by_rank.setdefault(max(1, min(rank, min(matrix.shape) // 2)), []).append(matrix)
        groups += [{"params": some, "rank": r, **rule, **group} for r, some in by_rank.items()]
        groups += [{"params": others, **group}] if others else []
    rest = {key: value for key, value in settings.arguments.items() if key not in known}
    return groups, dataclasses.replace(settings, arguments=rest)
