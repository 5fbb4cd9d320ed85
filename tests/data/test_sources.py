"""Folders as data: which files are read, in which order, how rows are named, what identifies them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeft.data.rows import load_examples, read_examples
from edgeft.data.sources import data_files, data_identity
from edgeft.data.split_names import split_of
from edgeft.data.splits import load_splits, training_examples, validation_examples
from edgeft.errors import DataError, InputError
from edgeft.files import sha256
from edgeft.train.examples import read_splits
from edgeft.train.options import TrainOptions

pytestmark = pytest.mark.unit


def rows(*answers: str) -> str:
    return "".join(json.dumps({"prompt": "hello", "answer": a}) + "\n" for a in answers)


def write(folder: Path, **files: str) -> Path:
    folder.mkdir()
    for name, text in files.items():
        (folder / f"{name}.jsonl").write_text(text)
    return folder


def test_the_files_of_a_folder_are_one_data_set_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "d", b=rows("2", "3"), a=rows("1"))
    data = read_examples(folder, split="train")
    assert [(e.answer, e.place) for e in data.examples] == [
        ("1", "a.jsonl:1"), ("2", "b.jsonl:1"), ("3", "b.jsonl:2"),
    ]  # fmt: skip
    assert f"{folder}: reads a.jsonl, b.jsonl\n" in capsys.readouterr().err
    with pytest.raises(InputError, match="2 data files: a.jsonl, b.jsonl"):
        load_examples(folder)


def test_only_the_files_of_the_split_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "d", train=rows("1"), val=rows("2"), test=rows("3"), more=rows("4"))
    assert [e.answer for e in load_examples(folder, split="train")] == ["1"]
    assert (
        "reads train.jsonl; not read: more.jsonl, test.jsonl, val.jsonl" in capsys.readouterr().err
    )
    splits = load_splits(folder, folder, 0, 0)
    assert [e.answer for e in splits.validation] == ["2"]
    recorded = {"data": str(folder), "validation_data": str(folder)}
    assert [e.answer for e in training_examples(recorded)] == ["1"]
    assert [e.answer for e in validation_examples(recorded)] == ["2"]
    assert len(data_files(folder)) == 4
    (folder / "train.jsonl").unlink()
    assert [e.answer for e in load_examples(folder, split="train")] == ["4"]
    (folder / "more.jsonl").unlink()
    with pytest.raises(InputError, match="holds no train files, but test.jsonl, val.jsonl"):
        load_examples(folder, split="train")


def test_a_bad_row_is_named_with_its_file(tmp_path: Path) -> None:
    folder = write(tmp_path / "d", a=rows("1"), b=rows("2") + '{"prompt": "q"}\n')
    with pytest.raises(DataError, match=r"/b\.jsonl:2: "):
        load_examples(folder, split="train")
    data = read_examples(folder, "skip", split="train")
    assert data.to_json()["skipped"]["first"][0][0] == "b.jsonl:2"


def test_the_identity_is_that_of_all_files(tmp_path: Path) -> None:
    folder = write(tmp_path / "d", a=rows("1"), b=rows("2"), test=rows("3"))
    before = data_identity(data_files(folder, "train"))
    assert data_identity([folder / "a.jsonl"]) == sha256(folder / "a.jsonl")
    (folder / "test.jsonl").write_text(rows("4"))
    assert data_identity(data_files(folder, "train")) == before
    (folder / "b.jsonl").write_text(rows("4"))
    assert data_identity(data_files(folder, "train")) != before


def test_the_only_file_of_a_folder_is_what_the_manifest_names(tmp_path: Path) -> None:
    folder = write(tmp_path / "d", train=rows("1", "2"), test=rows("3"))
    options = TrainOptions(tmp_path, folder, tmp_path / "out", validation_size=1)
    assert read_splits(options)[0].data == folder / "train.jsonl"
    (folder / "train-2.jsonl").write_text(rows("4"))
    options, splits = read_splits(options)
    assert options.data == folder and len(splits.train) == 2


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00002.parquet", "train"), ("data/Training_set.csv", "train"),
        ("valid/x.jsonl", "validation"), ("a_dev.json", "validation"), ("test/train.jsonl", "train"),
        ("eval.jsonl", "test"), ("restrain.jsonl", ""), ("latest.jsonl", ""), ("x.jsonl", ""),
    ],
)  # fmt: skip
def test_split_of(name: str, split: str) -> None:
    assert split_of(name) == split
