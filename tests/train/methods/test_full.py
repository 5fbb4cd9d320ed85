"""A base folder of full fine-tuning: what it holds, and that the rest takes it as a base."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Family

from edgeft import store
from edgeft.errors import TemplateError
from edgeft.export.options import ExportOptions
from edgeft.export.pipeline import export
from edgeft.files import read_json
from edgeft.train.options import TrainOptions
from edgeft.weights.checkpoint import Checkpoint
from helpers.tiny import write_gptq


def train(base: Path, chats: Path, output: Path, method: str = "full", **more: Any) -> Any:
    from edgeft.train.run import train as run

    settings: dict[str, Any] = {
        "steps": 2, "batch_size": 2, "micro_batch_size": 2, "validation_size": 2, "warmup": 0,
        "learning_rate": 1e-3, "save_every": 0, "compute_type": "fp32",
    }  # fmt: skip
    return run(TrainOptions(base, chats, output, **settings | more), method=method)


@pytest.fixture(scope="module")
def full(tiny_base: Path, tiny_chats: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("full") / "model"
    train(tiny_base, tiny_chats, output)
    return output


def test_the_folder_is_a_base_whose_parents_are_recorded(full: Path, tiny_base: Path) -> None:
    manifest = store.read_manifest(full)
    assert manifest is not None and manifest.kind == "base"
    assert manifest.parents["base"] == store.identity(tiny_base)
    assert set(manifest.parents) == {"base", "data"}
    assert manifest.options["method"] == "full" and manifest.facts["trained"] == "every weight"
    before, after = Checkpoint(tiny_base).tensors, Checkpoint(full).tensors
    assert {n: i.shape for n, i in before.items()} == {n: i.shape for n, i in after.items()}
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (full / name).read_bytes() == (tiny_base / name).read_bytes()


def test_inspect_shows_its_training(edgeft: Callable[..., Any], full: Path) -> None:
    facts = json.loads(edgeft("inspect", full, "--json").out)
    assert facts["model"]["architectures"] == ["LlamaForCausalLM"]
    assert facts["lineage"]["method"] == "full" and facts["lineage"]["from base"]
    assert facts["facts"]["trained"] == "every weight"


def test_an_adapter_is_trained_on_it_but_it_is_none(
    full: Path, tiny_chats: Path, tmp_path: Path, edgeft: Callable[..., Any]
) -> None:
    train(full, tiny_chats, tmp_path / "adapter", method="lora")
    ran = edgeft("merge-export", "--adapter", tmp_path / "adapter", "--quant", "q8_0",
                 "--no-compare-live", "--out", tmp_path / "out")  # fmt: skip
    assert ran.code == 0 and "landed: 14 of 14" in ran.err
    ran = edgeft("merge-export", "--adapter", full, "--base", full, "--out", tmp_path / "other")
    assert ran.code == 1 and "--base" in ran.err


def test_a_changed_template_is_refused(full: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in full.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    config = read_json(copy / "tokenizer_config.json")
    config["chat_template"] = config["chat_template"].replace("<|im_end|>", "<|im_start|>")
    (copy / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(TemplateError, match="was trained with"):
        export(ExportOptions(out=tmp_path / "out", base=str(copy), quants=("q8_0",)))


def test_gptq_is_calibrated_on_the_data_of_the_training(full: Path, tmp_path: Path) -> None:
    (artifact,) = export(
        ExportOptions(
            out=tmp_path, base=str(full), quants=("gptq-q4_0",), compare_live=False, threads=1
        )
    )
    assert artifact.manifest.facts["calibration"]["of"] == "the training data"


def test_a_quantized_base_becomes_a_plain_one(
    tiny_base: Path, tiny_chats: Path, tmp_path: Path
) -> None:
    base, _ = write_gptq(tiny_base, tmp_path / "gptq")
    train(base, tiny_chats, tmp_path / "model")
    assert "quantization_config" not in read_json(tmp_path / "model/config.json")
    infos = Checkpoint(tmp_path / "model").tensors.values()
    assert {info.dtype for info in infos} == {"F32"} and len(infos) == 20


@pytest.mark.parametrize(
    "case",
    ["mixtral", *(pytest.param(case, marks=pytest.mark.slow) for case in ("gemma2", "pythia"))],
)
def test_other_families_are_written_under_their_own_names(
    make: Family, tiny_chats: Path, tmp_path: Path, case: str
) -> None:
    base = make(case)[0]
    train(base, tiny_chats, tmp_path / "model")
    before, after = Checkpoint(base).tensors, Checkpoint(tmp_path / "model").tensors
    assert {n: i.shape for n, i in before.items()} == {n: i.shape for n, i in after.items()}
    (artifact,) = export(
        ExportOptions(out=tmp_path, base=str(tmp_path / "model"), quants=("f16",), threads=1)
    )
    assert artifact.manifest.facts["parity"]["live"]["kl"] < 1e-3
