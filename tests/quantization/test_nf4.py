"""The oracle is bitsandbytes on the CPU; every value has to be equal."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgeft.base import resolve_base
from edgeft.errors import InputError
from edgeft.quantization import nf4
from edgeft.weights.checkpoint import Checkpoint, stored_as

Array = npt.NDArray[np.float32]
TYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
KINDS: tuple[nf4.QuantType, ...] = ("nf4", "fp4")
SHAPES: list[tuple[int, ...]] = [
    (64,), (1,), (2, 1), (63,), (65,), (7, 64), (1, 100), (3, 5, 64), (130, 97), (40, 96), (64, 576),
    (257, 512),
]  # fmt: skip
every_kind = pytest.mark.parametrize(
    ("kind", "double_quant"), list(itertools.product(KINDS, (False, True)))
)


def some(shape: tuple[int, ...], scale: float = 0.02, seed: int = 3) -> Array:
    """Like a language model's weights: normal, one in 500 far out."""
    random = np.random.default_rng(seed)
    weight = random.standard_normal(shape) * scale
    weight[random.random(shape) < 0.002] *= 30
    return weight.astype(np.float32)


def oracle(
    weight: Array,
    kind: nf4.QuantType = "nf4",
    double_quant: bool = True,
    blocksize: int = nf4.BLOCK,
    dtype: str = "F32",
) -> Array:
    import torch
    from bitsandbytes.backends.default.ops import _dequantize_4bit_compute, _get_4bit_code
    from bitsandbytes.functional import dequantize_4bit, dequantize_blockwise, quantize_4bit

    packed, state = quantize_4bit(
        torch.from_numpy(weight.copy()).to(getattr(torch, TYPES[dtype])),
        blocksize=blocksize, compress_statistics=double_quant, quant_type=kind,
    )  # fmt: skip
    if weight.shape[-1] % blocksize == 0 and blocksize < 2048:
        seen = dequantize_4bit(packed, state)
    else:  # the x86 kernel cannot do these (wrong values, or it hands on to this function)
        maxima = state.absmax
        if double_quant:
            maxima = dequantize_blockwise(state.absmax, state.state2) + state.offset
        seen = _dequantize_4bit_compute.__wrapped__(
            packed.reshape(-1), maxima, _get_4bit_code(kind, maxima.device), blocksize,
            (1, weight.size), state.dtype,
        )  # fmt: skip
    result: Array = seen.float().numpy().reshape(weight.shape)
    return result


@pytest.fixture
def torch_threads() -> Iterator[Any]:
    import torch

    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_levels_are_those_of_bitsandbytes() -> None:
    from bitsandbytes.functional import create_dynamic_map, get_4bit_type

    for kind in KINDS:
        theirs = np.unique(get_4bit_type(kind, device="cpu").numpy())
        np.testing.assert_array_equal(nf4.LEVELS[kind], theirs)
    np.testing.assert_array_equal(nf4.dynamic_map(), create_dynamic_map().numpy())


@every_kind
@pytest.mark.parametrize("shape", SHAPES)
def test_values_are_those_of_bitsandbytes(
    shape: tuple[int, ...], kind: nf4.QuantType, double_quant: bool
) -> None:
    weight = some(shape)
    seen = nf4.round_trip(weight, kind, double_quant)
    assert seen.dtype == np.float32 and seen.shape == shape
    np.testing.assert_array_equal(seen, oracle(weight, kind, double_quant))


