"""The loss of the answers equals transformers' own for every family, from fewer rows of the head."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from conftest import Family

from edgeft.data.encoded_rows import IGNORED
from helpers.families import CHATGLM, TINY, by_family

TRAINED = [case for case, tiny in TINY.items() if tiny.config != CHATGLM]
BALANCED = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe")
"""families whose router has a loss of its own"""


def trainer_of(model: Any, folder: Path) -> Any:
    import transformers

    from edgeft.train.objectives.sft import AnswerTrainer

    options = transformers.TrainingArguments(output_dir=str(folder), use_cpu=True, report_to="none")
    return AnswerTrainer(model=model, args=options)


def some_batch() -> Any:
    """Three chats of other lengths; in one of them everything is learned, its first token too."""
    import torch

    from edgeft.train.batches import collate

    draw = torch.Generator().manual_seed(1)
    rows = []
    for length, prompt in ((40, 25), (23, 0), (31, 30)):
        ids = torch.randint(0, 256, (length,), generator=draw).tolist()
        rows.append({"input_ids": ids, "labels": [IGNORED] * prompt + ids[prompt:]})
    return collate(rows, pad=0)


@pytest.mark.parametrize("case", by_family(TRAINED, "phi3-long"))
def test_the_loss_is_the_models_own(make: Family, case: str, tmp_path: Path) -> None:
    import torch

    model, batch = make(case)[2], some_batch()
    trainer = trainer_of(model, tmp_path)
    seen: list[tuple[int, ...]] = []
    head = model.get_base_model().get_output_embeddings()
    watch = head.register_forward_hook(lambda _, inputs, output: seen.append(tuple(output.shape)))
    with torch.no_grad():
        loss = float(trainer.compute_loss(model, batch))
        watch.remove()
        own = float(model(**batch).loss)
        count = torch.tensor(70)
        shared = float(trainer.compute_loss(model, batch, num_items_in_batch=count))
        own_shared = float(model(**batch, num_items_in_batch=count).loss)
        after = model(input_ids=batch["input_ids"]).logits
    assert seen == [(15 + 22 + 1, head.weight.shape[0])]
    assert loss == pytest.approx(own, rel=1e-5)
    assert shared == pytest.approx(own_shared, rel=1e-5)
    assert after.shape[:2] == batch["labels"].shape, "the head is as it was"
    # What num_items_in_batch counts depends on what transformers finds out about the model.
    assert trainer.model_accepts_loss_kwargs and trainer._loss_shifts_labels


# Not phi3-long: the longest text of a batch chooses the factors of all (transformers' longrope).
@pytest.mark.parametrize("case", by_family([case for case in TRAINED if case != "phi3-long"]))
def test_padding_changes_nothing(make: Family, case: str, tmp_path: Path) -> None:
    import torch

    model, batch = make(case)[2], some_batch()
    trainer = trainer_of(model, tmp_path)
    total = 0.0
    with torch.no_grad():
        for ids, mask, labels in zip(*batch.values(), strict=True):
            alone = {"input_ids": ids[None, mask == 1], "labels": labels[None, mask == 1]}
            total += float(model(**alone, num_items_in_batch=1).loss)
        loss = float(trainer.compute_loss(model, batch, num_items_in_batch=1))
    assert loss == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("case", BALANCED)
def test_the_loss_of_a_router_is_added_where_the_model_asks_for_it(
    make: Family, case: str, tmp_path: Path
) -> None:
    import torch

    model, batch = copy.deepcopy(make(case)[2]), some_batch()
    trainer = trainer_of(model, tmp_path)
    with torch.no_grad():
        plain = float(trainer.compute_loss(model, batch))
        model.config.output_router_logits = True
        model.get_base_model().router_aux_loss_coef = 0.5
        loss, own = float(trainer.compute_loss(model, batch)), float(model(**batch).loss)
        # An optimizer step has it once, however many micro-batches it is made of.
        trainer.current_gradient_accumulation_steps = 4
        quarter = float(trainer.compute_loss(model, batch, num_items_in_batch=38))
    assert loss == pytest.approx(own, rel=1e-5)
    assert loss - plain > 0.1
    assert quarter - plain == pytest.approx((loss - plain) / 4, rel=1e-4)


def test_the_gradients_are_the_models_own(make: Family, tmp_path: Path) -> None:
    model, batch = copy.deepcopy(make("gemma2")[2]), some_batch()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    found = []
    for loss in (trainer_of(model, tmp_path).compute_loss(model, batch), model(**batch).loss):
        model.zero_grad()
        loss.backward()
        found.append([weight.grad.clone() for weight in weights])
    for ours, own in zip(*found, strict=True):
        assert (ours - own).abs().max() <= 1e-5 * own.abs().max()
        assert own.any()


def test_a_model_without_peft_has_the_same_loss(make: Family, tmp_path: Path) -> None:
    """A method that trains the model's own weights does not wrap it."""
    import torch

    model, batch = make("llama")[2], some_batch()
    with torch.no_grad(), model.disable_adapter():
        wrapped = float(trainer_of(model, tmp_path).compute_loss(model, batch))
        base = model.get_base_model()
        assert float(trainer_of(base, tmp_path).compute_loss(base, batch)) == wrapped
