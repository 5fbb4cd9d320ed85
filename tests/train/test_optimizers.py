"""Every optimizer of the table: it trains, its state has the size that its row names, it resumes."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import re
from pathlib import Path
from typing import Any, get_args

import pytest

from edgeft.cli._options import field_helps
from edgeft.errors import InputError, MissingExtra, ResourceError
from edgeft.train.optimizers import (
    OPTIMIZERS,
    Settings,
    Weights,
    check,
    create,
    optimizer_rows,
    parse_arguments,
)
from edgeft.train.optimizers.weights import projected_groups
from edgeft.train.options import TrainOptions
from edgeft.train.run import train
from helpers.paths import ROOT

ON_CPU = [name for name, row in OPTIMIZERS.items() if "cpu" in row.devices]
RATES = {"lomo": 0.1, "sgd": 0.1, "lion": 1e-3}
"""learning rates of those that AdamW's does not suit"""


def installed(name: str) -> str:
    """The name; the test is skipped where its package is not installed."""
    package = OPTIMIZERS[name].package
    if package and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    return name


def small_llama(lora: bool) -> Any:
    import peft
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=300, tie_word_embeddings=True,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    if lora:
        rule = peft.LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
        model = peft.get_peft_model(model, rule)
    return model.train()


def made(name: str, model: Any, rate: float = 3e-3, **arguments: Any) -> Any:
    groups = [{"params": [p for p in model.parameters() if p.requires_grad]}]
    settings = Settings(rate, 0.0, 20, 2, arguments)
    optimizer = create(name, Weights.of(model, groups), settings)
    if hasattr(optimizer, "train"):  # schedule-free
        optimizer.train()
    return optimizer


def steps(name: str, model: Any, optimizer: Any, count: int) -> list[float]:
    import torch

    ids = torch.randint(0, 300, (4, 24), generator=torch.Generator().manual_seed(1))
    losses = []
    for _ in range(count):
        loss = model(input_ids=ids, labels=ids).loss
        losses.append(float(loss))
        if OPTIMIZERS[name].fused_backward:
            optimizer.fused_backward(loss, RATES[name])
        else:
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return losses


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("name", ON_CPU)
def test_it_trains_on_a_cpu(name: str, lora: bool) -> None:
    model = small_llama(lora)
    optimizer = made(installed(name), model, RATES.get(name, 3e-3))
    losses = steps(name, model, optimizer, 8)
    assert losses[-1] < losses[0] - (0.01 if lora else 0.2), losses


@pytest.mark.parametrize("name", ON_CPU)
def test_its_class_is_of_the_package_that_the_list_names(name: str) -> None:
    optimizer = made(installed(name), small_llama(lora=False))
    classes = type(getattr(optimizer, "parts", [optimizer])[0]).__mro__
    module = next(cls.__module__ for cls in classes if not cls.__module__.startswith("edgeft"))
    packages = {row["name"]: row["package"].replace("-", "_") for row in optimizer_rows()}
    assert module.partition(".")[0] == packages[name]


def state_bytes(value: Any) -> int:
    import torch

    if torch.is_tensor(value):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(map(state_bytes, value.values()))
    if isinstance(value, (list, tuple)):
        return sum(map(state_bytes, value))
    return state_bytes(vars(value)) if hasattr(value, "__dict__") else 0


SIZED = [
    pytest.param(name, marks=pytest.mark.slow if name == "galore" else ())  # an SVD of 4 s
    for name in ON_CPU
    if name != "badam"
]


@pytest.mark.parametrize("name", SIZED)
def test_its_state_has_the_size_that_the_row_names(name: str) -> None:
    """BAdam's lives in copies of a block, which the model of `small_llama` has and a matrix has not."""
    import torch

    installed(name)
    matrix = torch.nn.Linear(1024, 1024, bias=False)
    optimizer = made(name, matrix)
    if not OPTIMIZERS[name].fused_backward:
        matrix(torch.ones(1, 1024)).sum().backward()
        optimizer.step()
    parts = getattr(optimizer, "parts", [optimizer])
    found = sum(state_bytes(part.state) for part in parts) / matrix.weight.numel()
    # APOLLO's own random matrix is made again in each step where the seed says how.
    assert found == pytest.approx(OPTIMIZERS[name].state_bytes, rel=0.05, abs=0.01)


