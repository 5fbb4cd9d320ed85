"""LoRA's variants: learning rates of LoRA+, flags in the configuration, starts of PiSSA and OLoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import Family

from edgeft.errors import InputError
from edgeft.files import read_json
from edgeft.train.options import TrainOptions
from edgeft.train.registry import load_method
from edgeft.weights.text_base import open_base


def prepared(method: str, base: Path, **more: Any) -> tuple[Any, Any]:
    """(method, its model)."""
    options = TrainOptions(base, base, base / "out", compute_type="fp32", **more)
    made = load_method(method)(options, open_base(base).card)
    return made, made.prepare("cpu")


@pytest.mark.parametrize(("method", "ratio", "expected"), [
    ("loraplus", None, 16), ("loraplus", 4.0, 4), ("qlora", 8.0, 8), ("dora", 2.0, 2)])  # fmt: skip
def test_lora_plus_gives_b_a_larger_learning_rate(
    tiny_base: Path, method: str, ratio: float | None, expected: int
) -> None:
    made, model = prepared(method, tiny_base, lora_plus_ratio=ratio)
    others, matrices_b = made.parameter_groups(model, 1e-3)
    assert (others["lr"], matrices_b["lr"]) == (1e-3, pytest.approx(expected * 1e-3))
    names = {id(weight): name for name, weight in model.named_parameters() if weight.requires_grad}
    assert all(".lora_B." in names.pop(id(weight)) for weight in matrices_b["params"])
    assert {id(weight) for weight in others["params"]} == set(names)


def test_without_a_ratio_there_is_one_learning_rate(tiny_base: Path) -> None:
    made, model = prepared("lora", tiny_base)
    assert made.parameter_groups(model, 1e-3) is None


def test_the_trainer_uses_the_learning_rates_of_the_method(
    tiny_base: Path, tiny_chats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    from edgeft.train.run import train

    seen = []

    class Watch(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, optimizer: Any, **__: Any) -> None:
            seen.append([group["lr"] for group in optimizer.param_groups])

    from edgeft.train import loop

    progress = loop.ProgressCallback

    class Both(progress, Watch):  # type: ignore[misc, valid-type]
        pass

    monkeypatch.setattr(loop, "ProgressCallback", Both)
    train(
        TrainOptions(
            tiny_base, tiny_chats, tmp_path / "adapter", steps=3, batch_size=2, micro_batch_size=2,
            validation_size=0, save_every=0, compute_type="fp32", warmup=0, learning_rate=1e-3,
        ),
        method="loraplus",
    )  # fmt: skip
    assert seen[0] == [1e-3, 16e-3] and seen[2][1] == pytest.approx(16 * seen[2][0])
    assert seen[2][0] < 1e-3, "the schedule lowers both"


@pytest.mark.parametrize(("method", "more", "flags"), [
    ("lora", {}, (False, False)),
    ("rslora", {}, (True, False)),
    ("dora", {}, (False, True)),
    ("qlora", {"use_dora": True, "use_rslora": True}, (True, True)),
])  # fmt: skip
def test_flags_and_methods_set_what_peft_calls_them(
    tiny_base: Path, tmp_path: Path, method: str, more: dict[str, bool], flags: tuple[bool, bool]
) -> None:
    made, model = prepared(method, tiny_base, **more)
    made.save(model, tmp_path)
    config = read_json(tmp_path / "adapter_config.json")
    assert (config["use_rslora"], config["use_dora"]) == flags
    assert config["target_modules"] == sorted(open_base(tiny_base).card.lora_targets)


@pytest.mark.parametrize("method", ["pissa", "olora"])
def test_a_start_that_is_a_part_of_the_base_changes_nothing(
    tiny_base: Path, tmp_path: Path, method: str
) -> None:
    """Saved before its first step, the difference to the start is zero."""
    import torch

    from edgeft.train.methods.base_model import stored_base

    made, model = prepared(method, tiny_base, lora_r=4)
    ids = torch.tensor([[5, 40, 41, 42]])
    plain = stored_base(tiny_base, torch.float32, "cpu")
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, plain(ids).logits, atol=1e-4, rtol=1e-4)
    weight = "model.layers.0.self_attn.q_proj"
    assert not torch.equal(
        model.get_submodule(f"base_model.model.{weight}.base_layer").weight,
        plain.get_submodule(weight).weight,
    )
    made.save(model, tmp_path)
    config = read_json(tmp_path / "adapter_config.json")
    assert config["r"] == 8 and config["init_lora_weights"] is True


def test_a_layer_smaller_than_the_rank_has_no_such_start(
    make: Family, tiny_chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = make("qwen2_moe")[0]
    options = TrainOptions(base, tiny_chats, tmp_path)
    made: Any = load_method("pissa")(options, open_base(base).card)
    assert "shared_expert_gate" not in made.targets
    assert "left out shared_expert_gate" in capsys.readouterr().err
    named = TrainOptions(base, tiny_chats, tmp_path, target_modules=("shared_expert_gate",))
    with pytest.raises(InputError, match="shared_expert_gate has fewer than 16 rows"):
        load_method("pissa")(named, open_base(base).card)


def test_ia3_scales_keys_values_and_the_last_feed_forward_layer(make: Family) -> None:
    for case, targets, inputs in (
        ("llama", ["k_proj", "v_proj", "down_proj"], ["down_proj"]),
        ("pythia", ["query_key_value", "dense_4h_to_h"], ["dense_4h_to_h"]),
        ("deepseek2", ["kv_b_proj"], []),
    ):
        base = make(case)[0]
        made: Any = load_method("ia3")(TrainOptions(base, base, base), open_base(base).card)
        assert made.targets == targets
        assert made.config().feedforward_modules == set(inputs)
