"""torch optimizers -> one that the training loop can use: several joined, or BAdam's with a state.

The classes are made inside functions, because torch and badam are imported there.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

from edgeft.train.optimizers.weights import Settings, Weights


def joined_class() -> type[Any]:
    """A class that makes several optimizers look like one."""
    import torch

    class Joined(torch.optim.Optimizer):  # type: ignore[misc]
        """Their parameter groups are its own: a scheduler sets the learning rates of all."""

        def __init__(self, parts: Sequence[Any]) -> None:
            self.parts = list(parts)
            super().__init__([group for part in self.parts for group in part.param_groups], {})

        def step(self, closure: Any = None) -> None:
            for part in self.parts:
                part.step()

        def state_dict(self) -> dict[str, Any]:
            return {"parts": [part.state_dict() for part in self.parts]}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            for part, state in zip(self.parts, state_dict["parts"], strict=True):
                part.load_state_dict(state)
            self.param_groups = [group for part in self.parts for group in part.param_groups]

    return Joined


def block_class() -> type[Any]:
    """BAdam's class with the weights that train alone, quiet, and with a state for checkpoints."""
    import torch
    from badam import BlockOptimizer

    class Blocks(BlockOptimizer):  # type: ignore[misc]
        """One block of layers trains at a time, in float32; `switch_block_every` steps each."""

        def __init__(self, weights: Weights, settings: Settings) -> None:
            arguments = dict(settings.arguments)
            names = [name for name, _ in weights.named]
            layers = len(self.infer_param_groups(names, False, False))
            others = [name for name in names if "layers." not in name]
            arguments.setdefault("include_embedding", any("embed" in name for name in others))
            arguments.setdefault("include_lm_head", any("embed" not in name for name in others))
            every = min(50, max(1, settings.steps // (layers + 2)))  # each block gets its turn
            arguments.setdefault("switch_block_every", every)
            base = torch.optim.AdamW(
                weights.groups, lr=settings.learning_rate, weight_decay=settings.weight_decay
            )
            with contextlib.redirect_stdout(io.StringIO()):
                super().__init__(base, list(weights.named), **arguments)
            self.state_dict = self._state  # BlockOptimizer sets an attribute of this name

        def switch_trainable_params(self, verbose: int | None = 0) -> None:
            self._block = self.current_block_idx
            with contextlib.redirect_stdout(io.StringIO()):
                super().switch_trainable_params(verbose=0)

        def _state(self) -> dict[str, Any]:
            return {
                "base": self.base_optimizer.state_dict(),
                "block": self._block,
                "steps": self.global_step,
            }

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            self.current_block_idx = state_dict["block"]
            self.switch_trainable_params()
            self.base_optimizer.load_state_dict(state_dict["base"])
            self.global_step = state_dict["steps"]

    return Blocks
