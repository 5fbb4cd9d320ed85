"""Calibration data and validation split of a fine-tune: sources, overlaps and token ids."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeft.errors import InputError
from edgeft.export.fine_tune_data import calibration_ids, fine_tune_data
from edgeft.merge.view import open_merged
from helpers.tiny import make_chats


def test_validation_chats_are_not_calibrated_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = make_chats(tmp_path / "all.jsonl", 10).read_text().splitlines(keepends=True)
    held = tmp_path / "held.jsonl"
    held.write_text("".join(lines[::3]))
    data = fine_tune_data((), held, tmp_path / "all.jsonl")
    assert len(data.validation) == 4 and len(data.training) == 6 and data.has_calibration_data
    assert not set(data.validation) & set(data.training)
    assert "4 chats of the validation split are left out" in capfd.readouterr().err
    with pytest.raises(InputError, match="holds nothing but the validation split"):
        fine_tune_data((), held, held)


def test_calibration_data_is_text_or_chats_or_missing(tiny_base: Path, tmp_path: Path) -> None:
    view = open_merged(tiny_base, None)
    (tmp_path / "text.md").write_text("turn on the lamp " * 500, encoding="utf-8-sig")
    text = fine_tune_data((), None, tmp_path / "text.md")
    assert text.has_calibration_data and not text.training and text.name == "text.md"
    pieces = calibration_ids(view, text, 2000)
    assert {len(piece) for piece in pieces} == {512} and len(pieces) == 3
    assert calibration_ids(view, text, 2000) == pieces
    (chat, *others) = calibration_ids(
        view, fine_tune_data((), None, make_chats(tmp_path / "c.jsonl")), 200
    )
    assert sum(map(len, (chat, *others))) == 200
    (tmp_path / "empty.txt").write_text("\n")
    nothing = fine_tune_data((), None, tmp_path / "empty.txt")
    assert not nothing.has_calibration_data and nothing.why_no_training == "empty.txt is empty"
    nobody = fine_tune_data((), None, None)
    assert not nobody.has_calibration_data and nobody.why_no_training == "no adapter"


def test_plain_text_beside_chats_takes_a_quarter_of_the_tokens(
    tiny_base: Path, tmp_path: Path
) -> None:
    view, chats = open_merged(tiny_base, None), make_chats(tmp_path / "c.jsonl", 40)
    (tmp_path / "text.md").write_text("turn on the lamp " * 500)
    alone = calibration_ids(view, fine_tune_data((), None, chats), 300)
    data = fine_tune_data((), None, chats, calibration_text=tmp_path / "text.md")
    both = calibration_ids(view, data, 400)
    assert both[:-1] == alone and len(both[-1]) == 100  # the chats have the rest
    few = fine_tune_data((), None, make_chats(tmp_path / "few.jsonl", 3),
                         calibration_text=tmp_path / "text.md")  # fmt: skip
    *chats, text = calibration_ids(view, few, 4000)
    assert len(text) == round(sum(map(len, chats)) / 3)
    assert sum(map(len, calibration_ids(view, data, 2))) <= 3


def test_text_beside_no_chats_is_refused(tmp_path: Path) -> None:
    text, empty = tmp_path / "text.md", tmp_path / "empty.md"
    text.write_text("turn on the lamp")
    empty.write_text(" ")
    chats = make_chats(tmp_path / "c.jsonl")
    for calibration, beside, message in (
        (None, text, "there are none: no adapter"),
        (text, text, "there are none: text.md is plain text"),
        (chats, chats, "holds rows, not plain text"),
        (chats, empty, "is empty"),
    ):
        with pytest.raises(InputError, match=message):
            fine_tune_data((), None, calibration, calibration_text=beside)
