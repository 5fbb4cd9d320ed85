"""The oracle is llama.cpp: `llama_model_quantize` of the same wheel, on tiny random models."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgeft.converters import _ggml
from edgeft.converters._ggml import FILE_TYPE, mixture, quantize
from edgeft.errors import EdgeftError, FormatError
from edgeft.formats import FORMATS

Array = npt.NDArray[np.float32]
ROWS = 3
OTHER_MATRICES = ("attn_output", "ffn_gate", "ffn_up", "ffn_down")
FALCON = ("attn_qkv", *OTHER_MATRICES)
FACTS = ("arch", "layers", "heads", "kv_heads", "experts")


@dataclass(frozen=True)
class Model:
    """A decoder whose matrices have few rows: nothing here runs it."""

    layers: int
    width: int = 256
    arch: str = "llama"
    heads: int = 8
    kv_heads: int = 8
    experts: int = 0
    tied: bool = False
    matrices: tuple[str, ...] = ("attn_q", "attn_k", "attn_v", *OTHER_MATRICES)
    attention_every: int = 1
    extra: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        shapes = {"token_embd.weight": (5, self.width), "output_norm.weight": (self.width,)}
        if not self.tied:
            shapes["output.weight"] = (5, self.width)
        for layer in range(self.layers):
            attention = layer % self.attention_every == 0
            matrices = self.matrices if attention else OTHER_MATRICES
            if self.experts:
                shapes[f"blk.{layer}.ffn_gate_inp.weight"] = (self.experts, self.width)
            for name in matrices:
                # the first layer of a mixture of experts is often a dense one
                if self.experts and name.startswith("ffn") and layer:
                    shape = (self.experts, ROWS, self.width)
                    shapes[f"blk.{layer}.{name}_exps.weight"] = shape
                    name += "_shexp"
                shapes[f"blk.{layer}.{name}.weight"] = (ROWS, self.width)
            shapes[f"blk.{layer}.attn_norm.weight"] = (self.width,)
            shapes[f"blk.{layer}.attn_q.bias"] = (self.width,)
        return shapes | self.extra

    def facts(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in FACTS}


ODDITIES: dict[str, tuple[int, ...]] = {
    "blk.0.attn_q_norm.weight": (ROWS, 256),
    "blk.0.ssm_conv1d.weight": (ROWS, 256),
    "blk.0.shortconv.conv.weight": (ROWS, 256),
    "blk.0.time_mix_w1.weight": (ROWS, 256),
    "blk.0.time_mix_key.weight": (ROWS, 256),
    "blk.0.laurel_l.weight": (ROWS, 256),
    "blk.0.ffn_down.scale": (ROWS, 256),
    "blk.0.ssm_in.weight": (1, 256),
    "blk.0.ssm_out.weight": (2, 2, 256),
    "blk.1.attn_kv_b.weight": (ROWS, 256),
    "blk.2.attn_v.weight": (1, 256),
    "enc.blk.1.attn_v.weight": (ROWS, 256),
    "position_embd.weight": (ROWS, 256),
    "token_types.weight": (ROWS, 256),
    "per_layer_token_embd.weight": (ROWS, 256),
    "per_layer_model_proj.weight": (ROWS, 256),
}

MODELS = {
    "dense": Model(layers=18, kv_heads=2),
    "two-layers": Model(layers=2, kv_heads=4),
    "tied": Model(layers=9, tied=True),
    "blocks-of-32": Model(layers=9, width=288),
    "tied-blocks-of-32": Model(layers=9, width=96, tied=True),
    "no-blocks": Model(layers=9, width=72, tied=True),
    "eight-experts": Model(layers=17, experts=8, kv_heads=2),
    "eight-experts-blocks-of-32": Model(layers=3, width=32, experts=8),
    "four-experts": Model(layers=17, experts=4),
    "hybrid": Model(layers=18, arch="qwen2", attention_every=3),
    "oddities": Model(layers=11, extra=ODDITIES, tied=True),
    "falcon": Model(layers=18, arch="falcon", matrices=FALCON, kv_heads=1),
    "falcon-experts": Model(layers=2, arch="falcon", matrices=FALCON, experts=8),
    "tied-falcon": Model(
        layers=33, width=64, arch="falcon", matrices=FALCON, kv_heads=1, tied=True
    ),
    "70b": Model(layers=80, width=32, matrices=("attn_v",), kv_heads=1),
    "65b": Model(layers=80, width=32, matrices=("attn_v",)),
    "72b-qwen2": Model(layers=80, width=32, matrices=("attn_v",), arch="qwen2"),
    "deci": Model(layers=80, width=32, matrices=("attn_v",), arch="deci"),
    "olmo": Model(layers=80, width=32, matrices=("attn_v",), arch="olmo"),
    "jais2": Model(layers=68, width=32, matrices=("attn_v",), arch="jais2"),
}


@pytest.fixture(scope="module", autouse=True)
def silence() -> Iterator[None]:
    import llama_cpp
    from llama_cpp._logger import llama_log_callback

    say_nothing = llama_cpp.llama_log_callback(lambda level, text, user_data: None)
    llama_cpp.llama_log_set(say_nothing, ctypes.c_void_p(0))
    yield
    llama_cpp.llama_log_set(llama_log_callback, ctypes.c_void_p(0))


def random_values(shape: tuple[int, ...], seed: int) -> Array:
    """Weights of several magnitudes, with a row of zeros and numbers that float16 flattens."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(shape, np.float32) * np.float32(10.0 ** rng.integers(-4, 2))
    if len(shape) > 1:
        values.reshape(-1, shape[-1])[0] = 0
        values.reshape(-1)[-3:] = (1e-8, -1e-40, 65504.0)
    return values