def test_badam_keeps_one_block_in_float32_with_its_moments() -> None:
    installed("badam")
    model = small_llama(lora=False)
    optimizer = made("badam", model, start_block=1)  # 0: the embedding
    steps("badam", model, optimizer, 1)
    block = sum(p.numel() for p in model.parameters() if p.requires_grad)
    layer = sum(p.numel() for p in model.model.layers[0].parameters())
    copies = optimizer.base_optimizer.param_groups
    assert block == layer and sum(p.numel() for g in copies for p in g["params"]) == layer
    moments = state_bytes(dict(optimizer.base_optimizer.state))
    assert (moments + 4 * layer) / layer == pytest.approx(OPTIMIZERS["badam"].state_bytes, rel=0.01)


def test_muon_changes_matrices_and_adamw_the_rest() -> None:
    model = small_llama(lora=False)
    muon, adamw = made("muon", model).parts
    names = {id(p): name for name, p in model.named_parameters()}
    rest = {names[id(p)] for group in adamw.param_groups for p in group["params"]}
    assert rest == {name for name in names.values() if "norm" in name or "embed" in name}
    assert len(muon.param_groups[0]["params"]) == len(names) - len(rest) == 14


@pytest.mark.parametrize("name", ["adamw", "muon", "galore", "apollo", "badam", "schedule-free"])
def test_its_state_is_saved_and_loaded(name: str, tmp_path: Path) -> None:
    """As a checkpoint does it: torch.save, and torch.load with weights_only."""
    import torch

    model, other = small_llama(lora=True), small_llama(lora=True)
    arguments = {"switch_block_every": 2} if name == "badam" else {}
    optimizer = made(installed(name), model, **arguments)
    steps(name, model, optimizer, 3)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    other.load_state_dict(model.state_dict())
    resumed = made(name, other, **arguments)
    resumed.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    assert steps(name, other, resumed, 4) == steps(name, model, optimizer, 4)


def test_projections_have_at_most_half_of_the_smaller_side() -> None:
    model = small_llama(lora=False)
    groups = [{"params": list(model.parameters())}]
    rule: dict[str, Any] = {"scale": 1.0}
    settings = Settings(1e-3, 0.0, 1, 0, {"rank": 24, "scale": 2.0, "eps": 1e-6})
    projected, rest = projected_groups(Weights.of(model, groups), settings, rule, rank=128)
    ranks = {group.get("rank"): len(group["params"]) for group in projected}
    assert ranks == {24: 10, 16: 4, None: 6}  # keys and values are 32 wide
    assert all(group["scale"] == 2.0 for group in projected if "rank" in group)
    assert rest.arguments == {"eps": 1e-6}


