"""FSDP 2: weights, gradients and optimizer state divided among the processes, by torch's `fully_shard`.

accelerate trains with DDP where FSDP is asked for on a CPU, without a word. So the model is sharded here, each
block of layers for itself, and the Trainer takes it as one that owns its placement. A checkpoint holds whole
tensors, in the files of one process, so that any number of processes goes on from it.
Source: https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html
"""

# Imported only when a run starts, after the check for the extra.
# ruff: noqa: TID253

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from edgeft.train.protocol import without_peft


class Sharding:
    """First base class of a Trainer that may shard its model before it trains."""

    create_sharded_optimizer: Callable[[], Any] | None = None
    """the optimizer over the sharded weights; where it is set, the model is sharded"""

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        trainer: Any = self
        if self.create_sharded_optimizer:  # after a checkpoint's weights are loaded
            shard(trainer.model)
            trainer.optimizer = self.create_sharded_optimizer()
            trainer.is_distributed_loading_by_transformers = True
        return super()._prepare_for_training(*args, **kwargs)  # type: ignore[misc]

    def _defer_fsdp_gradient_reduction(self) -> AbstractContextManager[None]:
        """Gradients are summed after each micro-batch: until then every process would hold all of them."""
        return contextlib.nullcontext()

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        trainer: Any = self
        if self.create_sharded_optimizer:
            state_dict = whole(trainer.model.state_dict())
            if not trainer.args.should_save:
                return
        super()._save(output_dir, state_dict)  # type: ignore[misc]

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.create_sharded_optimizer:
            super()._save_optimizer_and_scheduler(output_dir)  # type: ignore[misc]
            return
        trainer: Any = self
        state = whole(trainer.optimizer.state_dict())
        if trainer.args.should_save:
            torch.save(state, os.path.join(output_dir, OPTIMIZER_NAME))
            torch.save(trainer.lr_scheduler.state_dict(), os.path.join(output_dir, SCHEDULER_NAME))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        trainer: Any = self
        if not self.create_sharded_optimizer or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
            return
        state = torch.load(os.path.join(checkpoint, OPTIMIZER_NAME), weights_only=True)
        weights = [weight for group in trainer.optimizer.param_groups for weight in group["params"]]
        for number, entries in state["state"].items():
            for name, value in entries.items():
                if torch.is_tensor(value) and value.shape == weights[number].shape:
                    mesh, placements = weights[number].device_mesh, weights[number].placements
                    entries[name] = distribute_tensor(value, mesh, placements)
        trainer.optimizer.load_state_dict(state)
        scheduler = torch.load(os.path.join(checkpoint, SCHEDULER_NAME), weights_only=True)
        trainer.lr_scheduler.load_state_dict(scheduler)


def shard(model: Any) -> None:
    """Divide every weight by its first axis among all processes: one unit for each block, one for the rest."""
    device = next(model.parameters()).device.type
    mesh = init_device_mesh(device, (torch.distributed.get_world_size(),))
    blocks = without_peft(model)._no_split_modules or ()
    for module in model.modules():
        if type(module).__name__ in blocks:
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)


def whole(state: Any) -> Any:
    """A state dict with whole tensors in the CPU's memory in place of sharded ones. Every process takes part."""

    def gather(value: Any) -> Any:
        return value.full_tensor().cpu() if isinstance(value, DTensor) else value

    return pytree.tree_map(gather, state)


def gather_trained(model: Any) -> None:
    """Replace the weights that train by whole ones, for `Method.save`. Every process takes part; the model
    cannot compute after it."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # what lies outside of the blocks stays whole after a forward pass
    gathered: dict[int, torch.nn.Parameter] = {}  # a tied weight stays one
    for module in model.modules():
        for name, weight in module._parameters.items():
            if isinstance(weight, DTensor) and weight.requires_grad:
                if id(weight) not in gathered:
                    gathered[id(weight)] = torch.nn.Parameter(weight.full_tensor().cpu())
                module._parameters[name] = gathered[id(weight)]
