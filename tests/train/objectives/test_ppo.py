"""PPO: a step is the papers' formulas, the reward rises, and a resumed run is the same run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgeft.errors import InputError
from edgeft.records import Manifest
from edgeft.train.options import TrainOptions
from edgeft.train.registry import METHODS
from helpers.interrupting import interrupted_at

Rows = npt.NDArray[np.float64]
SHARE = """
def share(completions, completion_ids, answer, **row):
    return [sum(token < 128 for token in ids) / max(1, len(ids)) for ids in completion_ids]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prompts")
    rows = [{"prompt": f"say {i}" + "!" * (i % 3)} for i in range(16)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "reward.py").write_text(SHARE)
    return folder


def train(base: Path, folder: Path, output: Path, resume: bool = False, **more: Any) -> Manifest:
    from edgeft.train.run import train as run

    settings: dict[str, Any] = {
        "steps": 8, "batch_size": 8, "micro_batch_size": 8, "generations": 1, "validation_size": 0,
        "warmup": 0, "learning_rate": 2e-2, "save_every": 0, "compute_type": "fp32",
        "max_new_tokens": 8, "reward": (f"{folder}/reward.py:share",), "ppo_epochs": 2,
    }  # fmt: skip
    method = more.pop("method", "lora")
    options = TrainOptions(base, folder / "prompts.jsonl", output, **settings | more)
    return run(options, resume, method=method, objective="ppo")


def advantages_by_hand(rewards: Rows, values: Rows, gamma: float, gae_lambda: float) -> Rows:
    """Equation 16 of arXiv 1506.02438 of one answer: the discounted sum of the errors that follow."""
    after = np.append(values[1:], 0.0)
    errors = rewards + gamma * after - values
    return np.array([
        sum((gamma * gae_lambda) ** (k - t) * errors[k] for k in range(t, len(errors)))
        for t in range(len(errors))
    ])  # fmt: skip