def test_what_cannot_run_here_is_said_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    nowhere = TrainOptions(tmp_path / "no", tmp_path / "no", tmp_path / "a", max_grad_norm=0)

    def refused(**changes: Any) -> str:
        with pytest.raises((InputError, MissingExtra, ResourceError)) as error:
            train(dataclasses.replace(nowhere, **changes))
        return str(error.value)

    assert "needs a GPU with CUDA: bitsandbytes pages" in refused(optimizer="paged-adamw-8bit")
    assert "needs a GPU with CUDA: lomo-optim" in refused(optimizer="adalomo")
    assert "did you mean 'adamw'" in refused(optimizer="adamww")
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        text = refused(optimizer="schedule-free")
        assert "the package schedulefree, which is not installed" in text
        assert "pip install 'edgeft[optimizers]'" in text
    assert "'rank' is not of the form KEY=VALUE" in refused(optimizer_args=("rank",))
    assert "--optimizer-args rnk=3: " in refused(optimizer="sgd", optimizer_args=("rnk=3",))
    assert "min_lr or min_lr_rate should be set" in refused(scheduler="cosine_with_min_lr")
    assert "num_decay_steps" in refused(scheduler="warmup_stable_decay")
    assert "unexpected keyword" in refused(scheduler="polynomial", scheduler_args=("x=1",))
    plateau = refused(scheduler="reduce_lr_on_plateau", validation_size=0)
    assert "there is no validation" in plateau
    assert "--max-grad-norm inf" in refused_by_options(max_grad_norm=math.inf)
    if importlib.util.find_spec("lomo_optim"):
        assert "--batch-size 4" in refused(optimizer="lomo", micro_batch_size=4)
        assert "--max-grad-norm 0" in refused(optimizer="lomo", max_grad_norm=1.0)
        text = {"adapter": Path("a"), "ship": "q4_0", "ship_text": Path("t")}
        assert "--ship-text has one of its own" in refused(optimizer="lomo", **text)
    if importlib.util.find_spec("schedulefree"):
        assert "--scheduler constant" in refused(optimizer="schedule-free")


def refused_by_options(**options: Any) -> str:
    with pytest.raises(InputError) as error:
        TrainOptions(Path("base"), Path("data"), Path("out"), **options)
    return str(error.value)


def test_one_learning_rate_where_the_method_has_several() -> None:
    installed("badam")
    model = small_llama(lora=True)
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    groups = [{"params": [p for n, p in named if part in n], "lr": rate}
              for part, rate in (("lora_A", 1e-3), ("lora_B", 1e-2))]  # fmt: skip
    weights, settings = Weights.of(model, groups), Settings(1e-3, 0.0, 10, 0, {})
    with pytest.raises(InputError, match="badam has one learning rate"):
        create("badam", weights, settings)
    for name in ("adamw", "muon"):
        assert {group["lr"] for group in create(name, weights, settings).param_groups} == {
            1e-3,
            1e-2,
        }


def test_arguments_are_python_values_or_texts() -> None:
    words = ("rank=64", "betas=(0.9, 0.95)", "proj = svd", "nesterov=True")
    assert parse_arguments(words) == {
        "rank": 64, "betas": (0.9, 0.95), "proj": "svd", "nesterov": True,
    }  # fmt: skip
    assert check("sgd", {"momentum": 0.9}).state_bytes == 0


@pytest.mark.parametrize("name", ["lomo", "schedule-free"])
def test_a_run_trains_with_those_that_the_trainer_treats_apart(
    name: str, tiny_base: Path, tiny_chats: Path, tmp_path: Path
) -> None:
    """LOMO steps within the backward pass; schedule-free has other weights for training and use."""
    installed(name)
    own = {"max_grad_norm": 0.0} if name == "lomo" else {"scheduler": "constant"}
    manifest = train(
        TrainOptions(
            tiny_base, tiny_chats, tmp_path / "adapter", steps=8, batch_size=8, micro_batch_size=8,
            learning_rate=0.5 if name == "lomo" else 1e-2, save_every=0, compute_type="fp32",
            optimizer=name, **own,
        )
    )  # fmt: skip
    losses = dict(manifest.facts["validation_loss"])
    assert losses[8] < losses[1] - 0.05
    assert manifest.options["optimizer"] == name and "weight_decay" not in manifest.options


def test_every_scheduler_of_transformers_is_a_choice() -> None:
    import transformers

    from edgeft.train.options import Scheduler

    assert set(get_args(Scheduler)) == {str(name.value) for name in transformers.SchedulerType}


def test_help_and_page_name_every_optimizer() -> None:
    helps = field_helps(TrainOptions)["optimizer"]
    page = (ROOT / "docs" / "train.md").read_text(encoding="utf-8")
    for name in OPTIMIZERS:
        assert re.search(rf"(?<![\w-]){name}(?![\w-])", helps), name
        assert f"| `{name}`" in page, name
    assert [row["name"] for row in optimizer_rows()] == list(OPTIMIZERS)
