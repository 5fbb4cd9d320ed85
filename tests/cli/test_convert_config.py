"""`edgeft convert-config`: what it prints, writes and refuses."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.unit

YAML = """
model_name_or_path: smollm2-135m
do_train: true
quantization_bit: 4
dataset: one,two
template: qwen
output_dir: adapter
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    for name in ("one", "two"):
        (tmp_path / f"{name}.jsonl").write_text('{"instruction": "q", "output": "a"}\n')
    info = {name: {"file_name": f"{name}.jsonl"} for name in ("one", "two")}
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(info))
    for name in ("one", "two"):
        (tmp_path / f"{name}.jsonl").rename(tmp_path / "data" / f"{name}.jsonl")
    (tmp_path / "sft.yaml").write_text(YAML)
    return tmp_path / "sft.yaml"


def test_without_out_the_toml_is_all_of_stdout(edgeft: Callable[..., Any], file: Path) -> None:
    ran = edgeft("convert-config", file)
    assert ran.code == 0
    assert tomllib.loads(ran.out)["train"]["base"] == "smollm2-135m"
    assert "not carried over: template: " in ran.err and "not carried over: dataset: " in ran.err


def test_out_and_data_out_are_written_and_not_replaced(
    edgeft: Callable[..., Any], file: Path, tmp_path: Path
) -> None:
    args = (
        "convert-config",
        file,
        "--out",
        tmp_path / "run.toml",
        "--data-out",
        tmp_path / "d.jsonl",
    )
    ran = edgeft(*args)
    assert ran.code == 0 and ran.out == f"{tmp_path / 'run.toml'}\n"
    assert "2 rows in" in ran.err and "not carried over: dataset" not in ran.err
    table = tomllib.loads((tmp_path / "run.toml").read_text())["train"]
    assert table["data"] == "d.jsonl" and len((tmp_path / "d.jsonl").read_text().splitlines()) == 2
    again = edgeft(*args)
    assert again.code == 1 and "run.toml exists (--overwrite" in again.err
    assert edgeft(*args, "--overwrite").code == 0


def test_json_holds_what_became_of_every_key(edgeft: Callable[..., Any], file: Path) -> None:
    result = json.loads(edgeft("convert-config", file, "--json").out)
    assert result["tool"] == "LLaMA-Factory" and result["out"] is None
    assert result["carried"]["model_name_or_path"] == "base"
    assert set(result["not_carried"]) >= {"template", "dataset"}
    assert tomllib.loads(result["text"]) == {"train": result["options"]}


def test_a_refused_file_leaves_nothing(edgeft: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: 1\n")
    for name, says in (("a.yaml", "no training configuration"), ("b.yaml", "no such file")):
        ran = edgeft("convert-config", tmp_path / name, "--out", tmp_path / "run.toml")
        assert ran.code == 1 and says in ran.err and ran.err.count("\n") == 1
    assert not (tmp_path / "run.toml").exists()
