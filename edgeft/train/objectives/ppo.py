"""Prompts and rewards -> proximal policy optimization (arXiv 1707.06347), on trl's generation and rewards.

A value head on the policy's last hidden states expects the reward that is still to come. What an answer brings
beyond that is the advantage of its tokens (GAE, arXiv 1506.02438). As in 2203.02155 the reward comes at the last
token, and each token pays `beta` times its log-probability over the reference's. Of the details in 2403.17031:
advantages are whitened over all tokens of a step, the head begins at 0, and value loss is clipped, too.
"""

# Imported only when a run starts, after the check for the extra.
# ruff: noqa: TID253

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
import trl

from edgeft.errors import InputError
from edgeft.train.objectives.rollouts import CURVES, GRPO, EncodedHere
from edgeft.train.protocol import without_peft

HEAD_FILE = "value_head.pt"
"""the value head and its optimizer, in a checkpoint"""


class PPO(GRPO):
    """Write answers with larger rewards than the value head expects."""

    config = trl.RLOOConfig
    default_beta = 0.05
    fewest_generations = 1
    log_keys: Mapping[str, str] = {
        **{entry: key for entry, key in CURVES.items() if entry != "equal_rewards"},
        "policy_loss": "ppo/policy_loss",
        "value_loss": "ppo/value_loss",
        "clipped": "ppo/clipped",
    }

    def __init__(self, options: Any, *data: Any) -> None:
        if options.batch_size == 1:
            raise InputError(
                "--objective ppo compares the answers of a batch, which must hold two",
                "--batch-size 8",
            )
        super().__init__(options, *data)
        self.answers_per_row = options.generations * options.ppo_epochs

    def settings(self, arguments: dict[str, Any], **more: Any) -> Any:
        options = self.options
        # A checkpoint has no answers, so it must not lie between two steps on the same ones.
        every = options.ppo_epochs * math.ceil(arguments["save_steps"] / options.ppo_epochs)
        # trl's RLOO wants several answers to a prompt, to compare them; the value head does not.
        more |= {"num_iterations": options.ppo_epochs, "num_generations": options.batch_size}
        settings = super().settings(arguments | {"save_steps": every}, **more)
        settings.num_generations = options.generations
        return settings

    def make(self, **more: Any) -> Any:
        trainer = ProximalTrainer(**more)
        trainer.coefficients = self.options
        causal_lm = without_peft(more["model"])
        width = causal_lm.config.get_text_config().hidden_size
        trainer.value_head = ValueHead(width, causal_lm.device)
        trainer.add_callback(trainer.value_head)
        return trainer


class ValueHead(transformers.TrainerCallback):  # type: ignore[misc]
    """The reward that is still to come, of each hidden state: a linear layer that begins at 0.

    It trains by AdamW at the policy's learning rate, whatever --optimizer is, and is no part of the result.
    """

    def __init__(self, width: int, device: Any) -> None:
        self.linear = torch.nn.Linear(width, 1, device=device)
        torch.nn.init.zeros_(self.linear.weight)
        torch.nn.init.zeros_(self.linear.bias)
        self.optimizer = torch.optim.AdamW(self.linear.parameters(), weight_decay=0.0)

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """(answers, tokens) float32 of hidden states, (answers, tokens, width)."""
        return self.linear(states.float())[..., 0]

    def on_pre_optimizer_step(self, *_: Any, optimizer: Any, **__: Any) -> None:
        self.optimizer.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"]
        self.optimizer.step()
        self.optimizer.zero_grad()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        file = Path(args.output_dir) / f"checkpoint-{state.global_step}" / HEAD_FILE
        torch.save([self.linear.state_dict(), self.optimizer.state_dict()], file)

    def load(self, checkpoint: Path) -> None:
        linear, optimizer = torch.load(checkpoint / HEAD_FILE, weights_only=True)
        self.linear.load_state_dict(linear)
        self.optimizer.load_state_dict(optimizer)


