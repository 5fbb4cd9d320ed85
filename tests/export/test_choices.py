"""Which chats are calibrated on: never those that something is measured on."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeft.errors import InputError
from edgeft.export.own_chats import own_chats, sample
from edgeft.merge.view import open_merged
from helpers.tiny import make_chats

pytestmark = pytest.mark.unit


def test_validation_is_left_out(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lines = make_chats(tmp_path / "all.jsonl", 10).read_text().splitlines(keepends=True)
    held = tmp_path / "held.jsonl"
    held.write_text("".join(lines[::3]))
    chats = own_chats((), held, tmp_path / "all.jsonl")
    assert len(chats.validation) == 4 and len(chats.training) == 6 and chats.calibrates
    assert not set(chats.validation) & set(chats.training)
    assert "4 chats of the validation split are left out" in capfd.readouterr().err
    with pytest.raises(InputError, match="holds nothing but the validation split"):
        own_chats((), held, held)


def test_text_chats_and_neither(tiny_base: Path, tmp_path: Path) -> None:
    view = open_merged(tiny_base, None)
    (tmp_path / "text.md").write_text("turn on the lamp " * 500, encoding="utf-8-sig")
    text = own_chats((), None, tmp_path / "text.md")
    assert text.calibrates and not text.training and text.name == "text.md"
    pieces = sample(view, text, 2000)
    assert {len(piece) for piece in pieces} == {512} and len(pieces) == 3
    assert sample(view, text, 2000) == pieces
    (chat, *others) = sample(view, own_chats((), None, make_chats(tmp_path / "c.jsonl")), 200)
    assert sum(map(len, (chat, *others))) == 200
    (tmp_path / "empty.txt").write_text("\n")
    nothing = own_chats((), None, tmp_path / "empty.txt")
    assert not nothing.calibrates and nothing.why_no_training == "empty.txt is empty"
    nobody = own_chats((), None, None)
    assert not nobody.calibrates and nobody.why_no_training == "no adapter"