@every_kind
def test_random_matrices(kind: nf4.QuantType, double_quant: bool) -> None:
    random = np.random.default_rng(11)
    for seed in range(40):
        blocksize = int(random.choice([32, 64, 128, 256, 512, 1024, 4096]))
        width = blocksize * int(random.integers(1, 5)) if seed % 2 else int(random.integers(1, 300))
        height = int(random.integers(1, max(2, 100_000 // width)))
        weight = some((height, width), scale=10 ** random.uniform(-4, 1), seed=seed)
        np.testing.assert_array_equal(
            nf4.round_trip(weight, kind, double_quant, blocksize),
            oracle(weight, kind, double_quant, blocksize),
            err_msg=f"{weight.shape} in blocks of {blocksize}",
        )


@every_kind
@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_16_bit_weight_is_rounded_to_16_bits(
    dtype: str, kind: nf4.QuantType, double_quant: bool
) -> None:
    weight = some((96, 128))
    seen = stored_as(nf4.round_trip(stored_as(weight, dtype), kind, double_quant), dtype)
    np.testing.assert_array_equal(seen, oracle(weight, kind, double_quant, dtype=dtype))
    assert not np.array_equal(seen, stored_as(nf4.round_trip(weight, kind, double_quant), dtype))


@pytest.mark.parametrize(("loaded", "computed"), list(itertools.product(TYPES, TYPES)))
def test_weights_that_a_layer_multiplies_with(loaded: str, computed: str) -> None:
    """Whatever the type that it was quantized in, one rounding to the compute type."""
    import bitsandbytes as bnb
    import torch

    weight = some((96, 128))
    compute = getattr(torch, TYPES[computed])
    layer = bnb.nn.Linear4bit(128, 96, bias=False, compute_dtype=compute, quant_type="nf4")
    layer.weight = bnb.nn.Params4bit(
        torch.from_numpy(weight.copy()).to(getattr(torch, TYPES[loaded])),
        quant_type="nf4", module=layer,
    ).to("cpu")  # fmt: skip
    layer.train()  # as in training: in evaluation a CPU with avx512_bf16 repacks it
    with torch.no_grad():
        seen = layer(torch.eye(128, dtype=compute)).T.float().numpy()
    wanted = stored_as(nf4.round_trip(stored_as(weight, loaded)), computed)
    np.testing.assert_array_equal(seen, wanted)


@pytest.mark.parametrize(("loaded", "computed"), [("F32", "F32"), ("BF16", "BF16")])
def test_weights_that_a_loaded_model_multiplies_with(
    loaded: str, computed: str, tiny_base: Path
) -> None:
    import torch
    import transformers

    dtype, compute = (getattr(torch, TYPES[name]) for name in (loaded, computed))
    packed = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tiny_base, dtype=dtype, quantization_config=packed, device_map={"": "cpu"}
    ).train()
    weights = Checkpoint(tiny_base)
    layers = [n for n, m in model.named_modules() if type(m).__name__ == "Linear4bit"]
    assert len(layers) >= 10
    for name in layers:
        weight = weights.read(f"{name}.weight")
        if weight.shape[1] % nf4.BLOCK:  # their kernel is wrong there
            continue
        with torch.no_grad():
            layer = model.get_submodule(name)
            seen = layer(torch.eye(weight.shape[1], dtype=compute)).T.float().numpy()
        wanted = stored_as(nf4.round_trip(stored_as(weight, loaded)), computed)
        np.testing.assert_array_equal(seen, wanted, err_msg=name)


def test_embedded_model() -> None:
    weights = Checkpoint(resolve_base("smollm2-135m"))
    for name in ("0.self_attn.q_proj", "7.self_attn.v_proj", "15.mlp.gate_proj",
                 "29.mlp.down_proj"):  # fmt: skip
        weight = weights.read(f"model.layers.{name}.weight")
        for kind in KINDS:
            np.testing.assert_array_equal(
                nf4.round_trip(weight, kind), oracle(weight, kind), err_msg=f"{kind} {name}"
            )


def test_sum_is_that_of_torch(torch_threads: Any) -> None:
    import torch

    random = np.random.default_rng(5)
    depends = 0
    counts = [1, 2, 7, 8, 9, 31, 32, 65, 511, 1000, 4097, 13824, 32767, 32768, 65537, 300_007]
    for count in [*counts, *range(140_000, 229_000, 5_000)]:
        values = np.abs(random.standard_normal(count)).astype(np.float32)
        sums = {}
        for threads in (1, 2, 3, 8, 20, 33):
            torch_threads(threads)
            sums[threads] = nf4._torch_sum(values, threads)
            assert sums[threads] == torch.from_numpy(values).sum().item(), (count, threads)
        depends += len(set(sums.values())) > 1
    assert depends, "the numbers cannot tell the thread counts apart"


def test_many_blocks_summed_in_threads(torch_threads: Any) -> None:
    weight = some((1200, 1024))  # 38400 blocks of 32
    values = {}
    for threads in (1, 2, 5):
        torch_threads(threads)
        values[threads] = nf4.round_trip(weight, blocksize=32, threads=threads)
        np.testing.assert_array_equal(values[threads], oracle(weight, blocksize=32))


@pytest.mark.parametrize("kind", KINDS)
def test_borders_and_their_neighbours(kind: nf4.QuantType) -> None:
    """Where the table of cells could be one off: at the borders and some floats beside them."""
    levels = nf4.LEVELS[kind]
    borders = nf4._midpoints(levels)
    ulps = np.arange(-3, 4, dtype=np.float32)
    cells = np.linspace(-1, 1, nf4._CELLS + 1, dtype=np.float32)
    values = np.concatenate([
        (borders[:, None] + ulps * np.spacing(borders[:, None])).reshape(-1),
        cells, np.nextafter(cells, np.float32(2)), np.nextafter(cells, np.float32(-2)), levels,
    ])  # fmt: skip
    values = values[np.abs(values) <= 1]
    np.testing.assert_array_equal(
        nf4._nearest(values, kind), levels[np.searchsorted(borders, values)]
    )
    weight = np.ones((-(-len(values) // 63), 64), np.float32)
    weight[:, 1:].flat[: len(values)] = values
    np.testing.assert_array_equal(
        nf4.round_trip(weight, kind, False), oracle(weight, kind, double_quant=False)
    )


@pytest.mark.parametrize("width", [64, 50])
def test_borders_after_scaling(width: int) -> None:
    """A whole block is multiplied with a reciprocal, a short one divided: the last bit counts."""
    random = np.random.default_rng(2)
    borders = nf4._midpoints(nf4.LEVELS["nf4"])
    for largest in random.uniform(0.01, 0.2, 50).astype(np.float32):
        at = borders * largest
        weight = np.zeros((1, width), np.float32)
        weight[0, :46] = [largest, *at, *(at - np.spacing(at)), *(at + np.spacing(at))]
        np.testing.assert_array_equal(nf4.round_trip(weight), oracle(weight))


def test_8_bit_type() -> None:
    """On a million maxima, so that each border of its table is met."""
    import torch
    from bitsandbytes.functional import dequantize_blockwise, quantize_blockwise

    maxima = np.random.default_rng(6).lognormal(-3, 0.3, 1 << 20).astype(np.float32)
    offset = nf4._torch_sum(maxima, 1) / np.float32(len(maxima))
    packed = quantize_blockwise(torch.from_numpy(maxima - offset), blocksize=256)
    theirs = dequantize_blockwise(*packed).numpy() + offset
    np.testing.assert_array_equal(nf4._round_trip_8bit(maxima, 1), theirs)


@every_kind
@pytest.mark.parametrize("shape", [(4, 64), (9, 64), (3, 50)])
def test_zero_blocks(shape: tuple[int, int], kind: nf4.QuantType, double_quant: bool) -> None:
    for weight in (np.zeros(shape, np.float32), some(shape)):
        weight[-2:] = 0
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            seen = nf4.round_trip(weight, kind, double_quant)
        assert not seen[-2:].any()
        np.testing.assert_array_equal(seen, oracle(weight, kind, double_quant))


@pytest.mark.parametrize("scale", [1e-30, 1e-37, 1e-39, 1e-42, 1e-45])
@pytest.mark.parametrize("shape", [(2, 64), (2, 50)])
def test_tiny_weights(shape: tuple[int, int], scale: float) -> None:
    """1 / 1e-39 is infinite in float32; a dead channel of a bf16 model can hold such weights."""
    weight = some(shape, scale)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        seen = nf4.round_trip(weight, double_quant=False)
        double = nf4.round_trip(weight)
    np.testing.assert_array_equal(seen, oracle(weight, double_quant=False))
    if scale > 1e-36:
        np.testing.assert_array_equal(double, oracle(weight))
    else:  # theirs divides by zero
        assert np.abs(double - seen).max() < 1e-37


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("row", [3, 9])
def test_weight_that_is_not_finite_is_refused(bad: float, row: int) -> None:
    weight = some((10, 100))  # the last row ends in a short block
    weight[row, 99] = bad
    with pytest.raises(InputError, match=f"NaN or infinite, near row {row} of 10"):
        nf4.round_trip(weight)


@every_kind
@pytest.mark.parametrize(("shape", "blocksize"), [
    ((300, 512), 64), ((301, 96), 64), ((257, 33), 128), ((40, 7), 64), ((5, 3000), 1024),
])  # fmt: skip
def test_few_rows_at_a_time(
    shape: tuple[int, int],
    blocksize: int,
    kind: nf4.QuantType,
    double_quant: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where blocks span rows; and nothing is read but what is asked for."""
    monkeypatch.setattr(nf4, "_STEP_VALUES", 4096)
    weight, read = some(shape), []

    def rows(start: int, stop: int) -> Array:
        assert 0 <= start < stop <= len(weight)
        read.append((start, stop))
        return weight[start:stop]

    whole = oracle(weight, kind, double_quant, blocksize)
    view = nf4.quantized(rows, shape, kind, double_quant, blocksize)
    assert [start for start, _ in read] == [0, *(stop for _, stop in read[:-1])]
    assert max(stop - start for start, stop in read) <= max(1, 4096 // shape[1])
    assert view.maxima.size == view.scales.size == -(-weight.size // blocksize)
    for step in (1, 2, 7, len(weight)):
        read.clear()
        spans = [(i, min(i + step, len(weight))) for i in range(0, len(weight), step)]
        parts = [view.rows(*span) for span in spans]
        assert read == spans
        np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_second_round_trip_changes_nothing() -> None:
    """Each block's largest weight is stored exactly, so the levels land on themselves."""
    once = nf4.round_trip(some((33, 64)), double_quant=False)
    np.testing.assert_array_equal(nf4.round_trip(once, double_quant=False), once)


def test_error_is_at_most_half_the_widest_gap() -> None:
    weight = some((100, 64))
    seen = nf4.round_trip(weight, double_quant=False)
    half = np.diff(nf4.LEVELS["nf4"]).max() / 2
    bound = np.abs(weight).max(axis=1, keepdims=True) * half
    assert (np.abs(seen - weight) <= bound * 1.0001).all()
    assert len(np.unique(seen[0])) <= 16


def test_input_is_unchanged_and_may_be_a_view() -> None:
    weight = some((64, 96))
    before = weight.copy()
    seen = nf4.round_trip(weight.T)
    np.testing.assert_array_equal(weight, before)
    np.testing.assert_array_equal(seen, nf4.round_trip(np.ascontiguousarray(weight.T)))
