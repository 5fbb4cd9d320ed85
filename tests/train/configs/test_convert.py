"""YAML of LLaMA-Factory and Axolotl -> TOML: values, defaults, and an account of every key."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from edgeft.cli import group
from edgeft.cli._config import option_checks
from edgeft.errors import DataError, InputError
from edgeft.train.configs import Conversion, convert, write_data

pytestmark = pytest.mark.unit

LLAMA_FACTORY = """
model_name_or_path: Qwen/Qwen3-0.6B
stage: sft
do_train: true
finetuning_type: lora
quantization_bit: 4
dataset: chats
output_dir: saves/qwen
learning_rate: 1.0e-4
"""
AXOLOTL = """
base_model: Qwen/Qwen3-0.6B
adapter: qlora
load_in_4bit: true
datasets:
  - path: chats.jsonl
    type: chat_template
learning_rate: 2e-4
lora_r: 8
lora_alpha: 16
lora_target_linear: true
"""


OPTIONS = (
    "base", "data", "output", "validation-data", "validation-size", "epochs", "steps", "batch-size",
    "micro-batch-size", "learning-rate", "warmup-ratio", "cutoff-length", "lora-r", "lora-alpha",
    "lora-dropout", "target-modules", "train-on-inputs", "group-by-length", "compute-type", "seed",
    "eval-every", "save-every",
)  # fmt: skip
"""options of the tests' command: it does not grow with edgeft"""


def train_qlora() -> dict[str, Callable[[Any], str]]:
    command = group.get_command(click.Context(group), "train-qlora")
    assert command is not None
    checks = option_checks(command)
    return {name: checks[name] for name in OPTIONS}


def converted(folder: Path, text: str, more: str = "", **checks: str) -> Conversion:
    """The conversion of a file in `folder`; `checks`: more options of the command, and their reasons."""
    file = folder / "run.yaml"
    file.write_text(text + more)
    added = {name.replace("_", "-"): (lambda _, why=why: why) for name, why in checks.items()}
    return convert(file, folder / "run.toml", "train-qlora", train_qlora() | added)


def account(conversion: Conversion) -> set[str]:
    return {*conversion.carried, *conversion.not_carried, *conversion.not_needed}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with LLaMA-Factory's description of two datasets."""
    (tmp_path / "data").mkdir()
    info = {
        "chats": {"file_name": "chats.jsonl"},
        "more": {"file_name": "more.json", "formatting": "sharegpt"},
        "remote": {"hf_hub_url": "owner/name"},
        "lost": {"file_name": "lost.json"},
    }
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(info))
    rows = [{"instruction": f"q{i}", "output": f"a{i}"} for i in range(5)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "data" / "chats.jsonl").write_text(text)
    (tmp_path / "data" / "more.json").write_text(json.dumps(rows[:3]))
    (tmp_path / "chats.jsonl").write_text(text)
    return tmp_path


def test_llama_factory_defaults_become_explicit(data: Path) -> None:
    conversion = converted(data, LLAMA_FACTORY)
    assert conversion.options == {
        "base": "Qwen/Qwen3-0.6B", "data": "data/chats.jsonl", "output": "saves/qwen",
        "validation-size": 0.0, "epochs": 3.0, "batch-size": 8, "micro-batch-size": 8,
        "learning-rate": 1e-4, "warmup-ratio": 0.0, "cutoff-length": 2048, "train-on-inputs": False,
        "group-by-length": False, "lora-r": 8, "lora-alpha": 16, "lora-dropout": 0.0, "seed": 42,
    }  # fmt: skip
    assert tomllib.loads(conversion.text) == {"train-qlora": conversion.options}
    assert "# cutoff_len (default)" in conversion.text
    assert conversion.not_carried == {
        "lr_scheduler_type (default)": "edgeft train-qlora has no --scheduler for 'linear': it is always "
        "'cosine'"
    }
    assert list(conversion.notes) == ["cutoff_len (default)"]


