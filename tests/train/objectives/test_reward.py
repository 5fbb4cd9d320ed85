"""A reward model learns to rate better answers above worse ones, and rates as transformers and peft do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeft.data.encoding import encode, encode_pairs
from edgeft.data.rows import load_examples
from edgeft.errors import AdapterError, InputError
from edgeft.records import Manifest
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.tokenizer.hf_files import encoder
from edgeft.train.options import TrainOptions
from edgeft.train.registry import METHODS, OBJECTIVES
from edgeft.weights import gguf_reader
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
    assert ran.code == 1 and "rates texts and writes none" in ran.err


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
    header = gguf_reader.read(tmp_path / "out" / "f32.gguf").meta
    template = str(header["tokenizer.chat_template.rerank"])
    example = load_examples(pairs, layout="pairs")[0]
    text = template.replace("{query}", example.prompt[-1].content).replace(
        "{document}", example.answer
    )
    ids = encode(example, ChatTemplate.from_folder(base), encoder(base)).ids
    assert encoder(base)(text) == ids[:-1], "without the padding token, which ends a turn here"
    ran = edgeft("chat", tmp_path / "out" / "f32.gguf")
    assert ran.code == 1 and "rates texts and writes none" in ran.err


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
    reward: Path, tiny_base: Path, tiny_chats: Path, pairs: Path, tmp_path: Path, edgeft: Run
) -> None:
    export = ("merge-export", "--adapter", reward, "--out", tmp_path / "out")
    from edgeft.train.run import train as run

    other = tmp_path / "other"
    run(TrainOptions(tiny_base, tiny_chats, other, steps=1, save_every=0), method="lora")
    for more, problem in (
        (("--format", "gguf"), "cannot be exported as gguf"),
        (("--adapter", other), "not summed with other adapters"),
        (("--imatrix", "auto"), "runs a language model"),
    ):
        ran = edgeft(*export, *more)
        assert ran.code == 1 and problem in ran.err
    assert not (tmp_path / "out").exists()
    ran = edgeft("train", "--objective", "dpo", "--adapter", reward, "--base", tiny_base, "--data", pairs,
                 "--output", tmp_path / "more")  # fmt: skip
    assert ran.code == 1 and "classifier (task_type SEQ_CLS)" in ran.err
    ran = edgeft("search", "--adapter", reward, "--out", tmp_path / "out", "--items", pairs)
    assert ran.code == 1 and "a reward model answers no items" in ran.err


@pytest.mark.parametrize("tied", [True, False])
def test_the_folder_of_a_reward_model_is_no_base(
    tied: bool, pairs: Path, tmp_path: Path, edgeft: Run
) -> None:
    base, _, _ = make_tiny(tmp_path / "model", TINY["qwen3-yarn" if tied else "qwen3"])
    train(base, pairs, tmp_path / "reward", steps=2)
    edgeft("merge-export", "--adapter", tmp_path / "reward", "--out", tmp_path / "out", "--quant", "bf16",
           "--no-compare-live")  # fmt: skip
    folder = tmp_path / "out" / "hf-bf16"
    assert "classification" in (folder / "README.md").read_text()
    for command in (
        ("chat", folder), ("merge-export", "--base", folder, "--out", tmp_path / "more"),
        ("train", "--base", folder, "--data", pairs, "--objective", "dpo", "--output", tmp_path / "more"),
    ):  # fmt: skip
        ran = edgeft(*command)
        assert ran.code == 1 and "rates texts and writes none" in ran.err, command
    assert not (tmp_path / "more").exists()


def strangers(reward: Path, folder: Path, base: Path, **changes: Any) -> Path:
    """The adapter as another trainer saves it: no manifest, other entries or names."""
    shutil.copytree(reward, folder)
    (folder / "manifest.json").unlink()
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text()) | {"base_model_name_or_path": str(base)}
    file.write_text(json.dumps(config | changes))
    return folder


def test_the_adapter_of_another_trainer_is_merged_into_the_stored_weights(
    reward: Path, tiny_base: Path, tmp_path: Path, edgeft: Run
) -> None:
    adapter = strangers(reward, tmp_path / "trl", tiny_base)
    ran = edgeft("merge-export", "--adapter", adapter, "--out", tmp_path / "out", "--json")
    (artifact,) = json.loads(ran.out)["artifacts"]
    assert artifact["base_precision"]["chosen"] == "stored"
    assert artifact["parity"]["scores"]["difference"] < 1e-4


def test_a_head_that_is_left_over_makes_no_reward_model(
    reward: Path, tiny_base: Path, tmp_path: Path, edgeft: Run
) -> None:
    adapter = strangers(
        reward, tmp_path / "sft", tiny_base, task_type="CAUSAL_LM", modules_to_save=None
    )
    ran = edgeft("merge-export", "--adapter", adapter, "--out", tmp_path / "out", "--quant", "f16",
                 "--no-compare-live")  # fmt: skip
    assert ran.code == 0 and (tmp_path / "out" / "f16.gguf").is_file()
    assert "left out the tensors of score" in ran.err


def test_a_head_that_is_missing_is_reported(
    reward: Path, tiny_base: Path, tmp_path: Path, edgeft: Run
) -> None:
    from safetensors.numpy import load_file, save_file

    adapter = strangers(reward, tmp_path / "trl", tiny_base)
    file = adapter / "adapter_model.safetensors"
    save_file({n: v for n, v in load_file(file).items() if "score" not in n}, file)
    ran = edgeft("merge-export", "--adapter", adapter, "--out", tmp_path / "out")
    assert ran.code == 1 and "its head `score` is missing" in ran.err


def test_a_padding_token_beyond_the_vocabulary_is_replaced() -> None:
    from edgeft.models.text_model import reward_config

    config = {"architectures": ["LlamaForCausalLM"], "vocab_size": 32000, "eos_token_id": [2, 3]}
    assert reward_config(config | {"pad_token_id": 32000})["pad_token_id"] == 2
    assert reward_config(config | {"pad_token_id": 0})["pad_token_id"] == 0
    gemma = {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text"}
    assert reward_config(gemma)["architectures"] == ["Gemma3TextForSequenceClassification"]


def test_scores_of_another_model_are_found() -> None:
    from edgeft.errors import ProofError
    from edgeft.export.verify_reward import compare_scores

    expected = [0.01, 0.03, -0.02, 0.0]
    assert compare_scores([x * 1.001 for x in expected], expected, "bf16")["correlation"] > 0.99
    assert compare_scores([5.0, 5.01, 5.0], [5.0, 5.0, 5.001], "q8_0")["conversations"] == 3
    for scores, quant in (
        ([0.0] * 4, "bf16"),
        ([-x for x in expected], "q8_0"),
        ([0.0] * 4, "q8_0"),
    ):
        with pytest.raises(ProofError, match="not those of the live model"):
            compare_scores(scores, expected, quant)


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
