"""The text that a base writes for --ship-text auto."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeft import store
from edgeft.errors import StaleError
from edgeft.tokenizer.hf_files import id_to_token, load_tokenizer
from edgeft.train.ship.written_text import PIECE_TOKENS, word_ids, write_text


def test_pieces_begin_with_words_and_hold_no_token_of_a_chat(
    tiny_base: Path, tmp_path: Path
) -> None:
    path = tmp_path / "text.txt"
    write_text(tiny_base, path, pieces=3)
    text = path.read_text()
    assert not any(token in text for token in id_to_token(tiny_base).values())
    ids = load_tokenizer(tiny_base).encode(text, add_special_tokens=False).ids
    assert len(ids) > PIECE_TOKENS  # of a tiny random model, whose pieces are cut anew
    words = {load_tokenizer(tiny_base).decode([token]).strip() for token in word_ids(tiny_base)}
    assert words and all(word.isalpha() for word in words)
    assert any(text.startswith(word) for word in words)
    manifest = store.read_manifest(path)
    assert manifest is not None and manifest.parents == {"base": store.identity(tiny_base)}


def test_a_seed_gives_a_text(tiny_base: Path, tmp_path: Path) -> None:
    texts = []
    for name, seed in (("a.txt", 1), ("b.txt", 1), ("c.txt", 2)):
        write_text(tiny_base, tmp_path / name, seed, pieces=2)
        texts.append((tmp_path / name).read_text())
    assert texts[0] == texts[1] != texts[2]
    with pytest.raises(StaleError):
        write_text(tiny_base, tmp_path / "a.txt", 3, pieces=2)