def write(path: Path, model: Model, tensors: dict[str, Array]) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(path, model.arch)
    writer.add_context_length(8)
    writer.add_embedding_length(model.width)
    writer.add_block_count(model.layers)
    writer.add_feed_forward_length(ROWS)
    writer.add_head_count(model.heads)
    writer.add_head_count_kv(model.kv_heads)
    writer.add_layer_norm_eps(1e-5)
    writer.add_layer_norm_rms_eps(1e-5)
    if model.experts:
        writer.add_expert_count(model.experts)
        writer.add_expert_used_count(2)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama_quantize(
    source: Path, target: Path, quant: str, importance: dict[str, Array] | None = None
) -> bool:
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread = 1
    params.ftype = FILE_TYPE[quant]
    if importance:
        entry = llama_cpp.llama_model_imatrix_data
        table = (entry * (len(importance) + 1))()
        for slot, (name, weights) in zip(table, importance.items(), strict=False):
            slot.name, slot.size = name.encode(), weights.size
            slot.data = weights.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        params.imatrix = table
    status = llama_cpp.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(params)
    )
    return bool(status == 0)


def read(path: Path) -> tuple[int, dict[str, tuple[int, bytes]]]:
    from gguf import GGUFReader

    reader = GGUFReader(path)
    tensors = {t.name: (int(t.tensor_type), t.data.tobytes()) for t in reader.tensors}
    return int(reader.fields["general.file_type"].contents()), tensors


@pytest.fixture(scope="module", params=MODELS)
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Model, dict[str, Array], Path]:
    model = MODELS[request.param]
    shapes = model.shapes()
    tensors = {name: random_values(shape, i) for i, (name, shape) in enumerate(shapes.items())}
    path = tmp_path_factory.mktemp("f32") / "model.gguf"
    write(path, model, tensors)
    return model, tensors, path


@pytest.mark.parametrize("quant", FILE_TYPE)
def test_types_and_bytes_are_those_of_llama_quantize(
    case: tuple[Model, dict[str, Array], Path], quant: str, tmp_path: Path
) -> None:
    model, tensors, source = case
    assert llama_quantize(source, tmp_path / "oracle.gguf", quant)
    file_type, expected = read(tmp_path / "oracle.gguf")
    shapes = dict(reversed(model.shapes().items()))
    types = mixture(quant, shapes, **model.facts())
    assert FILE_TYPE[quant] == file_type
    assert {name: int(kind) for name, kind in types.items()} == {
        name: kind for name, (kind, _) in expected.items()
    }
    assert list(types) == list(expected)
    for name, values in tensors.items():
        assert quantize(values, types[name], threads=1).tobytes() == expected[name][1], name


def test_the_models_use_every_type_of_the_mixtures() -> None:
    def used(quant: str, *models: str) -> set[str]:
        return {
            kind.name
            for model in models or MODELS
            for kind in mixture(quant, MODELS[model].shapes(), **MODELS[model].facts()).values()
        }

    assert used("q4_k_m", "dense") == {"F32", "Q4_K", "Q6_K"}
    assert used("q4_k_s", "dense") == {"F32", "Q4_K", "Q5_K", "Q6_K"}
    assert used("q4_k_m", "falcon") == {"F32", "Q4_K", "Q5_K", "Q6_K", "Q8_0"}
    assert used("q4_k_m", "blocks-of-32") == {"F32", "Q5_0", "Q8_0"}
    assert used("q4_0", "no-blocks") == {"F32", "F16"}
    assert used("q4_k_m", "70b") == {"F32", "Q5_0", "Q5_1", "Q8_0"}
    assert used("q4_k_m", "65b") == {"F32", "Q5_0", "Q8_0"}


def test_a_quantization_without_rules_is_refused() -> None:
    with pytest.raises(FormatError, match="q3_k_m"):
        mixture("q3_k_m", MODELS["dense"].shapes(), **MODELS["dense"].facts())


