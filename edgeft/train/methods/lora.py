"""LoRA (arXiv 2106.09685) on the base as it is stored, rsLoRA, DoRA and LoRA+.

rsLoRA (arXiv 2312.03732) scales by alpha / sqrt(r), DoRA (arXiv 2402.09353) learns the length of each
row of a weight apart from its direction, LoRA+ (arXiv 2402.12354) has a larger learning rate for the
matrices B. The result is an adapter in peft's format.
"""

# Imported only when a run starts, after the check for the extra.
# ruff: noqa: TID253

from __future__ import annotations

from typing import Any

import peft

from edgeft.train.methods.peft_method import PeftMethod


class LoRA(PeftMethod):
    """LoRA matrices on linear layers."""

    use_rslora = False
    use_dora = False
    plus_ratio: float | None = None
    """learning rate of B over that of A, where --lora-plus-ratio gives none"""

    def config(self) -> Any:
        options = self.options
        return peft.LoraConfig(
            r=options.lora_r,
            lora_alpha=options.lora_alpha,
            lora_dropout=options.lora_dropout,
            target_modules=self.targets,
            use_rslora=options.use_rslora or self.use_rslora,
            use_dora=options.use_dora or self.use_dora,
            trainable_token_indices=self.trained_rows,
            task_type="CAUSAL_LM",
        )

    def parameter_groups(self, model: Any, learning_rate: float) -> list[dict[str, Any]] | None:
        """LoRA+: the matrices B have their own learning rate."""
        ratio = self.options.lora_plus_ratio or self.plus_ratio
        if ratio is None:
            return None
        trained = [(name, weight) for name, weight in model.named_parameters()
                   if weight.requires_grad]  # fmt: skip
        matrices_b = [weight for name, weight in trained if ".lora_B." in name]
        others = [weight for name, weight in trained if ".lora_B." not in name]
        return [
            {"params": others, "lr": learning_rate},
            {"params": matrices_b, "lr": learning_rate * ratio},
        ]


class RSLoRA(LoRA):
    use_rslora = True


class DoRA(LoRA):
    use_dora = True


class LoRAPlus(LoRA):
    plus_ratio = 16
