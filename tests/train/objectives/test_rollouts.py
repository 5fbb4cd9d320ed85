"""GRPO and RLOO: answers with larger rewards become more likely, and the run is repeatable."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from edgeft.errors import InputError, StaleError
from edgeft.records import Manifest
from edgeft.train.options import TrainOptions
from edgeft.train.registry import METHODS

SLOW = pytest.mark.slow
SHARE = """
def share(completions, completion_ids, answer, **row):
    assert all(text.startswith("lamp") for text in answer)
    return [sum(token < 128 for token in ids) / max(1, len(ids)) for ids in completion_ids]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts, some with an answer, and a reward."""
    folder = tmp_path_factory.mktemp("prompts")
    rows = [{"prompt": f"say {i}", "answer": f"lamp {i}"} for i in range(16)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "reward.py").write_text(SHARE)
    return folder


def train(
    objective: str, base: Path, folder: Path, output: Path, resume: bool = False, **more: Any
) -> Manifest:
    from edgeft.train.run import train as run

    settings: dict[str, Any] = {
        "steps": 6, "batch_size": 16, "micro_batch_size": 8, "generations": 8, "validation_size": 2,
        "warmup": 0, "learning_rate": 2e-2, "save_every": 0, "eval_every": 6, "compute_type": "fp32",
        "max_new_tokens": 12, "reward": (f"{folder}/reward.py:share",),
    }  # fmt: skip
    method = more.pop("method", "lora")
    options = TrainOptions(base, folder / "prompts.jsonl", output, **settings | more)
    return run(options, resume, method=method, objective=objective)


@pytest.mark.parametrize("objective", ["grpo", "rloo"])
def test_the_reward_rises(objective: str, tiny_base: Path, folder: Path, tmp_path: Path) -> None:
    facts = train(objective, tiny_base, folder, tmp_path / "result").facts
    rewards = [reward for _, reward in facts["reward"]["train"]]
    assert max(rewards[3:]) > rewards[0] + 0.05
    assert facts["reward_share"]["train"] == facts["reward"]["train"]
    assert facts["kl"]["train"][0][1] == pytest.approx(0, abs=1e-4), "its own reference"
    assert facts["kl"]["train"][-1][1] > 1e-4
    assert facts["tokens"] > 0 and len(facts["reward"]["validation"]) == 1
    assert not list((tmp_path / "result").glob("**/ref"))


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_from_rewards(
    method: str, tiny_base: Path, folder: Path, tmp_path: Path
) -> None:
    rate = 10 * METHODS[method].learning_rate
    facts = train(
        "grpo", tiny_base, folder, tmp_path / "result", method=method, learning_rate=rate, steps=8
    ).facts
    rewards = [reward for _, reward in facts["reward"]["train"]]
    assert max(rewards[3:]) > rewards[0]


def test_a_resumed_run_has_the_same_rewards_and_result(
    tiny_base: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeft.train import loop

    own = tmp_path / "own"
    shutil.copytree(folder, own)
    output, more = tmp_path / "result", {"steps": 4, "save_every": 2, "validation_size": 0}
    whole = train("grpo", tiny_base, own, output, **more)
    shutil.rmtree(output)

    def stop(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "loss_curve", stop)
        with pytest.raises(KeyboardInterrupt):
            train("grpo", tiny_base, own, output, **more)
    shutil.rmtree(tmp_path / "result.work" / "checkpoint-4")
    code = (own / "reward.py").read_text()
    (own / "reward.py").write_text(code + "\n# changed\n")
    with pytest.raises(StaleError, match="cannot resume: reward_code changed"):
        train("grpo", tiny_base, own, output, resume=True, **more)
    (own / "reward.py").write_text(code)
    again = train("grpo", tiny_base, own, output, resume=True, **more)
    assert again.facts["reward"] == whole.facts["reward"]
    assert again.files == whole.files


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"reward": ()}, "there is no reward"),
        ({"generations": 6}, "--batch-size 16 counts answers.*multiple of --generations 6.*18"),
        ({"generations": 1}, "--generations is at least 2"),
        ({"keep_best": True, "save_every": 1}, "--keep-best is not for --objective grpo"),
        ({"cutoff_length": 8}, "every example is longer"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    more: dict[str, Any], problem: str, tiny_base: Path, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=problem):
        train("grpo", tiny_base, folder, tmp_path / "result", **more)