def test_axolotl_defaults_become_explicit(data: Path) -> None:
    conversion = converted(data, AXOLOTL)
    assert conversion.options == {
        "base": "Qwen/Qwen3-0.6B", "data": "chats.jsonl", "output": "./model-out",
        "validation-size": 0.0, "epochs": 1.0, "batch-size": 1, "micro-batch-size": 1,
        "learning-rate": 2e-4, "warmup-ratio": 0.03, "cutoff-length": 512, "train-on-inputs": False,
        "group-by-length": False, "lora-r": 8, "lora-alpha": 16, "lora-dropout": 0.0, "seed": 42,
    }  # fmt: skip
    assert conversion.not_carried == {}
    assert account(conversion) == {
        "base_model", "adapter", "load_in_4bit", "datasets", "learning_rate", "lora_r", "lora_alpha",
        "lora_target_linear",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("more", "options"),
    [
        ("per_device_train_batch_size: 2\ngradient_accumulation_steps: 8",
         {"batch-size": 16, "micro-batch-size": 2}),
        ("lora_rank: 32", {"lora-r": 32, "lora-alpha": 64}),
        ("lora_rank: 32\nlora_alpha: 8", {"lora-r": 32, "lora-alpha": 8}),
        ("lora_target: q_proj, v_proj", {"target-modules": ["q_proj", "v_proj"]}),
        ("max_steps: 40\nwarmup_steps: 10", {"steps": 40, "warmup-ratio": 0.25}),
        ("warmup_ratio: 0.1", {"warmup-ratio": 0.1}),
        ("val_size: 0.1\neval_strategy: steps\neval_steps: 500",
         {"validation-size": 0.1, "eval-every": 500}),
        ("max_steps: 40\neval_strategy: steps\neval_steps: 0.25", {"eval-every": 10}),
        ("save_strategy: 'no'", {"save-every": 0}),
        ("train_on_prompt: true\ngroup_by_length: true",
         {"train-on-inputs": True, "group-by-length": True}),
        ("pure_bf16: true", {"compute-type": "bf16"}),
        ("eval_dataset: more", {"validation-data": "data/more.json"}),
        ("learning_rate: 2e-4".replace("learning_rate", "lora_dropout"), {"lora-dropout": 2e-4}),
    ],
)  # fmt: skip
def test_values_of_llama_factory(data: Path, more: str, options: dict[str, Any]) -> None:
    conversion = converted(data, LLAMA_FACTORY, more)
    assert {key: conversion.options.get(key) for key in options} == options
    assert not [key for key in conversion.not_carried if "(default)" not in key]


@pytest.mark.parametrize(
    ("more", "options"),
    [
        ("micro_batch_size: 2\ngradient_accumulation_steps: 3",
         {"batch-size": 6, "micro-batch-size": 2}),
        ("micro_batch_size: 2\nbatch_size: 9", {"batch-size": 8, "micro-batch-size": 2}),
        ("max_steps: 20\nwarmup_steps: 10", {"warmup-ratio": 0.5}),
        ("sequence_len: 4096\nexcess_length_strategy: drop", {"cutoff-length": 4096}),
        ("lora_dropout: 0.05", {"lora-dropout": 0.05}),
        ("test_datasets:\n  - path: data/more.json\n", {"validation-data": "data/more.json"}),
        ("val_set_size: 0.05\neval_steps: 20\nsave_steps: 40", {"eval-every": 20, "save-every": 40}),
    ],
)  # fmt: skip
def test_values_of_axolotl(data: Path, more: str, options: dict[str, Any]) -> None:
    conversion = converted(data, AXOLOTL, more)
    assert {key: conversion.options.get(key) for key in options} == options
    assert not [key for key in conversion.not_carried if "(default)" not in key]


def test_a_regular_expression_of_axolotl_stays_one(data: Path) -> None:
    text = AXOLOTL.replace("lora_target_linear: true", "lora_target_modules: '.*[qv]_proj'")
    assert converted(data, text).options["target-modules"] == [".*[qv]_proj"]
    with_comma = text.replace(".*[qv]_proj", ".{1,9}_proj")
    assert "lora_target_modules" in converted(data, with_comma).not_carried


