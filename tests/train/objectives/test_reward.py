"""A reward model learns to rate better answers above worse ones, and rates as transformers and peft do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeft.data.encoding import encode_pairs
from edgeft.data.rows import load_examples
from edgeft.errors import AdapterError, InputError
from edgeft.records import Manifest
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.tokenizer.hf_files import encoder
from edgeft.train.options import TrainOptions
from edgeft.train.registry import METHODS, OBJECTIVES
from edgeft.weights.checkpoint import Checkpoint
from helpers.families import TINY, make_tiny
from helpers.preferences import make_pairs

SLOW = pytest.mark.slow
FAMILIES = ("mistral", "mixtral", "qwen2", "gemma2", "gemma3", "pythia", "olmo2", "phi3", "glm4")
"""beside Llama and Qwen3"""
Run = Callable[..., Any]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pairs(tmp_path_factory.mktemp("pairs") / "pairs.jsonl")


def train(base: Path, data: Path, output: Path, method: str = "lora", **more: Any) -> Manifest:
    from edgeft.train.run import train as run

    settings: dict[str, Any] = {
        "steps": 8, "batch_size": 4, "micro_batch_size": 4, "validation_size": 6, "warmup": 0,
        "learning_rate": 1e-2, "save_every": 0, "eval_every": 8, "compute_type": "fp32",
    }  # fmt: skip
    options = TrainOptions(base, data, output, **settings | more)
    return run(options, method=method, objective="reward")


@pytest.fixture(scope="module")
def reward(tiny_base: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("reward") / "reward"
    facts = train(tiny_base, pairs, output).facts
    assert facts["loss"][-1][1] < 0.5 * facts["loss"][0][1]
    assert facts["reward_accuracy"]["validation"][-1][1] == 1
    return output


@pytest.mark.slow
@pytest.mark.parametrize("method", OBJECTIVES["reward"].methods)
def test_every_method_of_it_learns(
    method: str, tiny_base: Path, pairs: Path, tmp_path: Path
) -> None:
    from edgeft.train.reward_model import RewardModel

    facts = train(tiny_base, pairs, tmp_path / "result", method).facts
    assert facts["loss"][-1][1] < facts["loss"][0][1]
    model = RewardModel.open(tmp_path / "result")
    examples = load_examples(pairs, layout="pairs")
    encoded, _ = encode_pairs(examples, model.chat, model.tokenize, 512)
    better, worse = (
        model.scores([row.ids for row in s]) for s in (encoded.chosen, encoded.rejected)
    )
    assert sum(a > b for a, b in zip(better, worse, strict=True)) >= 0.9 * len(better)


def test_peft_and_transformers_give_the_same_scores(
    reward: Path, tiny_base: Path, pairs: Path
) -> None:
    import peft
    import torch
    import transformers

    from edgeft.train.reward_model import RewardModel

    names = {name for name in Checkpoint(reward / "adapter_model.safetensors").tensors}
    assert "base_model.model.score.weight" in names
    base = transformers.AutoModelForSequenceClassification.from_pretrained(tiny_base, num_labels=1)
    live = peft.PeftModel.from_pretrained(base, reward).eval()
    chat, tokenize = ChatTemplate.from_folder(tiny_base), encoder(tiny_base)
    examples = load_examples(pairs, layout="pairs")[:5]
    ids = [row.ids for row in encode_pairs(examples, chat, tokenize, 512)[0].rejected]
    with torch.no_grad():
        expected = [float(live(input_ids=torch.tensor([one])).logits) for one in ids]
    assert RewardModel.open(reward).scores(ids) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("more", [{}, pytest.param({"keep_4bit": True}, marks=SLOW)])
def test_a_reward_model_of_a_training_in_bfloat16_rates(
    more: dict[str, Any], tiny_base: Path, pairs: Path, tmp_path: Path, edgeft: Run
) -> None:
    method = "qlora" if "keep_4bit" in more else "lora"
    train(tiny_base, pairs, tmp_path / "reward", method, compute_type="bf16", **more)
    ran = edgeft("score", "--model", tmp_path / "reward", "--data", pairs, "--json")
    assert ran.code == 0 and json.loads(ran.out)["accuracy"] > 0.9


def test_pairs_and_chats_are_scored_on_the_command_line(
    reward: Path, pairs: Path, tmp_path: Path, edgeft: Run
) -> None:
    ran = edgeft("score", "--model", reward, "--data", pairs, "--json")
    scored = json.loads(ran.out)
    assert ran.code == 0 and len(scored["rows"]) == 24 and scored["accuracy"] > 0.9
    assert scored["interval"][0] < scored["accuracy"] <= scored["interval"][1]
    chats = tmp_path / "chats.jsonl"
    chats.write_text('{"prompt": "lamp 0", "completion": "on"}\n')
    ran = edgeft("score", "--model", reward, "--data", chats)
    assert ran.code == 0
    line, score = ran.out.split()
    assert line == "1" and float(score) == pytest.approx(scored["rows"][0]["chosen"], abs=1e-3)


@pytest.mark.parametrize("method", ["lora", pytest.param("qlora", marks=SLOW)])
def test_the_merged_folder_rates_as_the_adapter_does(
    method: str, reward: Path, tiny_base: Path, pairs: Path, tmp_path: Path, edgeft: Run
) -> None:
    import transformers

    adapter = reward
    if method != "lora":
        train(tiny_base, pairs, adapter := tmp_path / "reward", method)
    ran = edgeft("merge-export", "--adapter", adapter, "--out", tmp_path / "out", "--json")
    (artifact,) = json.loads(ran.out)["artifacts"]
    folder = tmp_path / "out" / "hf-f32"
    assert artifact["format"] == "hf" and artifact["proof"]["tensors"] > 0
    assert artifact["parity"]["scores"]["difference"] < 1e-4
    assert "classification" in (folder / "README.md").read_text()
    names = set(Checkpoint(folder / "model.safetensors").tensors)
    assert "score.weight" in names and "lm_head.weight" not in names
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    assert loaded.config.architectures == ["LlamaForSequenceClassification"]
    assert loaded.config.num_labels == 1
    by_adapter, by_folder = (
        json.loads(edgeft("score", "--model", path, "--data", pairs, "--json").out)
        for path in (adapter, folder)
    )
    for before, after in zip(by_adapter["rows"], by_folder["rows"], strict=True):
        assert after["chosen"] == pytest.approx(before["chosen"], abs=1e-3)
        assert after["rejected"] == pytest.approx(before["rejected"], abs=1e-3)
    assert by_folder["accuracy"] == by_adapter["accuracy"]
    ran = edgeft("chat", folder)
    assert ran.code == 1 and "is a reward model: it rates texts and writes none" in ran.err


@pytest.mark.parametrize("family", ["qwen3", *(pytest.param(f, marks=SLOW) for f in FAMILIES)])
def test_reward_models_of_other_families_are_exported(
    family: str, pairs: Path, tmp_path: Path, edgeft: Run
) -> None:
    base, _, _ = make_tiny(tmp_path / "model", TINY[family])
    train(base, pairs, tmp_path / "reward", steps=2)
    ran = edgeft(
        "merge-export", "--adapter", tmp_path / "reward", "--out", tmp_path / "out", "--json"
    )
    (artifact,) = json.loads(ran.out)["artifacts"]
    assert artifact["parity"]["scores"]["difference"] < 1e-3


def test_a_reward_model_of_qwen3_rates_on_llama_cpp(
    pairs: Path, tmp_path: Path, edgeft: Run
) -> None:
    base, _, _ = make_tiny(tmp_path / "model", TINY["qwen3"])
    train(base, pairs, tmp_path / "reward")
    ran = edgeft("merge-export", "--adapter", tmp_path / "reward", "--out", tmp_path / "out",
                 "--format", "gguf", "--quant", "f32,q8_0", "--json")  # fmt: skip
    exact, rounded = json.loads(ran.out)["artifacts"]
    assert exact["parity"]["scores"]["difference"] < 1e-3
    assert rounded["parity"]["scores"]["correlation"] > 0.9
    by_adapter, by_file = (
        json.loads(edgeft("score", "--model", path, "--data", pairs, "--json").out)
        for path in (tmp_path / "reward", tmp_path / "out" / "f32.gguf")
    )
    for before, after in zip(by_adapter["rows"], by_file["rows"], strict=True):
        assert after["chosen"] == pytest.approx(before["chosen"], abs=1e-2)
        assert after["rejected"] == pytest.approx(before["rejected"], abs=1e-2)
    assert not list((tmp_path / "out").glob("*.Modelfile"))
    ran = edgeft("chat", tmp_path / "out" / "f32.gguf")
    assert ran.code == 1 and "is a reward model: it rates texts and writes none" in ran.err


def test_a_language_model_in_a_file_rates_nothing(
    tiny_base: Path, pairs: Path, tmp_path: Path, edgeft: Run
) -> None:
    edgeft(
        "merge-export",
        "--base",
        tiny_base,
        "--out",
        tmp_path,
        "--quant",
        "f16",
        "--no-compare-live",
    )
    ran = edgeft("score", "--model", tmp_path / "f16.gguf", "--data", pairs)
    assert ran.code == 1 and "has no head that rates texts" in ran.err


def test_a_changed_head_is_found_before_the_folder_has_its_name(
    reward: Path, tmp_path: Path, edgeft: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeft.train.reward_model import RewardModel

    scores = RewardModel.scores
    calls = iter([0.0, 0.1])
    monkeypatch.setattr(
        RewardModel,
        "scores",
        lambda *args: [s + shift for shift in [next(calls)] for s in scores(*args)],
    )
    ran = edgeft("merge-export", "--adapter", reward, "--out", tmp_path / "out")
    assert ran.code == 1 and "the scores are not those of the live model" in ran.err
    assert not (tmp_path / "out" / "hf-f32").exists()


def test_a_reward_model_is_no_language_model(
    reward: Path, tiny_base: Path, tmp_path: Path, edgeft: Run
) -> None:
    ran = edgeft("merge-export", "--adapter", reward, "--out", tmp_path / "out", "--format", "gguf")
    assert ran.code == 1 and "cannot be exported as gguf" in ran.err
    assert not (tmp_path / "out").exists()
    ran = edgeft("train", "--adapter", reward, "--base", tiny_base, "--data", "none.jsonl",
                 "--output", tmp_path / "more")  # fmt: skip
    assert ran.code == 1


def test_a_language_model_is_no_reward_model(tiny_base: Path, pairs: Path, edgeft: Run) -> None:
    ran = edgeft("score", "--model", tiny_base, "--data", pairs)
    assert ran.code == 1 and "LlamaForCausalLM'] has no head that rates texts" in ran.err


def test_another_adapter_is_no_reward_model(tiny_base: Path, pairs: Path, tmp_path: Path) -> None:
    from edgeft.train.reward_model import RewardModel

    (tmp_path / "adapter").mkdir()
    with pytest.raises(AdapterError, match="is no reward model of edgeft"):
        RewardModel.open(tmp_path / "adapter")


@pytest.mark.parametrize("method", sorted(set(METHODS) - set(OBJECTIVES["reward"].methods)))
def test_other_methods_are_refused_before_anything_is_loaded(method: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"--method {method} does not train --objective reward"):
        train(tmp_path / "none", tmp_path / "none", tmp_path / "result", method)


def test_a_reward_model_rates_what_a_model_writes(
    reward: Path, tiny_base: Path, pairs: Path, tmp_path: Path
) -> None:
    from edgeft.train.reward_model import RewardModel
    from edgeft.train.rewards import code_sha256, load_rewards
    from edgeft.train.run import train as run

    tokenize = encoder(tiny_base)
    (rate,) = load_rewards([str(reward)], tokenize)
    prompt = "<|im_start|>user\nlamp 0<|im_end|>\n<|im_start|>assistant\n"
    ids = [tokenize("on<|im_end|>"), tokenize("off<|im_end|>")]
    scores = rate(
        prompts=[prompt] * 2, completions=["on", "off"], completion_ids=ids, answer=["", ""]
    )
    model = RewardModel.open(reward)
    assert scores == pytest.approx(model.scores([tokenize(prompt) + one for one in ids]), abs=1e-5)
    assert scores[0] > scores[1] and len(code_sha256([str(reward)])) == 1
    options = TrainOptions(
        tiny_base, pairs, tmp_path / "better", steps=1, batch_size=4, micro_batch_size=4,
        generations=4, validation_size=0, save_every=0, max_new_tokens=6, reward=(str(reward),),
        compute_type="fp32",
    )  # fmt: skip
    facts = run(options, method="lora", objective="rloo").facts
    assert facts["reward_reward"]["train"] == facts["reward"]["train"]
