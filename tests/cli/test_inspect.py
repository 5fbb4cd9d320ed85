"""`edgeft inspect` and `edgeft models`: what they say is what is there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeft import models
from edgeft.report.describe import describe_folder
from helpers.paths import DOCS

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def artifact(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from edgeft.export.options import ExportOptions
    from edgeft.export.pipeline import export

    out = tmp_path_factory.mktemp("inspected")
    export(ExportOptions(out=out, base=str(tiny_base), quants=("q8_0",), compare_live=False))
    return out / "q8_0.gguf"


def test_inspect_describes_a_gguf(edgeft: Run, artifact: Path) -> None:
    ran = edgeft("inspect", artifact, "--json")
    facts = json.loads(ran.out)
    assert ran.code == 0
    assert facts["model"]["general.architecture"] == "llama"
    assert facts["model"]["llama.block_count"] == 2
    assert facts["tensors"]["Q8_0"].startswith("15 tensors")
    assert facts["tokenizer"]["stops"] == ["<|im_end|>"]
    assert facts["tokenizer"]["pre-tokenizer"] == "smollm"
    assert "<|im_start|>" in facts["template"]["source"]
    assert facts["lineage"]["quant"] == "q8_0"
    shown = edgeft("inspect", artifact).out
    assert "llama.block_count" in shown and "\n  stops" in shown
    assert max(map(len, shown.splitlines())) < 120


def test_inspect_describes_a_folder_and_a_moved_file(
    edgeft: Run, artifact: Path, tiny_base: Path, tmp_path: Path
) -> None:
    facts = json.loads(edgeft("inspect", tiny_base, "--json").out)
    assert facts["model"]["architectures"] == ["LlamaForCausalLM"]
    assert facts["tensors"]["F32"].startswith("20 tensors")
    shutil.copy(artifact, tmp_path / "moved.gguf")
    assert "not made by edgeft, or moved" in edgeft("inspect", tmp_path / "moved.gguf").out


def test_a_format_of_other_files_describes_its_folder_by_types_and_shapes(tiny_base: Path) -> None:
    facts = describe_folder(tiny_base, [("F16", (2, 3)), ("F16", (4,))])
    assert facts["tensors"] == {"F16": "2 tensors, 10 weights", "weights": "10"}
    assert facts["model"] == describe_folder(tiny_base)["model"]


@pytest.mark.parametrize("cut", [0, 100, 3000])
def test_inspect_refuses_other_files(edgeft: Run, artifact: Path, tmp_path: Path, cut: int) -> None:
    (tmp_path / "x.gguf").write_bytes(artifact.read_bytes()[:cut])
    for path, says in (
        (tmp_path / "x.gguf", "not a whole GGUF file"),
        (tmp_path / "nowhere", "no such artifact"),
        (tmp_path, "no .gguf file, no model folder and no adapter"),
    ):
        ran = edgeft("inspect", path)
        assert (ran.code, ran.out) == (1, "")
        assert says in ran.err and len(ran.err.splitlines()) == 1


def test_models_lists_the_cards(edgeft: Run) -> None:
    rows = json.loads(edgeft("models", "--json").out)["families"]
    assert [row["family"] for row in rows] == [card.family for card in models.cards()]
    text = edgeft("models").out
    for card in models.cards():
        assert card.about and card.about in text


def test_the_docs_show_the_matrix(edgeft: Run) -> None:
    page = (DOCS / "families.md").read_text(encoding="utf-8")
    assert f"```text\n{edgeft('models').out}```" in page
