"""DeepSpeed's ZeRO: optimizer state (zero1), gradients (zero2) and weights (zero3) divided among the processes.

    config = zero_config(options)       # of DeepSpeed, as its JSON
    zero.start()                        # before the Trainer is made
    zero.use_optimizer(trainer, optimizer)

DeepSpeed steps with edgeft's optimizer: it compiles none of its own.
Source: https://www.deepspeed.ai/docs/config-json/
"""

from __future__ import annotations

import contextlib
import os
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from edgeft.errors import require
from edgeft.train.options import TrainOptions

BUCKET_WEIGHTS = 20_000_000
"""weights that are sent at once, and in zero3 those that are whole at a time where a layer has fewer. DeepSpeed's
500 million to a billion are whole models of a few GB; transformers' "auto" is the squared width, 17 million for
4,096."""


def is_zero(options: TrainOptions) -> bool:
    return options.parallel.startswith("zero")


def zero_config(options: TrainOptions) -> dict[str, Any]:
    """DeepSpeed's configuration of a run."""
    stage = int(options.parallel.removeprefix("zero"))
    zero: dict[str, Any] = {
        "stage": stage,
        "stage3_gather_16bit_weights_on_model_save": stage == 3,
        "reduce_bucket_size": BUCKET_WEIGHTS,
        "allgather_bucket_size": BUCKET_WEIGHTS,
    }
    if stage == 3:
        zero |= dict.fromkeys(
            (
                "stage3_prefetch_bucket_size",
                "stage3_max_live_parameters",
                "stage3_max_reuse_distance",
            ),
            BUCKET_WEIGHTS,
        )
    if options.offload:
        device, _, folder = options.offload.partition(":")
        place = {"device": device, **({"nvme_path": folder} if folder else {})}
        zero["offload_optimizer"] = place
        if stage == 3:
            zero["offload_param"] = place
    return {
        "train_batch_size": options.batch_size,
        "train_micro_batch_size_per_gpu": int(options.micro_batch_size),
        "gradient_accumulation_steps": options.accumulation_steps,
        "gradient_clipping": options.max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def processes_config(options: TrainOptions) -> dict[str, Any]:
    """What the processes of a run get, for a person and for the manifest."""
    config = {
        "processes": options.processes,
        "nodes": options.nodes,
        "parallel": options.parallel,
        "batch_size": options.batch_size,
        "micro_batch_size": options.micro_batch_size,
        "gradient_accumulation_steps": options.accumulation_steps,
    }
    return config | ({"deepspeed": zero_config(options)} if is_zero(options) else {})


def start() -> None:
    """Let DeepSpeed communicate through the processes' group, in a rank."""
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # It compiles its communication with ninja, which lies beside the interpreter.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    deepspeed: Any = require("deepspeed", "deepspeed")
    deepspeed.utils.logger.setLevel("ERROR")
    deepspeed.init_distributed(dist_backend=torch.distributed.get_backend(), verbose=False)


def use_optimizer(trainer: Any, optimizer: Any) -> None:
    """Let DeepSpeed wrap this optimizer. It would ask the Trainer for another one, and takes no empty group."""
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]

    def create_optimizer(model: Any = None) -> Any:
        trainer.optimizer = optimizer
        return optimizer

    trainer.create_optimizer = create_optimizer


def gathered(options: TrainOptions, weights: list[Any]) -> AbstractContextManager[Any]:
    """Within the block the weights are whole in every process. Every process takes part."""
    if options.parallel != "zero3":
        return contextlib.nullcontext()
    import deepspeed

    context: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(weights)
    return context