def test_a_step_is_the_papers_formulas(
    tiny_base: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps on the same answers: in the second one ratios and values differ from the first's."""
    import torch

    from edgeft.train.objectives.ppo import ProximalTrainer

    seen: list[dict[str, Any]] = []
    compute_loss = ProximalTrainer._compute_loss

    def observed(self: Any, model: Any, inputs: dict[str, Any]) -> Any:
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        count = inputs["completion_ids"].size(1)
        causal_lm = model.get_base_model()
        with torch.no_grad():
            output = causal_lm(ids, attention_mask=mask, output_hidden_states=True)
            logps = output.logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
            head = self.value_head.linear
            values = output.hidden_states[-1][:, :-1] @ head.weight[0] + head.bias
        loss = compute_loss(self, model, inputs)
        kept = {"logps": logps[:, -count:], "values": values[:, -count:], "loss": loss.detach(),
                "mask": inputs["completion_mask"], "rewards": self._rewards.sum(1),
                "old": inputs["old_token_logps"]}  # fmt: skip
        seen.append({name: np.array(tensor, np.float64) for name, tensor in kept.items()})
        return loss

    # The answers keep their order, so that rewards and rows go together.
    monkeypatch.setattr("trl.trainer.rloo_trainer.shuffle_sequence_dict", lambda batch: batch)
    monkeypatch.setattr(ProximalTrainer, "_compute_loss", observed)
    train(tiny_base, folder, tmp_path / "result", steps=4, beta=0.3, gamma=0.9, gae_lambda=0.8,
          value_coef=0.7, cliprange=0.05)  # fmt: skip
    reference = seen[0]["logps"]  # LoRA changes nothing before the first step
    assert np.allclose(reference * seen[0]["mask"], seen[0]["old"], atol=1e-5)
    assert seen[2]["old"].shape != seen[1]["old"].shape or not np.allclose(
        seen[2]["old"], seen[1]["old"]
    )
    for step in (0, 1):
        now, old = seen[step], seen[0]
        lengths = old["mask"].sum(1).astype(int)
        advantages, returns = [], []
        for row, length in enumerate(lengths):
            penalty = 0.3 * (old["logps"][row] - reference[row])[:length]
            rewards = -penalty
            rewards[-1] += old["rewards"][row]
            values = old["values"][row][:length]
            advantages.append(advantages_by_hand(rewards, values, 0.9, 0.8))
            returns.append(advantages[-1] + values)
        all_of = np.concatenate(advantages)
        losses = []
        for row, length in enumerate(lengths):
            whitened = (advantages[row] - all_of.mean()) / np.sqrt(all_of.var() + 1e-8)
            ratio = np.exp(now["logps"][row] - old["logps"][row])[:length]
            value, before = now["values"][row][:length], old["values"][row][:length]
            for t in range(length):
                policy = min(ratio[t] * whitened[t], min(max(ratio[t], 0.95), 1.05) * whitened[t])
                near = before[t] + min(max(value[t] - before[t], -0.05), 0.05)
                error = max((value[t] - returns[row][t]) ** 2, (near - returns[row][t]) ** 2)
                losses.append(-policy + 0.7 * error / 2)
        assert now["loss"] == pytest.approx(np.mean(losses), abs=1e-5)
    assert np.abs(seen[1]["values"]).max() > 1e-3 and np.abs(seen[0]["values"]).max() == 0


def test_the_penalty_is_the_divergence_of_each_token() -> None:
    import torch

    from edgeft.train.objectives.ppo import token_rewards

    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
    penalty = torch.tensor([[0.1, 0.2, 0.3, 9.0], [0.4, 9.0, 9.0, 9.0], [9.0] * 4])
    rewards = token_rewards(torch.tensor([2.0, 1.0, 5.0]), penalty, mask)
    expected = [-0.1, -0.2, 1.7, 0.0, 0.6, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert rewards.flatten().tolist() == pytest.approx(expected, abs=1e-6)


def test_micro_batches_change_nothing(tiny_base: Path, folder: Path, tmp_path: Path) -> None:
    whole, halves = (
        train(tiny_base, folder, tmp_path / str(size), steps=2, micro_batch_size=size).facts
        for size in (8, 4)
    )
    for entry in ("reward", "policy_loss", "value_loss", "clipped"):
        curves = [[value for _, value in facts[entry]["train"]] for facts in (whole, halves)]
        assert curves[0] == pytest.approx(curves[1], abs=2e-4)


def test_the_reward_rises(tiny_base: Path, folder: Path, tmp_path: Path) -> None:
    more = {"steps": 16, "batch_size": 16, "ppo_epochs": 4, "generations": 2}
    whole = train(
        tiny_base, folder, tmp_path / "result", micro_batch_size=16, validation_size=2, **more
    )
    rewards = [reward for _, reward in whole.facts["reward"]["train"]]
    assert len(rewards) == 4 and max(rewards[2:]) > rewards[0] + 0.05
    for entry in ("kl", "value_loss", "policy_loss", "clipped", "cut_off"):
        assert whole.facts[entry]["train"]
    assert "equal_rewards" not in whole.facts
    assert whole.kind == "adapter" and set(whole.files) == {
        "adapter_config.json", "adapter_model.safetensors",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_from_rewards(
    method: str, tiny_base: Path, folder: Path, tmp_path: Path
) -> None:
    rate = 10 * METHODS[method].learning_rate
    facts = train(tiny_base, folder, tmp_path / "result", method=method, learning_rate=rate,
                  steps=24, batch_size=16, micro_batch_size=16, ppo_epochs=4).facts  # fmt: skip
    rewards = [reward for _, reward in facts["reward"]["train"]]
    assert max(rewards[3:]) > rewards[0]


@pytest.mark.slow
@pytest.mark.parametrize("more", [
    {"optimizer": "lomo", "max_grad_norm": 0.0},
    {"optimizer": "schedule-free", "scheduler": "constant"}, {"micro_batch_size": 4},
])  # fmt: skip
def test_the_value_head_trains_beside_every_optimizer(
    more: dict[str, Any], tiny_base: Path, folder: Path, tmp_path: Path
) -> None:
    # At the rate of the other tests a value changes by 1 in a step, more than the rewards differ.
    facts = train(
        tiny_base, folder, tmp_path / "result", steps=12, learning_rate=2e-3, **more
    ).facts
    losses = [loss for _, loss in facts["value_loss"]["train"]]
    assert min(losses[6:]) < losses[0]


def test_a_resumed_run_has_the_same_result(tiny_base: Path, folder: Path, tmp_path: Path) -> None:
    from edgeft.train.objectives.ppo import HEAD_FILE

    # Four steps are an epoch. A checkpoint at 5 would lie between two steps on the same answers.
    output, more = tmp_path / "result", {"steps": 8, "save_every": 5}
    whole = train(tiny_base, folder, output, **more)
    shutil.rmtree(output)

    with interrupted_at(7):
        train(tiny_base, folder, output, **more)
    work = tmp_path / "result.work"
    assert [path.name for path in work.glob("checkpoint-*")] == ["checkpoint-6"]
    assert (work / "checkpoint-6" / HEAD_FILE).is_file()
    again = train(tiny_base, folder, output, resume=True, **more)
    assert again.facts["value_loss"] == whole.facts["value_loss"]
    assert again.files == whole.files


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"batch_size": 1, "micro_batch_size": 1}, "compares the answers of a batch"),
        ({"gae_lambda": 1.5}, "--gae-lambda 1.5 is not from 0 to 1"),
        ({"cliprange": 0.0}, "--cliprange 0.0 is not above 0"),
        ({"loss_type": "grpo"}, "--loss-type is not for --objective ppo"),
        (
            {"early_stopping": 2, "validation_size": 2},
            "--early-stopping is not for --objective ppo",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused(
    more: dict[str, Any], problem: str, tiny_base: Path, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=problem):
        train(tiny_base, folder, tmp_path / "result", **more)
