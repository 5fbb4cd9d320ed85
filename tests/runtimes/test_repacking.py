"""Weights in another order: for which types a row keeps its bits beside others, held to llama.cpp itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeft.errors import ResourceError
from edgeft.runtimes import llama_context, llama_library, needs, repacking
from edgeft.runtimes.gguf import GGUFRuntime
from edgeft.weights import gguf_reader
from helpers.converting import convert
from helpers.tiny import make_base

COUNT = 9
PROMPT = list(b"turn on the lamp, and then the other lamps on the floor")
TYPES = ("q4_0", "iq4_nl", "mxfp4", "q4_k_m", "q8_0")
AVX512 = frozenset({"AVX", "AVX2", "AVX512", "REPACK"})
repacks = pytest.mark.skipif(
    not {"REPACK", "AVX2"} <= repacking.cpu_features() or repacking.uses_amx(),
    reason="the rule is for x86 without AMX",
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """256 wide, so that K-quants are K-quants. The head is in q8_0, of which no kernel asks for the rows."""
    from edgeft.merge.view import open_merged

    folder = tmp_path_factory.mktemp("repacking")
    base = make_base(folder / "base", hidden=256)
    for name in TYPES:
        types: list[tuple[str, str]] = [("token_embd", "q8_0")]
        if name == "mxfp4":
            types.append((r"blk\.", "mxfp4"))
        quant = "q4_0" if name == "mxfp4" else name
        convert(
            open_merged(base, None),
            folder / f"{name}.gguf",
            quant,
            threads=1,
            tensor_types=tuple(types),
        )
    return {name: folder / f"{name}.gguf" for name in TYPES}


@pytest.fixture
def features(monkeypatch: pytest.MonkeyPatch) -> Any:
    def have(*names: str) -> None:
        monkeypatch.setattr(repacking, "cpu_features", lambda: frozenset(names))

    return have


def types_of(header: gguf_reader.Header) -> set[str]:
    return {tensor.type.name for tensor in repacking.repacked_tensors(header)}


def test_what_is_repacked_depends_on_the_cpu(files: dict[str, Path], features: Any) -> None:
    headers = {name: gguf_reader.read(file) for name, file in files.items()}
    features(*AVX512)
    assert types_of(headers["q4_0"]) == {"Q4_0"} and types_of(headers["q8_0"]) == set()
    assert types_of(headers["mxfp4"]) == {"MXFP4"} and "Q4_K" in types_of(headers["q4_k_m"])
    known = {name: repacking.is_batch_invariant(header) for name, header in headers.items()}
    assert known == {"q4_0": True, "iq4_nl": True, "mxfp4": True, "q4_k_m": False, "q8_0": False}
    split = dataclasses.replace(headers["q4_0"], meta=headers["q4_0"].meta | {"split.count": 2})
    assert not repacking.repacked_tensors(split) and not repacking.is_batch_invariant(split)
    for fewer in ({"AVX2"}, {"REPACK"}, {"REPACK", "NEON"}):
        features(*fewer)
        assert not repacking.repacked_tensors(headers["q4_0"])
        assert not repacking.is_batch_invariant(headers["q4_0"])
    features(*AVX512, "AMX_INT8")
    assert not repacking.repacked_tensors(headers["q4_0"])


def test_a_tied_embedding_is_there_twice(files: dict[str, Path], features: Any) -> None:
    features(*AVX512)
    header = gguf_reader.read(files["q4_0"])
    block = header.tensors["blk.0.ffn_up.weight"]
    embedding = dataclasses.replace(block, name=repacking.EMBEDDINGS)
    tied = dataclasses.replace(header, tensors=header.tensors | {repacking.EMBEDDINGS: embedding})
    head = tied.tensors | {repacking.HEAD: block}
    assert repacking.duplicated_bytes(header) == 0
    assert repacking.duplicated_bytes(tied) == block.size
    assert repacking.duplicated_bytes(dataclasses.replace(tied, tensors=head)) == 0


@repacks
@pytest.mark.parametrize("quant", ["q4_0", "iq4_nl", "mxfp4"])
def test_a_row_has_the_same_bits_in_batches_of_all_sizes(
    files: dict[str, Path], quant: str
) -> None:
    """Single rows go through `gemv`; of 4 to 9 the first 4 or 8 go through `gemm`."""
    with (
        GGUFRuntime(files[quant], threads=1, context=64, batch_invariant=True) as runtime,
        runtime.sequences(COUNT) as sequences,
    ):
        assert sequences.max_batch == COUNT, "as its probe finds"
        for number in range(COUNT):
            sequences.read(number, [*PROMPT[:8], number])
        for step in range(8):
            rows = {}
            for size in range(1, COUNT + 1):
                sequences.step([(n, 24 * step + n) for n in range(size)])
                rows[size] = sequences.rows[:size].copy()
                for number in range(size):
                    sequences.truncate(number, 9)
            for size, row in rows.items():
                np.testing.assert_array_equal(row, rows[COUNT][:size], err_msg=f"{size} rows")


@repacks
@pytest.mark.parametrize("quant", ["q4_0", "iq4_nl", "mxfp4"])
def test_a_prompt_has_the_same_bits_in_parts_of_all_sizes(
    files: dict[str, Path], quant: str
) -> None:
    """`gemm` takes 16, then 4 rows at a time, `gemv` the rest. The cache is in a type whose attention is computed row
    by row."""
    states = []
    with (
        GGUFRuntime(
            files[quant], threads=1, context=64, kv_type="q8_0-f16", batch_invariant=True
        ) as runtime,
        runtime.sequences(1) as sequences,
    ):
        for size in (len(PROMPT), 23, 16, 7, 5):
            for start in range(0, len(PROMPT), size):
                sequences.read(0, PROMPT[start : start + size])
            states.append((sequences._context.state(0).copy(), sequences.row(0).copy()))
            sequences.truncate(0, 0)
    for state, row in states[1:]:
        np.testing.assert_array_equal(state, states[0][0])
        np.testing.assert_array_equal(row, states[0][1])


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, bool]]:
    """(repacked, mapped) of each file that is opened."""
    lib, _ = llama_library.load_library()
    load = lib.llama_model_load_from_file
    asked: list[tuple[bool, bool]] = []

    def recorded(path: bytes, params: Any) -> Any:
        mapped = params.load_mode != lib.LLAMA_LOAD_MODE_NONE
        asked.append((bool(params.use_extra_bufts), mapped))
        return load(path, params)

    monkeypatch.setattr(lib, "llama_model_load_from_file", recorded)
    return asked


def test_amx_computes_nothing(
    files: dict[str, Path], asked: list[tuple[bool, bool]], features: Any
) -> None:
    """GCC may have left out what llama.cpp writes of its configuration."""
    features(*AVX512, "AMX_INT8")
    for name in ("q4_0", "q8_0", "q4_k_m"):
        llama_context.LlamaModel(files[name], threads=1).close()
    assert asked == [(False, True)] * 3


@repacks
def test_what_is_asked_of_llama_cpp(
    files: dict[str, Path], asked: list[tuple[bool, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, options in (
        ("q4_0", {"batch_invariant": True}), ("q4_0", {}), ("q4_0", {"repack": False}),
        ("q4_k_m", {"batch_invariant": True}), ("q4_k_m", {}), ("q8_0", {"batch_invariant": True}),
        ("q8_0", {}),
    ):  # fmt: skip
        llama_context.LlamaModel(files[name], threads=1, **options).close()
    assert asked == [
        (True, False), (True, False), (False, True), (False, True), (True, False), (False, True),
        (True, True),
    ]  # fmt: skip
    monkeypatch.setattr(llama_context.machine, "available_memory", lambda: 10_000)
    with pytest.raises(ResourceError, match=r"loading .*q4_0\.gguf needs about .* of memory"):
        llama_context.LlamaModel(files["q4_0"], threads=1)
    size = files["q4_0"].stat().st_size
    assert needs.needs_of(files["q4_0"]).file == size