def test_the_same_training_options_come_out_as_the_tool_has_them(data: Path) -> None:
    """The TOML fills `TrainOptions` as if each option had been typed."""
    from edgeft.cli import group as edgeft

    conversion = converted(data, LLAMA_FACTORY, "max_steps: 3\nlora_target: q_proj\n")
    (data / "run.toml").write_text(conversion.text)
    command = edgeft.get_command(click.Context(edgeft), "train-qlora")
    assert command is not None
    context = command.make_context(
        "train-qlora",
        ["--config", str(data / "run.toml")],
        parent=click.Context(edgeft, info_name="edgeft"),
    )
    assert context.params["data"] == data / "data" / "chats.jsonl"
    assert context.params["learning_rate"] == 1e-4
    assert context.params["target_modules"] == ("q_proj",)
    assert context.params["lora_alpha"] == 16


@pytest.mark.parametrize(
    ("text", "more", "key", "says"),
    [
        (LLAMA_FACTORY, "template: qwen3", "template", "chat template of the base"),
        (LLAMA_FACTORY, "brand_new_key: 7", "brand_new_key", "no such option"),
        (LLAMA_FACTORY, "cutoff_len: many", "cutoff_len", "'many' is no number"),
        (LLAMA_FACTORY, "cutoff_len: 4", "cutoff_len", "--cutoff-length of edgeft train-qlora: 4 is not"),
        (LLAMA_FACTORY, "warmup_steps: 20", "warmup_steps", "number of steps is not in the file"),
        (LLAMA_FACTORY, "lora_target: '.*proj$'", "lora_target", "regular expression"),
        (LLAMA_FACTORY, "use_dora: true", "use_dora", "no --use-dora"),
        (LLAMA_FACTORY, "optim: adafactor", "optim", "no --optimizer for 'adafactor'"),
        (LLAMA_FACTORY, "optim: grokadamw", "optim", "edgeft has no optimizer 'grokadamw'"),
        (LLAMA_FACTORY, "report_to: wandb", "report_to", "no --report-to for 'wandb': it is always off"),
        (LLAMA_FACTORY, "packing: true", "packing", "see each other"),
        (LLAMA_FACTORY, "deepspeed: z3.json", "deepspeed", "one process"),
        (LLAMA_FACTORY, "ignore_pad_token_for_loss: false", "ignore_pad_token_for_loss", "no such"),
        (AXOLOTL, "chat_template: llama3", "chat_template", "chat template of the base"),
        (AXOLOTL, "excess_length_strategy: truncate", "excess_length_strategy", "no 'truncate'"),
        (AXOLOTL, "sample_packing: true", "sample_packing", "no --packing for True"),
        (AXOLOTL, "plugins: [my.Plugin]", "plugins", "'my.Plugin'"),
        (AXOLOTL, "gradient_checkpointing: offload", "gradient_checkpointing",
         "activation_offloading: true beside it"),
        (AXOLOTL, "shuffle_merged_datasets: false", "shuffle_merged_datasets", "no such option"),
        (AXOLOTL.replace("type: chat_template", "split: train[:10]"), "", "datasets", "reads all rows"),
        (AXOLOTL.replace("chat_template", "completion"), "", "datasets", "--objective pretrain"),
        (AXOLOTL.replace("chats.jsonl", "a/b/c.jsonl"), "", "datasets", "not on this machine"),
        (AXOLOTL.replace("chats.jsonl", "owner/name\n    split: train[:9]"), "", "datasets", "whole split"),
        (AXOLOTL.replace("chats.jsonl", "owner/name\n    name: en/us"), "", "datasets", "whole split"),
        (AXOLOTL.replace("chats.jsonl", "chats.jsonl\n    name: en"), "", "datasets", "name 'en' of"),
        (AXOLOTL.replace("lora_target_linear: true", ""), "", "lora_target_modules (default)",
         "leaves the choice to peft"),
    ],
)  # fmt: skip
def test_what_is_not_carried_is_named_with_the_reason(
    data: Path, text: str, more: str, key: str, says: str
) -> None:
    conversion = converted(data, text, more)
    assert says in conversion.not_carried[key]
    assert f"#   {key}: " in conversion.text
    assert tomllib.loads(conversion.text)["train-qlora"] == conversion.options