def test_every_quantization_of_the_format_table_has_a_file_type() -> None:
    assert set(FILE_TYPE) == set(FORMATS["gguf"].quants)


@pytest.mark.parametrize("quant", ["q4_k_s", "q5_k_m", "q6_k", "q8_0", "q5_1"])
def test_importance_is_llama_quantizes_imatrix(quant: str, tmp_path: Path) -> None:
    model = Model(layers=1)
    tensors = {name: random_values(shape, 1) for name, shape in model.shapes().items()}
    name = "blk.0.ffn_up.weight"
    weights = np.random.default_rng(2).random(256, np.float32) ** 4
    write(tmp_path / "f32.gguf", model, tensors)
    assert llama_quantize(
        tmp_path / "f32.gguf", tmp_path / "oracle.gguf", quant, importance={name: weights}
    )
    kind, expected = read(tmp_path / "oracle.gguf")[1][name]
    raw = quantize(tensors[name], gguf_type(kind), 1, weights)
    assert raw.tobytes() == expected
    if quant != "q8_0":
        assert raw.tobytes() != quantize(tensors[name], gguf_type(kind), 1).tobytes()


def gguf_type(kind: int | str) -> Any:
    from gguf import GGMLQuantizationType

    return GGMLQuantizationType[kind] if isinstance(kind, str) else GGMLQuantizationType(kind)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_K"])
def test_the_number_of_threads_changes_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(3).standard_normal((2, 31, 256), np.float32)
    whole = quantize(values, gguf_type(kind), 1)
    assert whole.shape[:-1] == (2, 31)
    monkeypatch.setattr(_ggml, "CHUNK_BYTES", 4 * 256 * 4)
    for threads in (1, 2, 5):
        assert np.array_equal(quantize(values, gguf_type(kind), threads), whole)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_K", "Q5_K", "Q6_K"])
def test_the_way_back_is_gguf_dequantize(kind: str) -> None:
    from gguf import dequantize

    values = np.random.default_rng(4).standard_normal((4, 512), np.float32)
    back = dequantize(quantize(values, gguf_type(kind), 2), gguf_type(kind))
    assert back.shape == values.shape
    assert np.abs(back - values).max() < 0.4


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q6_K"])
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_input_that_is_not_finite_is_refused(kind: str, poison: float) -> None:
    values = np.ones((2, 256), np.float32)
    values[1, 7] = poison
    with pytest.raises(ValueError, match="finite"):
        quantize(values, gguf_type(kind), 2)


@pytest.mark.parametrize(
    ("quant", "large"), [("f16", 65520.0), ("q8_0", 1e7), ("q4_0", 1e6), ("bf16", 3.4e38)]
)
def test_overflow_is_refused_where_llama_quantize_refuses(
    quant: str, large: float, tmp_path: Path
) -> None:
    model = Model(layers=1)
    tensors = {name: np.ones(shape, np.float32) for name, shape in model.shapes().items()}
    name = "blk.0.ffn_up.weight"
    tensors[name][1, 7] = large
    write(tmp_path / "f32.gguf", model, tensors)
    assert not llama_quantize(tmp_path / "f32.gguf", tmp_path / "oracle.gguf", quant)
    with pytest.raises(ValueError, match="too large"):
        quantize(tensors[name], gguf_type(quant.upper()), 1)


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (lambda ones: quantize(ones, gguf_type("Q4_K"), 1), "multiple of 256"),
        (lambda ones: quantize(ones, gguf_type("Q8_0"), 1, ones[0, :9]), "importance"),
        (lambda ones: quantize(ones, gguf_type("Q8_0"), 1, ones[0] * np.inf), "importance"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(call: Callable[[Array], Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        call(np.ones((2, 96), np.float32))


def test_slices_and_empty_tensors() -> None:
    values = np.random.default_rng(5).standard_normal((6, 128), np.float32)
    part = values[::2, 32:96]
    expected = quantize(part.copy(), gguf_type("Q8_0"), 1)
    assert np.array_equal(quantize(part, gguf_type("Q8_0"), 1), expected)
    assert quantize(values[:0], gguf_type("Q8_0"), 1).shape == (0, 136)


@pytest.mark.parametrize("content", [None, b"not a library"])
def test_a_missing_or_broken_library_is_a_user_error(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    if content:
        (tmp_path / "lib").mkdir()
        (tmp_path / "lib" / "libggml-base.so").write_bytes(content)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    _ggml._library.cache_clear()
    try:
        with pytest.raises(EdgeftError, match="libggml-base"):
            quantize(np.ones((1, 32), np.float32), gguf_type("Q8_0"), 1)
    finally:
        _ggml._library.cache_clear()
