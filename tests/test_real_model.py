"""The embedded model: its import against llama.cpp's own reading, and its dithered variant."""

from __future__ import annotations

import ctypes
import importlib.resources
from pathlib import Path

import numpy as np
import pytest

from edgeft import store
from edgeft.base import resolve
from edgeft.errors import InputError
from edgeft.models import sources
from edgeft.weights.checkpoint import Checkpoint

TEXT = "The capital of France is Paris. Water boils at 100 degrees, and 7 times 8 is 56."


def packaged() -> Path:
    source = sources()["smollm2-135m"]
    return Path(str(importlib.resources.files(source.package) / source.file))


def test_the_import_is_the_model_that_llama_cpp_reads(tmp_path: Path) -> None:
    import llama_cpp
    from gguf import GGUFReader

    from edgeft.export.pipeline import ExportOptions, export
    from edgeft.runtimes.protocol import open_runtime

    (exported,) = export(
        ExportOptions(out=tmp_path, base="smollm2-135m", quants=("f16",), live=False)
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


@pytest.mark.slow
def test_dither_is_seeded_half_a_step_and_leaves_the_rest() -> None:
    plain = Checkpoint(resolve.resolve("smollm2-135m"))
    folder = resolve.resolve("smollm2-135m-dithered")
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
    again = Checkpoint(resolve.resolve("smollm2-135m", dither_seed=20260101))
    np.testing.assert_array_equal(again.read(name), dithered.read(name))
    other = Checkpoint(resolve.resolve("smollm2-135m", dither_seed=1))
    assert (other.read(name) != dithered.read(name)).mean() > 0.9
    with pytest.raises(InputError, match="no embedded base, only those are dithered"):
        resolve.resolve(str(folder), dither_seed=1)
