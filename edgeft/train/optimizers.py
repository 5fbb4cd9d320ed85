"""`--optimizer NAME` -> a torch optimizer over the weights that train, one row for each name.

    check("galore", {"rank": 32})           # before anything is loaded: packages, device, arguments
    settings = Settings(1e-3, weight_decay=0.0, steps=100, warmup_steps=5, arguments={"rank": 32})
    optimizer = create("galore", Weights.of(model, groups), settings)

Every optimizer comes from its package. The packages are imported only when their row is chosen.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import importlib
import importlib.util
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from edgeft.errors import InputError, MissingExtra, ResourceError, did_you_mean, require
from edgeft.train.options import TrainOptions

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


@dataclass(frozen=True)
class OptimizerRow:
    make: Callable[[Weights, Settings], Any]
    about: str
    """one line for `edgeft train --list`"""
    state_bytes: float
    """memory of its state for each weight of a 1024 x 1024 matrix"""
    source: str
    """paper or page"""
    package: str = ""
    """import name of the package that has it, where that is not torch or transformers"""
    extra: str = "train"
    """extra of edgeft that installs the package"""
    devices: tuple[str, ...] = ("cpu", "cuda")
    """where it runs"""
    reason: str = ""
    """why it does not run on the other devices"""
    fused_backward: bool = False
    """the step is part of the backward pass: no gradient is kept, none accumulated, none clipped"""
    one_rate: bool = False
    """all weights have the same learning rate"""
    own_schedule: bool = False
    """it needs a constant learning rate and has a warm-up of its own"""
    state_classes: tuple[str, ...] = ()
    """module:class of objects in its state, which a checkpoint may hold"""


def _adamw(weights: Weights, settings: Settings) -> Any:
    import torch

    # As `TrainingArguments(optim="adamw_torch_fused")`: on a CPU 3.7 x as fast as the plain loop.
    return torch.optim.AdamW(weights.groups, **_common(settings, fused=True))


def _adamw_8bit(weights: Weights, settings: Settings) -> Any:
    bnb = require("bitsandbytes", "train")
    _keep_embeddings_exact(bnb, weights.model)
    return bnb.optim.AdamW8bit(weights.groups, **_common(settings))


def _paged_adamw_8bit(weights: Weights, settings: Settings) -> Any:
    bnb = require("bitsandbytes", "train")
    _keep_embeddings_exact(bnb, weights.model)
    return bnb.optim.PagedAdamW8bit(weights.groups, **_common(settings))


def _keep_embeddings_exact(bnb: Any, model: Any) -> None:
    """Moments of embeddings stay in 32 bits, as in `Trainer.create_optimizer`: their rows vary most."""
    import torch

    manager = bnb.optim.GlobalOptimManager.get_instance()
    manager.initialize()  # it remembers the weights of earlier models of this process by their place
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            manager.register_module_override(module, "weight", {"optim_bits": 32})


def _adafactor(weights: Weights, settings: Settings) -> Any:
    import transformers

    rule = {
        "scale_parameter": False,
        "relative_step": False,
    }  # as the Trainer: it obeys --scheduler
    return transformers.Adafactor(weights.groups, **_common(settings, **rule))


def _lion(weights: Weights, settings: Settings) -> Any:
    bnb = require("bitsandbytes", "train")
    return bnb.optim.Lion(weights.groups, **_common(settings))


def _muon(weights: Weights, settings: Settings) -> Any:
    import torch

    matrices, others = [], []
    for group, two_d, rest in weights.split():
        matrices += [{"params": two_d, **group}] if two_d else []
        others += [{"params": rest, **group}] if rest else []
    # Its update has the size of AdamW's, so that the learning rates of AdamW fit both.
    rule = _common(settings, adjust_lr_fn="match_rms_adamw")
    parts = [torch.optim.Muon(matrices, **rule)] if matrices else []
    if others:
        plain = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
        parts.append(torch.optim.AdamW(others, fused=True, **plain))
    return _joined()(parts)


def _galore(weights: Weights, settings: Settings) -> Any:
    package = require("galore_torch", "optimizers")
    rule = {"update_proj_gap": 200, "scale": 0.25, "proj_type": "std"}
    groups, rest = _projected(weights, settings, rule, rank=128)
    return package.GaLoreAdamW(groups, **_common(rest, no_deprecation_warning=True))


def _apollo(weights: Weights, settings: Settings) -> Any:
    package = require("apollo_torch", "apollo")
    rule = {"update_proj_gap": 200, "scale": 1.0, "proj_type": "std", "proj": "random",
            "scale_type": "channel"}  # fmt: skip
    groups, rest = _projected(weights, settings, rule, rank=128)
    return package.APOLLOAdamW(groups, **_common(rest, no_deprecation_warning=True))


def _apollo_mini(weights: Weights, settings: Settings) -> Any:
    package = require("apollo_torch", "apollo")
    rule = {"update_proj_gap": 200, "scale": 128.0, "proj_type": "std", "proj": "random",
            "scale_type": "tensor"}  # fmt: skip
    groups, rest = _projected(weights, settings, rule, rank=1)
    return package.APOLLOAdamW(groups, **_common(rest, no_deprecation_warning=True))


def _lomo(weights: Weights, settings: Settings) -> Any:
    package = require("lomo_optim", "optimizers")
    return package.Lomo(weights.model, **_common(settings))


def _adalomo(weights: Weights, settings: Settings) -> Any:
    package = require("lomo_optim", "optimizers")
    return package.AdaLomo(weights.model, **_common(settings))


def _badam(weights: Weights, settings: Settings) -> Any:
    require("badam", "optimizers")
    return _block_optimizer()(weights, settings)


def _schedule_free(weights: Weights, settings: Settings) -> Any:
    package = require("schedulefree", "optimizers")
    warmup = {"warmup_steps": settings.warmup_steps}
    return package.AdamWScheduleFree(weights.groups, **_common(settings, **warmup))


def _sgd(weights: Weights, settings: Settings) -> Any:
    import torch

    return torch.optim.SGD(weights.groups, **_common(settings))


OPTIMIZERS = {
    "adamw": OptimizerRow(
        _adamw, "AdamW, its step fused", 8, "https://arxiv.org/abs/1711.05101"
    ),
    "adamw-8bit": OptimizerRow(
        _adamw_8bit, "AdamW with moments in 8 bits (tensors from 4096 weights on)", 2.05,
        "https://arxiv.org/abs/2110.02861", "bitsandbytes",
    ),
    "paged-adamw-8bit": OptimizerRow(
        _paged_adamw_8bit, "the same with moments that move to the CPU's memory when the GPU's is full",
        2.05, "https://arxiv.org/abs/2305.14314", "bitsandbytes", devices=("cuda",),
        reason="bitsandbytes pages the memory of a GPU only; on a CPU adamw-8bit is the same",
    ),
    "adafactor": OptimizerRow(
        _adafactor, "Adafactor: second moments as a row and a column", 0.01,
        "https://arxiv.org/abs/1804.04235",
    ),
    "lion": OptimizerRow(
        _lion, "Lion: the sign of a momentum; a third to a tenth of AdamW's learning rate", 4,
        "https://arxiv.org/abs/2302.06675", "bitsandbytes",
    ),
    "muon": OptimizerRow(
        _muon, "Muon on the matrices of linear layers, AdamW on the rest", 4,
        "https://arxiv.org/abs/2502.16982",
    ),
    "galore": OptimizerRow(
        _galore, "AdamW on gradients projected to a low rank", 1.5,
        "https://arxiv.org/abs/2403.03507", "galore_torch", "optimizers",
        state_classes=("galore_torch.galore_projector:GaLoreProjector",),
    ),
    "apollo": OptimizerRow(
        _apollo, "learning rates of channels from a low-rank sketch of the moments", 1.5,
        "https://arxiv.org/abs/2412.05270", "apollo_torch", "apollo",
        state_classes=("apollo_torch.random_projector:GradientProjector",),
    ),
    "apollo-mini": OptimizerRow(
        _apollo_mini, "APOLLO of rank 1, one learning rate for each tensor", 0.01,
        "https://arxiv.org/abs/2412.05270", "apollo_torch", "apollo",
        state_classes=("apollo_torch.random_projector:GradientProjector",),
    ),
    "lomo": OptimizerRow(
        _lomo, "SGD within the backward pass: no gradient is kept", 0,
        "https://arxiv.org/abs/2306.09782", "lomo_optim", "optimizers", fused_backward=True,
        one_rate=True,
    ),
    "adalomo": OptimizerRow(
        _adalomo, "Adafactor's rule within the backward pass", 0.01,
        "https://arxiv.org/abs/2310.10195", "lomo_optim", "optimizers", devices=("cuda",),
        reason="lomo-optim 0.1.1 keeps the state of AdaLomo in the memory of a GPU",
        fused_backward=True, one_rate=True,
    ),
    "badam": OptimizerRow(
        _badam, "AdamW on a float32 copy of one block of layers after the other", 12,
        "https://arxiv.org/abs/2404.02827", "badam", "optimizers", one_rate=True,
    ),
    "schedule-free": OptimizerRow(
        _schedule_free, "AdamW that averages weights in place of a schedule", 8,
        "https://arxiv.org/abs/2405.15682", "schedulefree", "optimizers", own_schedule=True,
    ),
    "sgd": OptimizerRow(
        _sgd, "plain gradient descent; --optimizer-args momentum=0.9 adds 4 bytes", 0,
        "https://doi.org/10.1214/aoms/1177729586",
    ),
}  # fmt: skip


def optimizer_row(name: str) -> OptimizerRow:
    """InputError for a name that is not in the table."""
    if name not in OPTIMIZERS:
        raise InputError(f"no optimizer {name!r}", did_you_mean(name, OPTIMIZERS))
    return OPTIMIZERS[name]


def optimizer_rows() -> list[dict[str, Any]]:
    """Every optimizer as {name, about, package, devices, state_bytes, source}, for a list."""
    return [
        {
            "name": name,
            "about": row.about,
            "package": row.package.replace("_", "-") or "torch",
            "extra": row.extra,
            "devices": list(row.devices),
            "state_bytes": row.state_bytes,
            "source": row.source,
        }
        for name, row in OPTIMIZERS.items()
    ]


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


def create(name: str, weights: Weights, settings: Settings) -> Any:
    """A `torch.optim.Optimizer`. InputError for an argument that its class does not take."""
    import torch

    row = optimizer_row(name)
    if row.one_rate and len({group.get("lr") for group in weights.groups}) > 1:
        raise InputError(
            f"--optimizer {name} has one learning rate for all weights, and the method has several",
            "--optimizer adamw",
        )
    try:
        optimizer = row.make(weights, settings)
    except (TypeError, ValueError, AssertionError) as error:
        if not settings.arguments:
            raise
        words = ", ".join(f"{key}={value}" for key, value in settings.arguments.items())
        raise InputError(f"--optimizer-args {words}: {error}", f"arguments of {name}") from None
    for entry in row.state_classes:  # so that torch.load accepts them in a checkpoint
        module, _, cls = entry.partition(":")
        torch.serialization.add_safe_globals([getattr(importlib.import_module(module), cls)])
    return optimizer


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


def _common(settings: Settings, **more: Any) -> dict[str, Any]:
    """Keyword arguments of a class: ours, those of its row, then the user's."""
    own = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
    return own | more | settings.arguments


def _projected(
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


def _joined() -> type[Any]:
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


def _block_optimizer() -> type[Any]:
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