class ProximalTrainer(EncodedHere, trl.RLOOTrainer):  # type: ignore[misc]
    """trl's RLOO with PPO's advantages and loss. All tensors are (answers, tokens) unless said otherwise."""

    value_head: ValueHead
    coefficients: Any
    """with gamma, gae_lambda, value_coef and cliprange: `TrainOptions`"""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.value_head.load(Path(resume_from_checkpoint))

    def _calculate_rewards(self, *args: Any) -> torch.Tensor:
        """(answers, rewards), NaN where a reward does not rate an answer; kept for the advantages."""
        self._rewards: torch.Tensor = super()._calculate_rewards(*args)
        return self._rewards

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Any, attention_mask: Any, logits_to_keep: int, *args: Any, **more: Any
    ) -> Any:  # fmt: skip
        """As trl's; the log-probabilities and values of each call are kept in `_passes`."""
        with self._hidden_states() as states:
            result = super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, *args, **more
            )
        before = torch.cat(states)[:, -logits_to_keep - 1 : -1]
        self._passes.append((result[0], self.value_head(before)))
        return result

    @contextlib.contextmanager
    def _hidden_states(self) -> Iterator[list[torch.Tensor]]:
        """The last hidden states of the forward passes meanwhile, each (answers, prompt and answer, width)."""
        states: list[torch.Tensor] = []
        backbone = without_peft(self.accelerator.unwrap_model(self.model)).base_model
        hook = backbone.register_forward_hook(lambda *of: states.append(of[2].last_hidden_state))
        try:
            yield states
        finally:
            hook.remove()

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, torch.Tensor]:
        """trl's batch, with values, returns and the advantages of tokens."""
        self._passes: list[tuple[torch.Tensor, torch.Tensor]] = []
        batch: dict[str, torch.Tensor] = super()._generate_and_score_completions(inputs)
        (logps, values), *reference = self._passes
        rewards = self._rewards.nansum(dim=1)
        rated = ~self._rewards.isnan().all(dim=1, keepdim=True)
        mask = batch["completion_mask"] * rated
        penalty = self.beta * (logps - reference[0][0]) if reference else torch.zeros_like(logps)
        each = token_rewards(rewards, penalty, batch["completion_mask"])
        advantages, returns = generalized_advantages(
            each, values, mask, self.coefficients.gamma, self.coefficients.gae_lambda
        )
        parts = self.args.steps_per_generation if self.model.training else 1
        return batch | {
            "old_token_logps": logps,
            "old_values": values,
            "returns": returns,
            "advantages": whitened(advantages, mask),
            "learned": mask,
            # Of the whole step, so that micro-batches change nothing.
            "tokens": (mask.sum() / parts).expand(len(mask)),
        }

    def _compute_loss(self, model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        answers, mask = inputs["completion_ids"], inputs["learned"]
        self._passes = []
        _, _, balance = self._get_per_token_logps_and_entropies(
            model,
            torch.cat([inputs["prompt_ids"], answers], dim=1),
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
            answers.size(1),
            compute_aux_loss=self.aux_loss_enabled,
        )
        ((logps, values),) = self._passes
        policy, value, clipped = (
            (of * mask).sum() / inputs["tokens"][0].clamp(min=1) for of in clipped_losses(
                logps - inputs["old_token_logps"], inputs["advantages"], values,
                inputs["old_values"], inputs["returns"], self.coefficients.cliprange,
            )
        )  # fmt: skip
        figures = self._metrics["train" if self.model.training else "eval"]
        for name, figure in (("policy_loss", policy), ("value_loss", value), ("clipped", clipped)):
            figures[f"ppo/{name}"].append(figure.item())
        loss = policy + self.coefficients.value_coef * value
        return loss + self.router_aux_loss_coef * balance if self.aux_loss_enabled else loss


def token_rewards(rewards: torch.Tensor, penalty: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Minus the penalty at every token, plus the answer's reward, (answers,), at its last one."""
    last = mask.sum(dim=1, keepdim=True).long() - 1
    each = -penalty * mask
    return each.scatter_add(1, last.clamp(min=0), rewards[:, None] * (last >= 0))


def generalized_advantages(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, gae_lambda: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(advantages, returns); equations 11 and 12 of arXiv 1506.02438, an answer ends with its mask."""
    values = values * mask
    advantages = torch.zeros_like(values)
    following = after = torch.zeros_like(values[:, 0])
    for token in reversed(range(values.size(1))):
        error = rewards[:, token] + gamma * after - values[:, token]
        following = (error + gamma * gae_lambda * following) * mask[:, token]
        advantages[:, token], after = following, values[:, token]
    return advantages, advantages + values


def whitened(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The masked values less their mean, over their standard deviation; 0 elsewhere."""
    count = mask.sum().clamp(min=1)
    mean = (values * mask).sum() / count
    variance = ((values - mean) ** 2 * mask).sum() / count
    return (values - mean) * torch.rsqrt(variance + 1e-8) * mask


def clipped_losses(
    log_ratio: torch.Tensor,
    advantages: torch.Tensor,
    values: torch.Tensor,
    old_values: torch.Tensor,
    returns: torch.Tensor,
    cliprange: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of each token: loss of the policy (equation 7 of arXiv 1707.06347), of the value, and whether the
    policy's is clipped."""  # fmt: skip
    ratio = log_ratio.exp()
    free = -advantages * ratio
    bound = -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    near = old_values + (values - old_values).clamp(-cliprange, cliprange)
    value = torch.maximum((values - returns) ** 2, (near - returns) ** 2) / 2
    return torch.maximum(free, bound), value, (bound > free).float()
