"""A GPTQ folder in every command, compared with transformers on the values of its codes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from edgeft import files, formats, store
from edgeft.converters import repacked
from edgeft.errors import FormatError, InputError, ResourceError
from edgeft.export import pipeline
from edgeft.records import Limits, Message
from edgeft.runtimes.protocol import open_runtime
from helpers.tiny import write_gptq

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def folder(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gptq(tiny_base, tmp_path_factory.mktemp("gptq") / "4bit")[0]


@pytest.fixture(scope="module")
def oracle(tiny_base: Path, folder: Path) -> Any:
    """transformers' model with scale * (code - zero) in its layers, unpacked here by shifts."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    stored = load_file(folder / "model.safetensors")
    parameters = dict(model.named_parameters())
    for name in (name for name in stored if name.endswith("qweight")):
        layer = name.removesuffix("qweight")
        codes = (stored[name][:, None] >> np.arange(0, 32, 4)[:, None]) & 15
        scales = stored[layer + "scales"].astype(np.float32)[stored[layer + "g_idx"]]
        values = scales * (codes.reshape(scales.shape) - 8)
        with torch.no_grad():
            parameters[layer + "weight"].copy_(torch.from_numpy(values.T))
    return model


IDS = list(b"turn on the lamp in room 17, then the other one")


def expected(oracle: Any) -> Any:
    import torch

    with torch.no_grad():
        return oracle(torch.tensor([IDS])).logits[0].numpy()


def test_logits_are_those_of_transformers(folder: Path, oracle: Any) -> None:
    reference = expected(oracle)
    with open_runtime(folder, threads=2, context=128) as model:
        logits = model.logits(IDS)
        assert model.chat.render([Message("user", "hi")]).startswith("<|im_start|>user\nhi")
    # llama.cpp rounds activations to 8 bits in front of a layer of 4; the weights are exact.
    assert np.abs(logits - reference).max() < 0.1 * reference.std()
    assert np.corrcoef(logits.ravel(), reference.ravel())[0, 1] > 0.9995


def test_a_folder_is_repacked_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = repacked.repacked_gguf(folder)
    manifest = store.read_manifest(path)
    assert path.parent == files.home() / "repacked" and manifest
    assert manifest.facts["types"] == {"F16": 1, "F32": 5, "Q4_0": 14}
    assert manifest.facts["inexact"] == 0
    monkeypatch.setattr(repacked, "convert", lambda *_, **__: pytest.fail("again"))
    assert repacked.repacked_gguf(folder) == path
    moved = shutil.copytree(folder, folder.with_name("moved"))
    assert repacked.repacked_gguf(moved) == path, "the same model at another place"


def test_an_interrupted_repack_leaves_nothing(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = write_gptq(tiny_base, tmp_path / "q", bits=2)
    monkeypatch.setenv("EDGEFT_HOME", str(tmp_path / "home"))

    def stopped(merged: Any, plan: Any, out: Path, *_: object) -> None:
        out.write_bytes(b"GGUF")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(repacked, "convert", stopped)
        with pytest.raises(KeyboardInterrupt):
            repacked.repacked_gguf(folder)
    assert not [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert repacked.repacked_gguf(folder).is_file()


def test_repacking_checks_the_free_disk_first(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = write_gptq(tiny_base, tmp_path / "q", bits=8)
    monkeypatch.setenv("EDGEFT_HOME", str(tmp_path / "home"))
    full = shutil._ntuple_diskusage(10**9, 10**9, 1000)  # type: ignore[attr-defined]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(ResourceError, match="repacking .* needs 16.* MB of disk"):
        repacked.repacked_gguf(folder)


def test_layers_that_cannot_be_copied_exactly_are_reported(
    tiny_base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, _ = write_gptq(tiny_base, tmp_path / "q", order=True)
    path = repacked.repacked_gguf(folder)
    assert "14 layers of" in capfd.readouterr().err
    manifest = store.read_manifest(path)
    assert manifest and manifest.facts["types"] == {"F16": 15, "F32": 5}


def test_exact_runs_the_codes_in_float32(folder: Path, oracle: Any, tmp_path: Path) -> None:
    with open_runtime(folder, exact=True) as model:
        np.testing.assert_allclose(model.logits(IDS), expected(oracle), atol=1e-5)
        reply = list(model.stream(IDS, Limits(max_tokens=3)))
        assert len(reply) <= 3
    with pytest.raises(FormatError, match="cannot be computed exactly.*folder of hf or gptq"):
        open_runtime(repacked.repacked_gguf(folder), exact=True)


@pytest.mark.slow
def test_chat_bench_ab_and_inspect_accept_a_gptq_folder(
    edgeft: Run, folder: Path, tmp_path: Path
) -> None:
    items = tmp_path / "items.jsonl"
    items.write_text('{"instruction": "lamp a on", "output": "{}"}\n' * 20)
    for more in ([], ["--reference"]):
        done = subprocess.run(
            [sys.executable, "-m", "edgeft", "chat", folder, "--max-tokens", "4", *more],
            input="hello\n", capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0 and done.stdout.endswith("\n"), done.stderr
    how = ["--items", items, "--limit", 20, "--max-tokens", 4]
    ran = edgeft("ab", folder, repacked.repacked_gguf(folder), *how, "--json")
    baseline, candidate = json.loads(ran.out)["arms"]
    assert candidate["path"] == str(folder)
    assert candidate["accuracy"] == baseline["accuracy"]
    (row,) = json.loads(edgeft("bench", folder, "--json").out)["rows"]
    assert row["name"] == "4bit" and row["speed"]["decode_tps"] > 0
    facts = json.loads(edgeft("inspect", folder, "--json").out)
    assert facts["model"]["format"] == "gptq"
    assert facts["gptq"]["bits"] == 4 and facts["gptq"]["group_size"] == 32
    assert facts["tensors"]["GPTQ"].startswith("14 tensors, 73,728 weights")


def test_a_gptq_folder_is_exported_as_a_base_and_trained_on(
    edgeft: Run, folder: Path, oracle: Any, tmp_path: Path, tiny_chats: Path
) -> None:
    """Exported as a plain folder, with the check against the live model; its values are trained on."""
    out = tmp_path / "out"
    ran = edgeft("merge-export", "--base", folder, "--format", "hf", "--out", out)
    assert ran.code == 0 and "as the live model on 32 prompts" in ran.err, ran.err
    path = out / "hf-f32"
    assert formats.format_of(path).name == "hf"
    assert "quantization_config" not in json.loads((path / "config.json").read_text())
    with open_runtime(path) as model:
        np.testing.assert_allclose(model.logits(IDS), expected(oracle), atol=1e-5)
    # Not auto, which measures the CPU and may choose another type the second time.
    more = ["--data", tiny_chats, "--steps", 2, "--validation-size", 0, "--compute-type", "fp32"]
    for base, adapter in ((folder, tmp_path / "a"), (path, tmp_path / "b")):
        ran = edgeft("train-qlora", "--base", base, "--output", adapter, *more)
        assert ran.code == 0, ran.err
    one, other = ((tmp_path / x / "adapter_model.safetensors").read_bytes() for x in "ab")
    assert one == other, "the same weights are trained on, whether they are stored as codes or not"


def test_another_quantization_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder, tmp_path / "hqq")
    config = json.loads((other / "config.json").read_text())
    config["quantization_config"] |= {"quant_method": "hqq"}
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="is quantized by hqq") as caught:
        pipeline.export(pipeline.ExportOptions(out=tmp_path / "out", base=str(other)))
    assert caught.value.hint.startswith("take the unquantized model")