def test_every_key_of_a_file_is_accounted_for(data: Path) -> None:
    more = "report_to: none\na: 1\nb: false\nc:\nd: {e: 1}\nf: [1]\nbf16: true\noptim: adamw_torch\nwarmup_steps: 0\n"
    conversion = converted(data, LLAMA_FACTORY, more)
    keys = {"report_to", "a", "b", "c", "d", "f", "bf16", "optim", "warmup_steps", "model_name_or_path", "stage",
            "do_train", "finetuning_type", "quantization_bit", "dataset", "output_dir",
            "learning_rate", "lr_scheduler_type (default)"}  # fmt: skip
    assert account(conversion) == keys
    assert not set(conversion.carried) & set(conversion.not_carried)
    assert {"b", "c", "bf16", "optim", "report_to"} <= set(conversion.not_needed)
    assert {"a", "d", "f"} <= set(conversion.not_carried)


def test_options_join_when_the_command_has_them(data: Path) -> None:
    more = "optim: paged_adamw_8bit\nuse_dora: true\nneat_packing: true\nweight_decay: 0.1\n"
    text = LLAMA_FACTORY.replace("quantization_bit: 4", "")
    before = converted(data, text, more)
    assert "method" not in before.options and "'lora'" in before.not_carried["finetuning_type"]
    after = converted(data, text, more, method="", optimizer="", use_dora="", packing="",
                      weight_decay="", scheduler="")  # fmt: skip
    added = {key: after.options[key] for key in after.options if key not in before.options}
    assert added == {
        "method": "lora", "optimizer": "paged-adamw-8bit", "use-dora": True, "packing": True,
        "weight-decay": 0.1, "scheduler": "linear",
    }  # fmt: skip
    assert after.not_carried == {}
    with pytest.raises(InputError, match="edgeft has no method 'oft'"):
        converted(data, text.replace("finetuning_type: lora", "finetuning_type: oft"), method="")
    with pytest.raises(InputError, match="edgeft has no objective 'odpo'"):
        converted(data, text.replace("stage: sft", "stage: odpo"), objective="")
    moved = converted(data, AXOLOTL, "activation_offloading: disk", offload_activations="")
    assert moved.options["offload-activations"] is True
    refused = converted(data, text, more, optimizer="no such optimizer")
    assert refused.not_carried["optim"] == "no such optimizer"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (LLAMA_FACTORY.replace("finetuning_type: lora", "finetuning_type: full"), "'full'"),
        (LLAMA_FACTORY.replace("stage: sft", "stage: dpo"), "'dpo'"),
        (LLAMA_FACTORY.replace("do_train: true", "export_dir: out"), "use edgeft merge-export"),
        (LLAMA_FACTORY.replace("do_train: true", "infer_backend: huggingface"), "edgeft chat"),
        (LLAMA_FACTORY.replace("do_train: true", ""), "do_train is not true"),
        (AXOLOTL.replace("adapter: qlora", ""), "'full'"),
        (AXOLOTL + "rl: dpo\n", "'dpo'"),
        ("model: a\ntrain_dataset: b\npeft_config: {name: lora}\n", "v1 engine"),
        ("distributed_type: FSDP\n", "settings of accelerate"),
        ("a: 1\n", "no training configuration"),
        ("- a\n- b\n", "holds no keys"),
        ("", "holds no keys"),
        ("a: [1\n", "is not YAML"),
        ("a: 1\na: 2\n", "a stands twice"),
        ("a: &x [1]\nb: *x\n", "has an alias"),
        ("a: !!python/object/apply:os.getcwd []\n", "is not YAML"),
        ("[" * 5000, "is not YAML: more than 64 levels"),
        ("a: " + "x" * 100_001, "is larger than"),
    ],
)  # fmt: skip
def test_what_is_no_training_of_edgeft_is_refused(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        converted(tmp_path, text)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_datasets_that_are_not_at_hand_are_named(data: Path) -> None:
    for name, says in (
        ("remote", "no local file"),
        ("lost", "there is no file"),
        ("x", "describe"),
    ):
        conversion = converted(data, LLAMA_FACTORY.replace("chats", name))
        assert says in conversion.not_carried["dataset"] and "data" not in conversion.options
        assert "# To be typed, or written here: data." in conversion.text
    (data / "data" / "dataset_info.json").unlink()
    assert "no dataset_info.json in 'data'" in converted(data, LLAMA_FACTORY).not_carried["dataset"]


def test_datasets_above_the_file_are_found(data: Path) -> None:
    folder = data / "examples" / "train_lora"
    folder.mkdir(parents=True)
    assert converted(folder, LLAMA_FACTORY).options["data"] == "../../data/chats.jsonl"


def test_several_datasets_become_one_file_where_it_may_be_written(data: Path) -> None:
    file = data / "run.yaml"
    file.write_text(LLAMA_FACTORY.replace("chats", "chats,more") + "max_samples: 2\n")
    conversion = convert(file, data / "run.toml", "train-qlora", train_qlora())
    says = (
        "--data-out FILE.jsonl writes the first 2 rows of each of data/chats.jsonl, data/more.json"
    )
    assert says in conversion.not_carried["dataset"]
    assert conversion.not_carried["max_samples"] == conversion.not_carried["dataset"]
    out = data / "all.jsonl"
    conversion = convert(file, data / "run.toml", "train-qlora", train_qlora(), out)
    assert conversion.options["data"] == "all.jsonl" and not out.exists()
    assert conversion.carried["max_samples"] == "data"
    assert write_data(conversion.data_parts, out) == 4
    rows = [json.loads(line)["instruction"] for line in out.read_text().splitlines()]
    assert rows == ["q0", "q1", "q0", "q1"]


def test_a_broken_row_stops_the_joining_and_leaves_no_file(data: Path) -> None:
    (data / "data" / "chats.jsonl").write_text('{"instruction": "q"}\n{broken\n')
    file = data / "run.yaml"
    file.write_text(LLAMA_FACTORY.replace("chats", "more,chats"))
    conversion = convert(file, data / "run.toml", "train-qlora", train_qlora(), data / "all.jsonl")
    with pytest.raises(DataError):
        write_data(conversion.data_parts, data / "all.jsonl")
    assert not (data / "all.jsonl").exists()


def test_odd_texts_stay_in_their_quotes_and_comments(data: Path) -> None:
    odd = 'C:\\x "y" \\u007f\\u2028 é'
    conversion = converted(
        data, LLAMA_FACTORY.replace("saves/qwen", json.dumps(odd)), 'template: "a\\nlora-r = 1"\n'
    )
    read = tomllib.loads(conversion.text)["train-qlora"]
    assert read["output"] == json.loads(json.dumps(odd)) and read["lora-r"] == 8


@pytest.mark.parametrize(
    ("tool", "more", "words"),
    [
        (LLAMA_FACTORY, "adam_beta2: 0.95", ["betas=(0.9, 0.95)"]),
        (LLAMA_FACTORY, "adam_beta1: 0.8\nadam_epsilon: 1.0e-6", ["betas=(0.8, 0.999)", "eps=1e-06"]),
        (AXOLOTL, "optimizer: adamw_bnb_8bit\nadam_epsilon: 0.001", ["eps=0.001"]),
        (LLAMA_FACTORY, "adam_beta2: 0.999", None),
        (AXOLOTL, "optimizer: adafactor\nadam_beta2: 0.95", None),
    ],
)  # fmt: skip
def test_constants_of_adam_become_arguments_of_the_optimizer(
    data: Path, tool: str, more: str, words: list[str] | None
) -> None:
    (data / "run.yaml").write_text(tool + more)
    names = ("optimizer", "optimizer-args")
    known = train_qlora() | {name: (lambda _: None) for name in names}
    conversion = convert(data / "run.yaml", data / "run.toml", "train", known)
    assert conversion.options.get("optimizer-args") == words
    assert not [key for key in conversion.not_carried if key.startswith("adam")]


@pytest.mark.parametrize(("more", "data_id"), [
    ("", "owner/name"), ("\n    split: train", "owner/name"),
    ("\n    name: english\n    split: train_sft\n    revision: v1", "owner/name@v1:english:train_sft"),
])  # fmt: skip
def test_a_dataset_on_the_hub_keeps_its_id(data: Path, more: str, data_id: str) -> None:
    conversion = converted(data, AXOLOTL.replace("chats.jsonl", "owner/name" + more))
    assert conversion.options["data"] == data_id
    assert not [key for key in conversion.not_carried if key.startswith("datasets")]


PREFERENCES = dict.fromkeys(
    ("objective", "beta", "loss_type", "simpo_gamma", "desirable_weight", "undesirable_weight",
     "ppo_epochs", "generations", "reward"), ""
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "more", "expected"),
    [
        (LLAMA_FACTORY.replace("stage: sft", "stage: dpo"), "pref_beta: 0.2\npref_loss: ipo\n",
         {"objective": "dpo", "beta": 0.2, "loss-type": "ipo"}),
        (LLAMA_FACTORY.replace("stage: sft", "stage: dpo"), "pref_loss: sigmoid\n",
         {"objective": "dpo", "beta": 0.1}),
        (LLAMA_FACTORY.replace("stage: sft", "stage: dpo"), "pref_loss: simpo\nsimpo_gamma: 0.8\n",
         {"objective": "simpo", "beta": 0.1, "simpo-gamma": 0.8}),
        (LLAMA_FACTORY.replace("stage: sft", "stage: kto"), "kto_rejected_weight: 0.5\n",
         {"objective": "kto", "beta": 0.1, "undesirable-weight": 0.5}),
        (LLAMA_FACTORY.replace("stage: sft", "stage: ppo"), "ppo_epochs: 2\n",
         {"objective": "ppo", "ppo-epochs": 2, "generations": 1}),
        (LLAMA_FACTORY, "ppo_epochs: 2\n", {"objective": "sft"}),
        (LLAMA_FACTORY, "pref_beta: 0.2\nkto_chosen_weight: 2\n", {"objective": "sft"}),
        (AXOLOTL, "rl: ipo\nrl_beta: 0.3\n",
         {"objective": "dpo", "beta": 0.3, "loss-type": "ipo"}),
        (AXOLOTL, "rl: kto\nkto_desirable_weight: 2\n", {"objective": "kto", "desirable-weight": 2.0}),
        (AXOLOTL, "rl: orpo\norpo_alpha: 0.2\n", {"objective": "orpo", "beta": 0.2}),
    ],
)  # fmt: skip
def test_preference_training_is_carried_over(
    data: Path, text: str, more: str, expected: dict[str, Any]
) -> None:
    options = converted(data, text, more, **PREFERENCES).options
    names = [name.replace("_", "-") for name in PREFERENCES]
    assert {name: options[name] for name in names if name in options} == expected


def test_what_preference_training_lacks_is_named(data: Path) -> None:
    text = LLAMA_FACTORY.replace("stage: sft", "stage: dpo")
    conversion = converted(data, text, "pref_ftx: 0.5\ndpo_label_smoothing: 0.1\n", **PREFERENCES)
    assert "--objective cpo" in conversion.not_carried["pref_ftx"]
    assert "--loss-type robust" in conversion.not_carried["dpo_label_smoothing"]
    text = LLAMA_FACTORY.replace("stage: sft", "stage: ppo")
    conversion = converted(data, text, "reward_model: saves/reward\n", **PREFERENCES)
    assert "type --reward" in conversion.not_carried["reward_model"]
