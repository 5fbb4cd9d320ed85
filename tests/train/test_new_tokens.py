"""New tokens: rows of the embedding train, and the export and the chat have tokenizer and rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeft.adapter.read import Weighted
from edgeft.errors import InputError
from edgeft.merge.view import open_merged
from edgeft.tokenizer.hf_files import load_tokenizer
from edgeft.train.new_tokens import read_tokens
from edgeft.train.options import TrainOptions
from edgeft.train.run import train
from edgeft.weights.checkpoint import Checkpoint

TOKENS = ("<lamp>", "<on>")


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    """The new tokens stand in prompts and answers."""
    rows = [{"instruction": f"<lamp> {i}", "output": f"<on>{i % 3}"} for i in range(24)]
    path = tmp_path / "new.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def trained(base: Path, chats: Path, output: Path, **changes: Any) -> Path:
    options: dict[str, Any] = {
        "steps": 4, "batch_size": 4, "micro_batch_size": 4, "learning_rate": 0.02, "warmup": 0,
        "save_every": 0, "compute_type": "fp32", "add_tokens": TOKENS,
    } | changes  # fmt: skip
    train(TrainOptions(base, chats, output, **options))
    return output


def test_the_rows_of_new_tokens_train_and_no_others(
    tiny_base: Path, chats: Path, tmp_path: Path
) -> None:
    adapter = trained(tiny_base, chats, tmp_path / "adapter")
    tokenizer, plain = load_tokenizer(adapter), load_tokenizer(tiny_base)
    ids = [tokenizer.token_to_id(token) for token in TOKENS]
    before = Checkpoint(tiny_base).read("model.embed_tokens.weight")
    assert ids == [len(before), len(before) + 1]
    merged = open_merged(tiny_base, [Weighted(adapter)])
    after = merged.tensor("model.embed_tokens.weight")
    assert after.shape == (len(before) + 2, before.shape[1])
    np.testing.assert_array_equal(after[: len(before)], before)
    for row, token in zip(ids, TOKENS, strict=True):
        start = before[plain.encode(token).ids].mean(0)
        assert 0.001 < np.abs(after[row] - start).max() < 0.5


@pytest.mark.parametrize("tied", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_what_was_trained_is_exported_and_answers_as_the_live_model(
    tied: bool, tiny_base: Path, chats: Path, tmp_path: Path, edgeft: Callable[..., Any]
) -> None:
    base = tiny_base if tied else untied(tiny_base, tmp_path / "untied")
    adapter = trained(base, chats, tmp_path / "adapter")
    ran = edgeft("merge-export", "--adapter", adapter, "--base", base, "--format", "hf,gguf",
                 "--quant", "f32", "--out", tmp_path / "out", "--json")  # fmt: skip
    assert ran.code == 0, ran.err
    assert "same first choice 100.0%" in ran.err, ran.err
    folder = next(path for path in (tmp_path / "out").iterdir() if path.is_dir())
    assert load_tokenizer(folder).token_to_id("<on>") == load_tokenizer(adapter).token_to_id("<on>")


def untied(base: Path, folder: Path) -> Path:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype="float32")
    head = model.get_input_embeddings().weight.detach().clone()
    model.config.tie_word_embeddings = False
    other = transformers.LlamaForCausalLM(model.config)
    other.load_state_dict(model.state_dict())
    other.lm_head.weight.data = head * 0.5
    other.save_pretrained(folder)
    copy_tokenizer(base, folder)
    return folder


def copy_tokenizer(base: Path, folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((base / name).read_bytes())


def test_rows_that_the_base_has_to_spare_are_used(
    tiny_base: Path, chats: Path, tmp_path: Path
) -> None:
    """Many embeddings are padded: then only the rows are saved."""
    import transformers

    spare, base = 272, tmp_path / "padded"
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_base, dtype="float32")
    model.resize_token_embeddings(spare, mean_resizing=False)
    model.save_pretrained(base)
    copy_tokenizer(tiny_base, base)
    adapter = trained(base, chats, tmp_path / "adapter")
    names = Checkpoint(adapter / "adapter_model.safetensors").tensors
    rows = [name for name in names if "trainable_tokens_delta" in name]
    assert rows and not [name for name in names if name.endswith("embed_tokens.weight")]
    merged = open_merged(base, [Weighted(adapter)])
    assert merged.tensor("model.embed_tokens.weight").shape[0] == spare


def test_tokens_come_from_the_command_line_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "tokens.txt"
    file.write_text("<a>\n\n<b>\n")
    assert read_tokens((str(file),)) == ("<a>", "<b>")
    assert read_tokens(TOKENS) == TOKENS and read_tokens(()) == ()


def test_a_token_that_is_there_already_is_refused(
    tiny_base: Path, chats: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="has '<|im_end|>' already"):
        trained(tiny_base, chats, tmp_path / "a", add_tokens=("<|im_end|>",))
    with pytest.raises(InputError, match="names a token twice"):
        trained(tiny_base, chats, tmp_path / "a", add_tokens=("<x>", "<x>"))
    assert not (tmp_path / "a").exists()
