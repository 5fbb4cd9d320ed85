"""The oracle is llama.cpp: `llama_model_quantize` of the same wheel, on tiny random models."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgeft.errors import EdgeftError, FormatError
from edgeft.formats import FORMATS, GPTQ_PREFIX
from edgeft.quantization import ggml
from edgeft.quantization.ggml import quantize
from edgeft.quantization.tensor_types import (
    FILE_TYPE,
    NEEDS_IMATRIX,
    TENSOR_TYPES,
    choose_tensor_types,
    needs_importance,
)
from helpers.llama_quantize import gguf_type, llama_quantize, read

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

WIDE_FFN_DOWN: dict[str, tuple[int, ...]] = {
    f"blk.{layer}.ffn_down.weight": (ROWS, 256) for layer in range(9)
}

MODELS = {
    "dense": Model(layers=18, kv_heads=2),
    "two-layers": Model(layers=2, kv_heads=4),
    "tied": Model(layers=9, tied=True),
    "blocks-of-32": Model(layers=9, width=288),
    "tied-blocks-of-32": Model(layers=9, width=96, tied=True),
    "two-widths": Model(layers=9, width=96, extra=WIDE_FFN_DOWN),
    "no-blocks": Model(layers=9, width=72, tied=True),
    "eight-experts": Model(layers=17, experts=8, kv_heads=2),
    "eight-experts-blocks-of-32": Model(layers=3, width=32, experts=8),
    "four-experts": Model(layers=15, experts=4),
    "hybrid": Model(layers=18, arch="qwen2", attention_every=3),
    "oddities": Model(layers=11, extra=ODDITIES, tied=True),
    "falcon": Model(layers=18, arch="falcon", matrices=FALCON, kv_heads=1),
    "falcon-experts": Model(layers=2, arch="falcon", matrices=FALCON, experts=8),
    "tied-falcon": Model(
        layers=31, width=64, arch="falcon", matrices=FALCON, kv_heads=1, tied=True
    ),
    "70b": Model(layers=80, width=32, matrices=("attn_v",), kv_heads=1),
    "65b": Model(layers=80, width=32, matrices=("attn_v",)),
    "72b-qwen2": Model(layers=80, width=32, matrices=("attn_v",), arch="qwen2"),
    "deci": Model(layers=80, width=32, matrices=("attn_v",), arch="deci"),
    "olmo": Model(layers=80, width=32, matrices=("attn_v",), arch="olmo"),
    "jais2": Model(layers=68, width=32, matrices=("attn_v",), arch="jais2"),
}

SIZES = ("65b", "72b-qwen2", "deci", "olmo", "jais2")
"""models about one question: is it one that llama.cpp calls a 70B?"""

WITH_IMATRIX = ("dense", "blocks-of-32", "oddities", "eight-experts", "four-experts", "falcon")


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


@dataclass(frozen=True)
class Case:
    model: Model
    tensors: dict[str, Array]
    importance: dict[str, Array]
    """of every matrix but the embedding, as llama-imatrix leaves it"""
    source: Path
    kept: dict[tuple[str, int, bool], bytes] = field(default_factory=dict)

    def raw(self, name: str, qtype: Any, imatrix: bool) -> bytes:
        key = (name, int(qtype), imatrix)
        if key not in self.kept:
            weights = self.importance.get(name) if imatrix else None
            self.kept[key] = quantize(self.tensors[name], qtype, 1, weights).tobytes()
        return self.kept[key]

    def check(
        self, quant: str, oracle: Path, imatrix: bool, overrides: Sequence[tuple[str, str]] = ()
    ) -> None:
        """llama-quantize and we agree on the types and bytes, or both refuse for the imatrix."""
        shapes = dict(reversed(self.model.shapes().items()))
        facts = self.model.facts() | {"imatrix": imatrix, "overrides": overrides}
        if not llama_quantize(
            self.source, oracle, quant, self.importance if imatrix else None, overrides
        ):
            assert not imatrix
            with pytest.raises(FormatError, match=r"importance matrix.*\(--imatrix auto\)"):
                choose_tensor_types(quant, shapes, **facts)
            return
        file_type, expected = read(oracle)
        types = choose_tensor_types(quant, shapes, **facts)
        assert FILE_TYPE[quant] == file_type
        assert {name: int(kind) for name, kind in types.items()} == {
            name: kind for name, (kind, _) in expected.items()
        }
        assert list(types) == list(expected)
        for name, qtype in types.items():
            assert self.raw(name, qtype, imatrix) == expected[name][1], name


def make_case(model: Model, folder: Path) -> Case:
    shapes = model.shapes()
    tensors = {name: random_values(shape, i) for i, (name, shape) in enumerate(shapes.items())}
    write(folder / "f32.gguf", model, tensors)
    rng = np.random.default_rng(7)
    importance = {
        name: rng.random((*shape[:-2], shape[-1]), np.float32) ** 4
        for name, shape in shapes.items()
        if len(shape) > 1 and name not in ("token_embd.weight", "per_layer_token_embd.weight")
    }
    return Case(model, tensors, importance, folder / "f32.gguf")


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    """Makes each model once."""
    return functools.cache(lambda name: make_case(MODELS[name], tmp_path_factory.mktemp(name)))


def runs() -> Iterator[Any]:
    """Every model with every quantization, less what cannot differ.

    With an imatrix iq3_xxs has tensors of IQ2_S, whose grid takes seconds to build.
    """
    for name in MODELS:
        quants = ("q3_k_s", "q4_k_m", "q5_k_s") if name in SIZES else FILE_TYPE
        for quant in quants:
            yield name, quant, False
            if name in WITH_IMATRIX:
                slow = quant == "iq3_xxs"
                yield pytest.param(name, quant, True, marks=pytest.mark.slow if slow else ())


@pytest.mark.parametrize(("name", "quant", "imatrix"), list(runs()))
def test_types_and_bytes_are_those_of_llama_quantize(
    case: Callable[[str], Case], name: str, quant: str, imatrix: bool, tmp_path: Path
) -> None:
    case(name).check(quant, tmp_path / "oracle.gguf", imatrix)


OVERRIDES = {
    "anywhere-in-the-name": [("attn_v", "q8_0")],
    "the-first-wins": [(r"blk\.[0-3]\.ffn_down", "q3_k"), ("ffn_(down|up)", "q6_k"), ("f", "q4_1")],
    "not-counted-as-layers": [(r"blk\.[0-2]\.(ffn_down|attn_v)", "iq4_nl")],
    "above-the-output-rule": [("output", "q4_k"), ("token_embd", "q2_k")],
    "types-without-blocks": [
        (r"^blk\.\d\.attn_q\.weight$", "f32"),
        ("k|gate", "bf16"),
        ("o", "f16"),
    ],
    "fallbacks": [("attn", "iq3_s"), ("ffn_up", "tq2_0"), ("down", "iq4_xs"), ("gate", "q5_k")],
    "needs-imatrix": [(r"\.3\.ffn", "iq3_xxs")],
    "matches-nothing": [("^attn_v", "q8_0")],
}


@pytest.mark.parametrize(
    "name", ["dense", "oddities", "blocks-of-32", "no-blocks", "eight-experts"]
)
@pytest.mark.parametrize("overrides", OVERRIDES.values(), ids=OVERRIDES)
def test_overrides_are_llama_quantizes_tensor_types(
    case: Callable[[str], Case], name: str, overrides: list[tuple[str, str]], tmp_path: Path
) -> None:
    for quant, imatrix in (("q4_k_s", False), ("q3_k_m", True), ("f16", False)):
        case(name).check(quant, tmp_path / "oracle.gguf", imatrix, overrides)


def test_overrides_are_read_like_the_command_line() -> None:
    model = MODELS["dense"]
    shout = choose_tensor_types(
        "q4_k_m", model.shapes(), **model.facts(), overrides=[("ATTN_V", "Q3_K")]
    )
    assert shout["blk.0.attn_v.weight"].name == "Q3_K"
    assert shout["blk.0.attn_q.weight"].name == "Q4_K"


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        (("attn_v", "q8_k"), "no tensor type 'q8_k'.*did you mean 'q"),
        (("attn_v", "q4_k_m"), "did you mean 'q4_k'"),
        (("attn_v", "i32"), "known: bf16"),
        (("attn_(v", "q8_0"), r"'attn_\(v' is not a regular expression"),
        (("ffn_up", "nvfp4"), "blk.0.ffn_up.weight: NVFP4 needs a multiple of 64 columns"),
        (("ffn_up", "iq2_s"), "importance matrix: blk.0.ffn_up.weight becomes IQ2_S"),
        (("token_embd", "iq2_xs"), "importance matrix: token_embd.weight becomes IQ2_XS"),
    ],
)
def test_overrides_that_cannot_be_are_refused(override: tuple[str, str], problem: str) -> None:
    model = Model(layers=1, width=256 if override[1].startswith("iq2") else 96)
    with pytest.raises(FormatError, match=problem):
        choose_tensor_types("q4_0", model.shapes(), **model.facts(), overrides=[override])


QUICK = tuple(kind for kind in TENSOR_TYPES if not kind.startswith(("iq1", "iq2")))
"""the grids of the others take seconds to build"""


@pytest.mark.parametrize("width", [256, 320, 16])
@pytest.mark.parametrize("kinds", [QUICK, pytest.param(TENSOR_TYPES, marks=pytest.mark.slow)])
def test_every_tensor_type_is_llama_quantizes(
    width: int, kinds: tuple[str, ...], tmp_path: Path
) -> None:
    if width % 64:
        kinds = tuple(kind for kind in kinds if kind != "nvfp4")
    overrides = [(rf"^blk\.{layer}\.", kind) for layer, kind in enumerate(kinds)]
    made = make_case(Model(layers=len(kinds), width=width, matrices=("ffn_up",)), tmp_path)
    made.check("q4_0", tmp_path / "oracle.gguf", True, overrides)


def test_a_type_without_a_fallback_is_refused_by_llama_quantize_too(tmp_path: Path) -> None:
    made = make_case(Model(layers=1, width=96), tmp_path)
    nvfp4 = [("ffn_up", "nvfp4")]
    assert not llama_quantize(made.source, tmp_path / "oracle.gguf", "q4_0", None, nvfp4)


def test_which_quantizations_need_an_imatrix() -> None:
    def refused(quant: str, name: str) -> bool:
        try:
            choose_tensor_types(quant, MODELS[name].shapes(), **MODELS[name].facts())
        except FormatError:
            return True
        return False

    assert {quant for quant in FILE_TYPE if refused(quant, "dense")} == NEEDS_IMATRIX
    assert not any(refused(quant, "blocks-of-32") for quant in FILE_TYPE)


@pytest.mark.parametrize(
    "quant", [pytest.param("iq3_xxs", marks=pytest.mark.slow), "q2_k_s", "iq3_m"]
)
def test_which_tensors_need_importance(quant: str, tmp_path: Path) -> None:
    """A matrix of importance that lacks one tensor is refused if that tensor needs it."""
    made = make_case(Model(layers=1), tmp_path)
    types = choose_tensor_types(quant, made.model.shapes(), **made.model.facts(), imatrix=True)
    for name in made.importance:
        others = {other: made.importance[other] for other in made.importance if other != name}
        accepted = llama_quantize(made.source, tmp_path / "oracle.gguf", quant, others)
        assert accepted is not needs_importance(quant, name, types[name]), name


def test_the_models_use_every_type_of_the_mixtures() -> None:
    def used(quant: str, *models: str) -> set[str]:
        return {
            kind.name
            for model in models or MODELS
            for kind in choose_tensor_types(
                quant, MODELS[model].shapes(), **MODELS[model].facts()
            ).values()
        }

    assert used("q4_k_m", "dense") == {"F32", "Q4_K", "Q6_K"}
    assert used("q4_k_s", "dense") == {"F32", "Q4_K", "Q5_K", "Q6_K"}
    assert used("q4_k_m", "falcon") == {"F32", "Q4_K", "Q5_K", "Q6_K", "Q8_0"}
    assert used("q4_k_m", "blocks-of-32") == {"F32", "Q5_0", "Q8_0"}
    assert used("q4_0", "no-blocks") == {"F32", "F16"}
    assert used("q4_k_m", "70b") == {"F32", "Q5_0", "Q5_1", "Q8_0"}
    assert used("q4_k_m", "65b") == {"F32", "Q5_0", "Q8_0"}


def test_a_quantization_without_rules_is_refused() -> None:
    with pytest.raises(FormatError, match=r"'q3_k'.*did you mean 'q3_k_"):
        choose_tensor_types("q3_k", MODELS["dense"].shapes(), **MODELS["dense"].facts())


def test_every_quantization_of_the_format_table_has_a_file_type() -> None:
    row = FORMATS["gguf"]
    assert set(FILE_TYPE) == set(row.quants) - {*row.solved, row.sized}
    assert {quant.removeprefix(GPTQ_PREFIX) for quant in row.solved} <= set(FILE_TYPE)


UNWEIGHTED = ("f32", "f16", "bf16", "q8_0", "mxfp4", "nvfp4", "tq2_0", "tq1_0")
"""types whose bytes do not look at importance"""


@pytest.mark.parametrize("kind", QUICK)
@pytest.mark.parametrize("weighted", [False, True])
def test_blocks_of_rows_and_threads_change_nothing(
    kind: str, weighted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    qtype = gguf_type(kind.upper())
    rng = np.random.default_rng(3)
    values = rng.standard_normal((3, 11, 256), np.float32)
    weights = rng.random((3, 256), np.float32) ** 4 if weighted else None
    whole = quantize(values, qtype, 1, weights)
    assert whole.shape[:-1] == (3, 11)
    for expert in range(3):
        of_expert = None if weights is None else weights[expert]
        for start, stop in ((0, 11), (0, 1), (1, 6), (6, 11)):
            part = quantize(values[expert, start:stop], qtype, 1, of_expert)
            assert np.array_equal(part, whole[expert, start:stop])
        assert np.array_equal(quantize(values[expert, 4], qtype, 1, of_expert), whole[expert, 4])
    monkeypatch.setattr(ggml, "CHUNK_BYTES", 4 * 256 * 4)
    for threads in (1, 2, 5):
        assert np.array_equal(quantize(values, qtype, threads, weights), whole)
    if weights is not None:
        same = np.array_equal(quantize(values, qtype, 1, weights[::-1]), whole)
        assert same == (kind in UNWEIGHTED)


@pytest.mark.parametrize("kind", QUICK)
def test_the_way_back_is_gguf_dequantize(kind: str) -> None:
    from gguf import dequantize

    values = np.random.default_rng(4).standard_normal((4, 512), np.float32)
    qtype = gguf_type(kind.upper())
    back = dequantize(quantize(values, qtype, 2), qtype)
    assert back.shape == values.shape
    assert np.std(back - values) < (0.9 if kind.startswith("tq") else 0.35)


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
        (lambda ones: quantize(ones, gguf_type("Q8_0"), 1, ones), "importance"),
        (lambda ones: quantize(ones[None], gguf_type("Q8_0"), 1, ones[0]), "importance"),
        (lambda ones: quantize(ones, gguf_type("Q8_0"), 1, ones[0] * np.nan), "importance"),
        (lambda ones: quantize(np.ones((2, 256)), gguf_type("IQ2_XS"), 1), "needs importance"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(call: Callable[[Array], Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        call(np.ones((2, 96), np.float32))


@pytest.mark.parametrize(
    "kind", [pytest.param("IQ2_S", marks=pytest.mark.slow), "IQ3_XXS", "IQ3_S"]
)
def test_what_would_make_ggml_end_the_process_is_refused(kind: str) -> None:
    values = np.random.default_rng(6).standard_normal((2, 256), np.float32)
    weights = np.ones(256, np.float32)
    for importance in (weights - 2, weights * 1e38):
        with pytest.raises(ValueError, match="between 0 and 1e\\+18"):
            quantize(values, gguf_type(kind), 1, importance)
    with pytest.raises(ValueError, match="too large"):
        quantize(values * 1e20, gguf_type(kind), 1)
    extreme = values / np.abs(values).max()
    quantize(extreme, gguf_type(kind), 1, weights * 1e18)
    with pytest.raises(ValueError, match="too large"):
        quantize(extreme * np.float32(1e8), gguf_type(kind), 1, weights * 1e18)


def test_slices_and_empty_tensors() -> None:
    values = np.random.default_rng(5).standard_normal((6, 128), np.float32)
    part = values[::2, 32:96]
    expected = quantize(part.copy(), gguf_type("Q8_0"), 1)
    assert np.array_equal(quantize(part, gguf_type("Q8_0"), 1), expected)
    assert quantize(values[:0], gguf_type("Q8_0"), 1).shape == (0, 136)
    assert quantize(values[None, :0], gguf_type("Q8_0"), 1).shape == (1, 0, 136)


@pytest.mark.parametrize("content", [None, b"not a library"])
def test_a_missing_or_broken_library_is_a_user_error(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    if content:
        (tmp_path / "lib").mkdir()
        (tmp_path / "lib" / "libggml-base.so").write_bytes(content)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    ggml._library.cache_clear()
    try:
        with pytest.raises(EdgeftError, match="libggml-base"):
            quantize(np.ones((1, 32), np.float32), gguf_type("Q8_0"), 1)
    finally:
        ggml._library.cache_clear()


def test_one_thread_is_the_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    from gguf import GGMLQuantizationType

    values = np.random.default_rng(0).normal(size=(2, 5, 64)).astype(np.float32)
    qtype = GGMLQuantizationType.Q8_0
    monkeypatch.setattr(ggml, "CHUNK_BYTES", 4 * 64 * 2)  # 2 rows
    wanted = quantize(values, qtype, threads=2)
    monkeypatch.setattr(ggml, "ThreadPoolExecutor", None)
    np.testing.assert_array_equal(quantize(values, qtype, threads=1), wanted)
    values[1, 4, 3] = np.nan
    with pytest.raises(ValueError, match="not every value is finite"):
        quantize(values, qtype, threads=1)
    with pytest.raises(TypeError):
        quantize(values, qtype, threads=2)
