"""GGUF import: a tiny model comes back, the embedded one is as llama.cpp reads it, dither."""

from __future__ import annotations

import ctypes
import importlib.resources
from pathlib import Path

import numpy as np
import pytest
from conftest import Family

from edgeft import store
from edgeft.base import import_gguf, resolve_base
from edgeft.errors import FormatError, InputError
from edgeft.models import sources
from edgeft.tokenizer.hf_files import encoder
from edgeft.weights.checkpoint import Checkpoint
from helpers.serving import exported

TEXT = "The capital of France is Paris. Water boils at 100 degrees, and 7 times 8 is 56."


def packaged() -> Path:
    source = sources()["smollm2-135m"]
    return Path(str(importlib.resources.files(source.package) / source.file))


@pytest.mark.slow
def test_the_import_is_the_model_that_llama_cpp_reads(tmp_path: Path) -> None:
    import llama_cpp
    from gguf import GGUFReader

    from edgeft.export.pipeline import ExportOptions, export
    from edgeft.runtimes.protocol import open_runtime

    (exported,) = export(
        ExportOptions(out=tmp_path, base="smollm2-135m", quants=("f16",), compare_live=False)
    )
    with open_runtime(packaged()) as original, open_runtime(exported.path) as model:
        ids = original.encode(TEXT)
        assert model.encode(TEXT) == ids
        assert model.chat.source == original.chat.source
        assert model.chat.stops == original.chat.stops
        wanted, got = original.logits(ids), model.logits(ids)
    # The original multiplies 8-bit activations, the export half-precision ones; how well they
    # correlate depends on the CPU (.99898 on one with AVX2 alone), so llama.cpp's own f16 decides.
    assert np.abs(wanted - got).max() < 2.0
    assert (wanted.argmax(1) == got.argmax(1)).mean() > 0.9
    how = llama_cpp.llama_model_quantize_default_params()
    how.ftype, how.allow_requantize = llama_cpp.LLAMA_FTYPE_MOSTLY_F16, True
    own = tmp_path / "llama_cpp.gguf"
    assert not llama_cpp.llama_model_quantize(
        str(packaged()).encode(), str(own).encode(), ctypes.byref(how)
    )
    expected = {tensor.name: tensor.data for tensor in GGUFReader(own).tensors}
    tensors = {tensor.name: tensor.data for tensor in GGUFReader(exported.path).tensors}
    assert tensors.keys() == expected.keys()
    for name, data in tensors.items():
        np.testing.assert_array_equal(data, expected[name], err_msg=name)
    with open_runtime(own) as same:
        np.testing.assert_array_equal(same.logits(ids), got)


def test_a_family_that_cannot_be_imported_is_refused(
    make: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEFT_HOME", str(tmp_path))
    (file,) = exported(make("gemma2")[0], tmp_path, "f32")
    with pytest.raises(FormatError, match="GGUF import does not read gemma2"):
        import_gguf(file, "x")
    assert not (tmp_path / "bases").exists() or not list((tmp_path / "bases").iterdir())


def test_an_imported_file_is_the_model_that_was_exported(
    make: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names, rows of rotated heads and the tokenizer come back; matrices are float16 then."""
    monkeypatch.setenv("EDGEFT_HOME", str(tmp_path))
    base = make("llama")[0]
    (file,) = exported(base, tmp_path, "f32")
    folder = import_gguf(file, "again")
    assert folder == tmp_path / "bases" / "again"
    stored, plain = Checkpoint(folder), Checkpoint(base)
    assert stored.tensors.keys() == plain.tensors.keys()
    for name, info in stored.tensors.items():
        dtype = np.float16 if len(info.shape) > 1 else np.float32
        wanted = plain.read(name).astype(dtype).astype(np.float32)
        np.testing.assert_array_equal(stored.read(name), wanted, err_msg=name)
    text = "<|im_start|>user\nturn on lamp 17<|im_end|>"
    assert encoder(folder)(text) == encoder(base)(text)
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert import_gguf(file, "again") == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written, "imported once"


@pytest.mark.slow
def test_dither_is_seeded_half_a_step_and_leaves_the_rest() -> None:
    plain = Checkpoint(resolve_base("smollm2-135m"))
    folder = resolve_base("smollm2-135m-dithered")
    dithered = Checkpoint(folder)
    manifest = store.read_manifest(folder)
    assert manifest is not None
    assert manifest.options["dither_seed"] == 20260101
    assert "claims about quantization" in manifest.facts["about"]
    embedding = "model.embed_tokens.weight"
    np.testing.assert_array_equal(plain.read(embedding), dithered.read(embedding))
    name = "model.layers.3.mlp.up_proj.weight"
    noise = (dithered.read(name) - plain.read(name)).reshape(-1, 32)
    # 16 levels of a block span its range, so half a step is a thirtieth of the range.
    blocks = plain.read(name).reshape(-1, 32)
    spread = blocks.max(1) - blocks.min(1)
    assert (np.abs(noise).max(1) <= spread / 15 * 0.75 + 1e-3).mean() > 0.99
    assert abs(noise.mean()) < 1e-4
    assert noise.std() > 1e-3
    again = Checkpoint(resolve_base("smollm2-135m", dither_seed=20260101))
    np.testing.assert_array_equal(again.read(name), dithered.read(name))
    other = Checkpoint(resolve_base("smollm2-135m", dither_seed=1))
    assert (other.read(name) != dithered.read(name)).mean() > 0.9
    with pytest.raises(InputError, match="no embedded base, only those are dithered"):
        resolve_base(str(folder), dither_seed=1)
