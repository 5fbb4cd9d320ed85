"""A row with the common beginning once has the loss and the gradients of the plain batch, in every family."""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import pytest
from conftest import Family

from edgeft.data.encoded_rows import IGNORED
from helpers.families import CHATGLM, TINY, by_family, exact_gelu

CASES = [case for case, tiny in TINY.items() if tiny.config != CHATGLM]
WINDOWED = ("gemma2", "gemma3", "olmo3", "olmo3-yarn")
"""cases whose attention window, 8 tokens, is shorter than the examples"""


def batch_of(beginning: int, learned_beginning: bool = False) -> Any:
    """Four examples that begin alike; one is a single token longer, one is the beginning of another."""
    import torch

    from edgeft.train.batches import collate

    draw = torch.Generator().manual_seed(1)
    common = torch.randint(0, 256, (beginning,), generator=draw).tolist()
    rest = [torch.randint(0, 256, (n,), generator=draw).tolist() for n in (9, 1, 14, 9)]
    rest[3] = rest[2][:5]
    rows = []
    for i, own in enumerate(rest):
        ids = common + [i, *own] if i < 2 else common + own
        prompt = 0 if learned_beginning else beginning + (i == 0)
        rows.append({"input_ids": ids, "labels": [IGNORED] * prompt + ids[prompt:]})
    return collate(rows, pad=0)


def gradients(model: Any, batch: Any, row: Any) -> tuple[float, Any]:
    import torch

    from edgeft.train.objectives.sft import answers_loss
    from edgeft.train.protocol import without_peft

    model.zero_grad()
    head = without_peft(model).get_output_embeddings()
    loss, count, _ = answers_loss(model, head, batch, row)
    (loss / count).backward()
    found = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return float(loss.detach() / count), torch.cat(found)


@pytest.mark.parametrize("case", by_family(CASES, "phi3-long"))
def test_loss_and_gradients_are_those_of_the_plain_pass(make: Family, case: str) -> None:
    from edgeft.train.protocol import without_peft
    from edgeft.train.shared_prefix import ATTENTION, SharedPrefix

    model, batch = copy.deepcopy(make(case)[2]).train(), batch_of(beginning=17)
    if case in WINDOWED:
        without_peft(model).config.sliding_window = 64
    with exact_gelu(model):  # the table of float16 makes steps of what is smooth
        plain_loss, plain = gradients(model, batch, None)
        shared = SharedPrefix(without_peft(model), longest=31)
        assert not shared.why_not
        row = shared.row(**batch)
        assert row is not None
        assert row.inputs["input_ids"].shape == (1, 17 + 10 + 2 + 14 + 5)
        used = without_peft(model).config._attn_implementation
        assert used == ("eager" if case == "gemma2" else ATTENTION)
        loss, gradient = gradients(model, batch, row)
        assert loss == pytest.approx(plain_loss, rel=1e-6)
        assert float((gradient - plain).norm() / plain.norm()) < 1e-5
        # The plain batch of the same model, for the evaluation of other shapes, is what it was.
        assert gradients(model, batch, None)[0] == pytest.approx(plain_loss, rel=1e-6)


def test_a_learned_beginning_counts_once_for_every_example(make: Family) -> None:
    """With --train-on-inputs each example learns the beginning, too."""
    from edgeft.train.protocol import without_peft
    from edgeft.train.shared_prefix import SharedPrefix

    model, batch = copy.deepcopy(make("llama")[2]), batch_of(beginning=9, learned_beginning=True)
    plain_loss, plain = gradients(model, batch, None)
    row = SharedPrefix(without_peft(model), longest=31).row(**batch)
    assert row is not None and len(row.targets) == int((batch["labels"][:, 1:] != IGNORED).sum())
    loss, gradient = gradients(model, batch, row)
    assert loss == pytest.approx(plain_loss, rel=1e-6)
    assert float((gradient - plain).norm() / plain.norm()) < 1e-5


def test_the_mask_alone_gives_the_same(make: Family) -> None:
    """Where a model copies the mask, the layout is lost and SDPA uses the mask."""
    import dataclasses

    from edgeft.train.protocol import without_peft
    from edgeft.train.shared_prefix import SharedPrefix

    model, batch = copy.deepcopy(make("llama")[2]), batch_of(beginning=9)
    row = SharedPrefix(without_peft(model), longest=31).row(**batch)
    assert row is not None
    with_layout, _ = gradients(model, batch, row)
    mask = row.inputs["attention_mask"].clone()
    assert not hasattr(mask, "shared_prefix")
    masked = dataclasses.replace(row, inputs=row.inputs | {"attention_mask": mask})
    assert gradients(model, batch, masked)[0] == pytest.approx(with_layout, rel=1e-6)


def test_nothing_in_common_takes_the_plain_pass(make: Family) -> None:
    from edgeft.train.protocol import without_peft
    from edgeft.train.shared_prefix import SharedPrefix

    shared = SharedPrefix(without_peft(copy.deepcopy(make("llama")[2])), longest=31)
    assert shared.row(**batch_of(beginning=0)) is None
    one = {key: values[:1] for key, values in batch_of(beginning=9).items()}
    assert shared.row(**one) is None


