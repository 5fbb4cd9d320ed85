"""The weights that train + settings -> a torch optimizer: one function for each row of `OPTIMIZERS`.

Every optimizer comes from its package. A function imports the package when it is called.
"""

from __future__ import annotations

from typing import Any

from edgeft.errors import require
from edgeft.train.optimizers.weights import Settings, Weights, projected_groups
from edgeft.train.optimizers.wrappers import block_class, joined_class


def adamw(weights: Weights, settings: Settings) -> Any:
    import torch

    # As `TrainingArguments(optim="adamw_torch_fused")`: on a CPU 3.7 x as fast as the plain loop.
    return torch.optim.AdamW(weights.groups, **_common(settings, fused=True))


def adamw_8bit(weights: Weights, settings: Settings) -> Any:
    bnb = require("bitsandbytes", "train")
    _keep_embeddings_exact(bnb, weights.model)
    return bnb.optim.AdamW8bit(weights.groups, **_common(settings))


def paged_adamw_8bit(weights: Weights, settings: Settings) -> Any:
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


def adafactor(weights: Weights, settings: Settings) -> Any:
    import transformers

    rule = {
        "scale_parameter": False,
        "relative_step": False,
    }  # as the Trainer: it obeys --scheduler
    return transformers.Adafactor(weights.groups, **_common(settings, **rule))


def lion(weights: Weights, settings: Settings) -> Any:
    bnb = require("bitsandbytes", "train")
    return bnb.optim.Lion(weights.groups, **_common(settings))


def muon(weights: Weights, settings: Settings) -> Any:
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
    return joined_class()(parts)


def galore(weights: Weights, settings: Settings) -> Any:
    package = require("galore_torch", "optimizers")
    rule = {"update_proj_gap": 200, "scale": 0.25, "proj_type": "std"}
    groups, rest = projected_groups(weights, settings, rule, rank=128)
    return package.GaLoreAdamW(groups, **_common(rest, no_deprecation_warning=True))


def apollo(weights: Weights, settings: Settings) -> Any:
    package = require("apollo_torch", "apollo")
    rule = {"update_proj_gap": 200, "scale": 1.0, "proj_type": "std", "proj": "random",
            "scale_type": "channel"}  # fmt: skip
    groups, rest = projected_groups(weights, settings, rule, rank=128)
    return package.APOLLOAdamW(groups, **_common(rest, no_deprecation_warning=True))


def apollo_mini(weights: Weights, settings: Settings) -> Any:
    package = require("apollo_torch", "apollo")
    rule = {"update_proj_gap": 200, "scale": 128.0, "proj_type": "std", "proj": "random",
            "scale_type": "tensor"}  # fmt: skip
    groups, rest = projected_groups(weights, settings, rule, rank=1)
    return package.APOLLOAdamW(groups, **_common(rest, no_deprecation_warning=True))


def lomo(weights: Weights, settings: Settings) -> Any:
    package = require("lomo_optim", "optimizers")
    return package.Lomo(weights.model, **_common(settings))


def adalomo(weights: Weights, settings: Settings) -> Any:
    package = require("lomo_optim", "optimizers")
    return package.AdaLomo(weights.model, **_common(settings))


def badam(weights: Weights, settings: Settings) -> Any:
    require("badam", "optimizers")
    return block_class()(weights, settings)


def schedule_free(weights: Weights, settings: Settings) -> Any:
    package = require("schedulefree", "optimizers")
    warmup = {"warmup_steps": settings.warmup_steps}
    return package.AdamWScheduleFree(weights.groups, **_common(settings, **warmup))


def sgd(weights: Weights, settings: Settings) -> Any:
    import torch

    return torch.optim.SGD(weights.groups, **_common(settings))


def _common(settings: Settings, **more: Any) -> dict[str, Any]:
    """Keyword arguments of a class: ours, those of its row, then the user's."""
    own = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
    return own | more | settings.arguments
