"""The text that a base writes for --ship-text auto."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from edgeft import store
from edgeft.errors import StaleError
from edgeft.tokenizer.hf_files import id_to_token, load_tokenizer
from edgeft.train.ship.written_text import (
    PIECE_TOKENS,
    _first_ids,
    _sample,
    word_ids,
    write_text,
)


def test_pieces_begin_with_words_and_have_none_of_the_tokens_that_are_left_out(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def sampled(model: Any, prompts: Any, never: Any, seed: int) -> list[list[int]]:
        asked.append((prompts, never))
        return _sample(model, prompts, [*never, *range(40, 60)], seed)

    monkeypatch.setattr("edgeft.train.ship.written_text._sample", sampled)
    monkeypatch.setattr("edgeft.train.ship.written_text._first_ids", lambda base: [7])
    path = tmp_path / "text.txt"
    write_text(tiny_base, path, pieces=3)
    ((prompts, never),) = asked
    words = word_ids(tiny_base)
    texts = {load_tokenizer(tiny_base).decode([word]).strip() for word in words}
    assert texts and all(text.isalpha() for text in texts)
    assert [len(prompt) for prompt in prompts] == [2, 2, 2]
    assert all(prompt[0] == 7 and prompt[1] in words for prompt in prompts)
    assert set(id_to_token(tiny_base)) <= set(never)
    manifest = store.read_manifest(path)
    assert manifest is not None and manifest.parents == {"base": store.identity(tiny_base)}
    assert len(path.read_text()) > 3 * PIECE_TOKENS


def test_what_is_sampled(tiny_base: Path) -> None:
    import torch

    from edgeft.train.methods.base_model import stored_base

    model = stored_base(tiny_base, torch.float32, "cpu")
    never = list(range(20, 60))
    rows = _sample(model, [[7, 30], [7, 5]], never, 0)
    assert [row[0] for row in rows] == [30, 5] and {len(row) for row in rows} == {PIECE_TOKENS + 1}
    assert not {token for row in rows for token in row[1:]} & set(never)
    assert len(set(rows[0])) > 20  # sampled, not the likeliest


def test_a_text_begins_as_the_tokenizer_begins_it(tiny_base: Path, tmp_path: Path) -> None:
    import tokenizers

    assert _first_ids(tiny_base) == []
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    tokenizer = tokenizers.Tokenizer.from_file(str(base / "tokenizer.json"))
    begin = tokenizer.token_to_id("<|im_start|>")
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", begin)]
    )
    tokenizer.save(str(base / "tokenizer.json"))
    assert _first_ids(base) == [begin]


def test_a_seed_gives_a_text(tiny_base: Path, tmp_path: Path) -> None:
    texts = []
    for name, seed in (("a.txt", 1), ("b.txt", 1), ("c.txt", 2)):
        write_text(tiny_base, tmp_path / name, seed, pieces=2)
        texts.append((tmp_path / name).read_text())
    assert texts[0] == texts[1] != texts[2]
    with pytest.raises(StaleError):
        write_text(tiny_base, tmp_path / "a.txt", 3, pieces=2)
