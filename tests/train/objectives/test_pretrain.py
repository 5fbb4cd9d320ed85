"""Continued pretraining: the loss is transformers' own, a run learns plain text, exports know its data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Family

from edgeft import store
from edgeft.adapter.read import Weighted
from edgeft.data.encoding import encode_documents
from edgeft.data.rows import load_examples
from edgeft.export.fine_tune_data import fine_tune_data
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.tokenizer.hf_files import encoder

TEXTS = [
    f"{n} lamps on the wall. Take the {word} one down."
    for n in range(9)
    for word in ("last", "red")
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("\n".join(TEXTS))
    (folder / "b.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return folder


@pytest.mark.parametrize("case", ["llama", "gemma2", "qwen3"])
def test_the_loss_is_that_of_transformers(
    make: Family, folder: Path, tmp_path: Path, case: str
) -> None:
    """Of the same rows, the last of them shorter, with every token as its own label."""
    import torch
    import transformers

    from edgeft.train.batches import Rows, collate
    from edgeft.train.objectives.sft import AnswerTrainer

    base, _, model = make(case)
    chat, documents = (
        ChatTemplate.from_folder(base),
        load_examples(folder, split="train", layout="documents"),
    )
    rows = encode_documents(documents[1:], chat, encoder(base), 50)
    ids = [id for row in rows for id in row.ids]
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    begin = [tokenizer.bos_token_id] if "bos_token" in chat.source else []
    theirs = [
        token
        for text in TEXTS
        for token in (*begin, *tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id)
    ]  # fmt: skip
    assert ids == theirs[: len(ids)] and len(theirs) - len(ids) in (0, 1)
    batch = collate(list(Rows(rows))[-3:], pad=0)
    options = transformers.TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, report_to="none"
    )
    trainer = AnswerTrainer(model=model, args=options)
    with torch.no_grad():
        own = float(model(**batch).loss)
        assert float(trainer.compute_loss(model, batch)) == pytest.approx(own, rel=1e-5)


def test_a_run_learns_plain_text_and_exports_calibrate_on_it(
    tiny_base: Path, folder: Path, tmp_path: Path, edgeft: Callable[..., Any]
) -> None:
    common = ("--base", tiny_base, "--data", folder, "--objective", "pretrain", "--method", "lora",
              "--cutoff-length", 64, "--validation-size", 3)  # fmt: skip
    shown = json.loads(edgeft("train", *common, "--output", "x", "--preview", "--json").out)
    assert shown["examples"][0]["place"] == "a.txt:1"
    assert shown["examples"][0]["text"].startswith("⟦0 lamps on the wall.")
    output = tmp_path / "adapter"
    run = ("--epochs", 3, "--batch-size", 4, "--compute-type", "fp32", "--output", output, "--json")
    ran = edgeft("train", *common, *run)
    assert ran.code == 0, ran.err
    facts = json.loads(ran.out)
    assert facts["packed"] == {"documents": 16, "rows": shown["train"]}
    losses = [loss for _, loss in facts["validation_loss"]]
    assert losses[-1] < losses[0]
    manifest = store.read_manifest(output)
    assert manifest is not None and manifest.options["objective"] == "pretrain"
    data = fine_tune_data((Weighted(output, 1.0),), None, None)
    assert data.validation == [] and data.why_no_validation == "training learned plain text"
    assert data.training == [] and TEXTS[3] in data.text
    (folder / "c.txt").write_text("more")
    changed = fine_tune_data((Weighted(output, 1.0),), None, None)
    assert not changed.has_calibration_data
    assert changed.why_no_training == "the training data changed since"


def test_options_that_say_nothing_about_plain_text_are_refused(
    tiny_base: Path, folder: Path, edgeft: Callable[..., Any]
) -> None:
    for option in ("--packing", "--train-on-inputs"):
        ran = edgeft("train", "--base", tiny_base, "--data", folder, "--output", "x",
                     "--objective", "pretrain", option)  # fmt: skip
        assert ran.code == 1 and f"error: {option} is not for --objective pretrain" in ran.err