@pytest.mark.parametrize(
    "case, change, reason",
    [
        ("gemma3", {}, "examples of 31 tokens are longer than the attention window"),
        ("mistral-window", {"sliding_window": 30}, "longer than the attention window"),
        ("mixtral", {"output_router_logits": True}, "the router's loss counts every token"),
        ("llama", {"attention_dropout": 0.1}, "dropout is drawn for every example"),
        ("llama", {"_attn_implementation": "flash_attention_2"}, "attention is flash_attention_2"),
        ("qwen2", {"layer_types": ["linear_attention", "full_attention"]},
         "layers of full_attention, linear_attention"),
    ],
)  # fmt: skip
def test_a_model_that_does_not_allow_it_is_named_with_its_reason(
    make: Family, case: str, change: dict[str, Any], reason: str, capsys: Any
) -> None:
    from types import SimpleNamespace

    from edgeft.train.shared_prefix import SharedPrefix, why_not

    base = make(case)[2].get_base_model()
    config = SimpleNamespace(
        **{"_attn_implementation": "sdpa"} | dict(vars(base.config)) | change
    )  # the live model's own stays as it is
    model = SimpleNamespace(config=config, modules=base.modules, parameters=base.parameters)
    shared = SharedPrefix(model, longest=31)
    assert reason in shared.why_not and reason in capsys.readouterr().err
    assert shared.row(**batch_of(beginning=17)) is None
    training = SimpleNamespace(neftune_noise_alpha=5.0)
    assert "NEFTune" in why_not(make("llama")[2].get_base_model(), 31, training)


def test_dropout_of_lora_takes_the_plain_pass(make: Family) -> None:
    import torch

    from edgeft.train.shared_prefix import why_not

    model = copy.deepcopy(make("llama")[2]).get_base_model()
    assert not why_not(model, 31)
    model.model.layers[0].mlp.extra = torch.nn.Dropout(0.1)
    assert why_not(model, 31) == "dropout is drawn for every example"


def test_a_model_that_computes_a_row_wrongly_is_caught_on_the_first_batch(
    make: Family, capsys: Any
) -> None:
    from edgeft.train.objectives.sft import answers_loss
    from edgeft.train.protocol import without_peft
    from edgeft.train.shared_prefix import SharedPrefix

    base, batch = without_peft(copy.deepcopy(make("llama")[2])), batch_of(beginning=17)
    shared = SharedPrefix(base, longest=31)
    head, forward = base.get_output_embeddings(), base.model.forward

    def without_positions(*args: Any, **kwargs: Any) -> Any:
        """As a model that counts positions by itself."""
        return forward(*args, **kwargs | {"position_ids": None})

    base.model.forward = without_positions
    shared.verify(batch, lambda row: answers_loss(base, head, batch, row))
    assert "the first batch's loss is" in shared.why_not
    assert shared.why_not in capsys.readouterr().err
    assert shared.row(**batch) is None
    # A model that computes it rightly is asked once.
    base.model.forward = forward
    again = SharedPrefix(base, longest=31)
    again.verify(batch, lambda row: answers_loss(base, head, batch, row))
    assert not again.why_not
    again.verify(batch, lambda row: pytest.fail("asked twice"))


@pytest.mark.parametrize(("row", "why"), [(1.8, False), (2.0, True)])
def test_a_small_loss_may_differ_by_as_much_as_a_larger_one(
    make: Family, row: float, why: bool
) -> None:
    """100 tokens of a fine-tune that trains on, 1.0 nats in all: .9 more are the rounding of bfloat16."""
    import torch

    from edgeft.train.protocol import without_peft
    from edgeft.train.shared_prefix import SharedPrefix

    shared = SharedPrefix(without_peft(copy.deepcopy(make("llama")[2])), longest=31)
    output = argparse.Namespace(logits=torch.zeros(1, dtype=torch.bfloat16))
    shared.verify(
        batch_of(beginning=17),
        lambda layout: (torch.tensor(row if layout else 1.0), 100, output),
    )
    assert bool(shared.why_not) == why


def test_a_run_with_shared_beginnings_has_the_losses_of_one_without(
    tiny_base: Path, tiny_chats: Path, tmp_path: Path
) -> None:
    from edgeft import store
    from edgeft.train.options import TrainOptions
    from edgeft.train.run import train

    curves = []
    for shared in (True, False):
        output = tmp_path / f"adapter-{shared}"
        options = TrainOptions(
            tiny_base, tiny_chats, output, steps=4, batch_size=8, micro_batch_size=4, save_every=0,
            learning_rate=0.02, compute_type="fp32", shared_prefix=shared,
        )  # fmt: skip
        train(options)
        manifest = store.read_manifest(output)
        assert manifest is not None
        assert manifest.facts["shared_prefix"] is shared and manifest.facts["lora_function"] == 14
        curves.append(manifest.facts["loss"] + manifest.facts["validation_loss"])
    for ours, plain in zip(*curves, strict=True):
        assert ours == pytest.approx(plain, rel=2e-4)
    assert "shared_prefix" not in TrainOptions(tiny_base, tiny_chats, output).to_json()
