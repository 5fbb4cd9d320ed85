"""Options of a run -> what cannot run with their optimizer and scheduler is refused before loading.

    check("galore", {"rank": 32})           # package, device, arguments
    check_optimizer(options)                # these, and what does not fit the other options

torch is imported only where a GPU, an argument or a scheduler is checked.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterable
from typing import Any

from edgeft.errors import InputError, MissingExtra, ResourceError
from edgeft.train.optimizers.table import OPTIMIZERS, OptimizerRow, create, optimizer_row
from edgeft.train.optimizers.weights import Settings, Weights
from edgeft.train.options import TrainOptions


def check(name: str, arguments: dict[str, Any]) -> OptimizerRow:
    """What can be said before anything is loaded.

    InputError for an unknown name or argument, MissingExtra for a package that is not installed,
    ResourceError where this machine has none of the devices that the optimizer runs on.
    """
    row = optimizer_row(name)
    if "cpu" not in row.devices:
        import torch

        if not torch.cuda.is_available():
            raise ResourceError(
                f"--optimizer {name} needs a GPU with CUDA: {row.reason}",
                f"on a CPU run: {', '.join(n for n, r in OPTIMIZERS.items() if 'cpu' in r.devices)}",
            )
    if row.package and importlib.util.find_spec(row.package) is None:
        raise MissingExtra(
            f"--optimizer {name} needs the package {row.package.replace('_', '-')}, which is not "
            "installed",
            hint=f"pip install 'edgeft[{row.extra}]'",
        )
    if arguments:
        import torch

        trial = torch.nn.Module()
        trial.layers = torch.nn.ModuleList([torch.nn.Linear(4, 4)])
        groups = [{"params": list(trial.parameters())}]
        create(name, Weights.of(trial, groups), Settings(1e-3, 0.0, 1, 0, arguments))
    return row


def check_optimizer(options: TrainOptions) -> None:
    """What `options` ask of their optimizer; raises as `check`, InputError for what does not fit it."""
    name = options.optimizer
    row = check(name, parse_arguments(options.optimizer_args))
    _check_scheduler(options)
    if row.own_schedule and options.scheduler != "constant":
        raise InputError(
            f"--optimizer {name} has no use for --scheduler {options.scheduler}: it averages weights "
            "in place of a schedule, and its warm-up is its own",
            "--scheduler constant",
        )
    if not row.fused_backward:
        return
    if options.micro_batch_size != options.batch_size:
        raise InputError(
            f"--optimizer {name} steps in every backward pass and accumulates no gradients",
            f"--batch-size {options.micro_batch_size}",
        )
    if options.ship_text:
        raise InputError(
            f"--optimizer {name} steps in every backward pass, and --ship-text has one of its own",
            "another --optimizer",
        )
    if options.max_grad_norm:
        raise InputError(
            f"--optimizer {name} keeps no gradients, so that their norm cannot be clipped",
            "--max-grad-norm 0",
        )


def _check_scheduler(options: TrainOptions) -> None:
    """InputError for arguments that the scheduler lacks or does not take."""
    arguments = parse_arguments(options.scheduler_args)
    if options.scheduler in ("reduce_lr_on_plateau", "greedy") and not (
        options.validation_size or options.validation_data
    ):
        raise InputError(
            f"--scheduler {options.scheduler} follows the validation loss, and there is no validation",
            "--validation-size 0.05",
        )
    plain = ("cosine", "linear", "constant", "constant_with_warmup")
    if options.scheduler in plain and not arguments:
        return
    import torch
    import transformers

    trial = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=options.learning_rate)
    try:
        transformers.get_scheduler(
            options.scheduler, trial, 1, 10, scheduler_specific_kwargs=arguments
        )
    except (TypeError, ValueError) as error:
        words = " ".join(options.scheduler_args)
        raise InputError(
            f"--scheduler {options.scheduler} {words}: {error}".replace(" :", ":"),
            "--scheduler-args KEY=VALUE",
        ) from None


def parse_arguments(words: Iterable[str]) -> dict[str, Any]:
    """ "rank=64" -> {"rank": 64}. InputError for a word without a value."""
    arguments = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key.strip().isidentifier():
            raise InputError(f"{word!r} is not of the form KEY=VALUE", "for example rank=64")
        try:
            arguments[key.strip()] = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError):
            arguments[key.strip()] = value.strip()
    return arguments
