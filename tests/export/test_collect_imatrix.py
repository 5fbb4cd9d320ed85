"""Sums of squares against those of transformers on the same tokens, dense and with experts."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgeft.converters.gguf import vocabulary
from edgeft.errors import EdgeftError, InputError
from edgeft.export import collect_imatrix
from edgeft.export.collect_imatrix import Collector, collect
from edgeft.kv_cache import EXACT_TYPE, KV_TYPES
from edgeft.merge.view import open_merged
from edgeft.models.transforms import TRANSFORMS
from edgeft.runtimes.eval_callback import MAX_SEQUENCES
from edgeft.runtimes.gguf import GGUFRuntime
from edgeft.runtimes.llama_context import BATCH_TOKENS
from edgeft.weights.imatrix import Imatrix, Sums
from helpers.converting import convert

VOCABULARY = 265
"""of tests/helpers/tiny.py"""
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "mlp.gate": "ffn_gate_inp",
}  # fmt: skip
SUMS_RTOL = 2e-4
"""relative tolerance of the sums, with keys and values in single precision"""


def sequences(*lengths: int, seed: int = 0) -> list[list[int]]:
    draw = np.random.default_rng(seed)
    return [draw.integers(0, VOCABULARY, length).tolist() for length in lengths]


class Oracle:
    """Squares of what enters transformers' linear layers, by GGUF name."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.sums: dict[str, npt.NDArray[np.float64]] = {}
        self.counts: dict[str, npt.NDArray[np.float64]] = {}
        for i, layer in enumerate(model.model.layers):
            for name, module in layer.named_modules():
                if name in NAMES:
                    module.register_forward_pre_hook(self.dense(f"blk.{i}.{NAMES[name]}.weight"))
                elif name == "mlp.experts":
                    module.register_forward_pre_hook(self.experts(i))

    def run(self, sequences: Sequence[Sequence[int]]) -> Imatrix:
        import torch

        with torch.inference_mode():
            for ids in sequences:
                self.model(torch.tensor([ids]), use_cache=False)
        sums = {
            name: Sums(values.astype(np.float32), self.counts[name].astype(np.float32))
            for name, values in self.sums.items()
        }
        return Imatrix(sums, (), 0, 0)

    def dense(self, name: str) -> Callable[..., None]:
        return lambda _, args: self.add(name, 0, args[0], experts=1)

    def experts(self, layer: int) -> Callable[..., None]:
        import torch

        def hook(module: Any, args: Any) -> None:
            hidden, chosen, _ = args
            for expert in range(module.num_experts):
                inputs = hidden[(chosen == expert).any(dim=1)]
                gate, up = (inputs @ module.gate_up_proj[expert].T).chunk(2, dim=-1)
                inner = torch.nn.functional.silu(gate) * up
                for name, values in (("gate", inputs), ("up", inputs), ("down", inner)):
                    weight = f"blk.{layer}.ffn_{name}_exps.weight"
                    self.add(weight, expert, values, module.num_experts)

        return hook

    def add(self, name: str, expert: int, values: Any, experts: int) -> None:
        rows = values.reshape(-1, values.shape[-1]).double().numpy()
        self.sums.setdefault(name, np.zeros((experts, rows.shape[1])))
        self.counts.setdefault(name, np.zeros(experts))
        self.sums[name][expert] += (rows**2).sum(axis=0)
        self.counts[name][expert] += len(rows)


def assert_same(imatrix: Imatrix, expected: Imatrix, rtol: float) -> None:
    assert set(imatrix.tensors) == set(expected.tensors)
    for name, sums in expected.tensors.items():
        np.testing.assert_array_equal(imatrix.tensors[name].counts, sums.counts, name)
        np.testing.assert_allclose(imatrix.tensors[name].in_sum2, sums.in_sum2, rtol, err_msg=name)


@pytest.fixture(scope="module")
def dense(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("imatrix") / "f32.gguf"
    convert(open_merged(tiny_base, None), path, "f32", threads=1)
    return path


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention in single precision: half of it moves single columns by up to .4 %."""
    monkeypatch.setitem(KV_TYPES, "f16", EXACT_TYPE)


@pytest.fixture
def transformers_model(tiny_base: Path) -> Any:
    import torch
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)


CASES = {
    "one": sequences(40),
    "shorter than llama-imatrix counts": sequences(3),
    "packed": sequences(20, 1, 90, 7, 33),
    "one over two batches": sequences(30, BATCH_TOKENS + 100, 15),
    "more than a batch's sequences": sequences(*[3] * (2 * MAX_SEQUENCES + 5)),
}


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("case", CASES)
def test_sums_are_those_of_transformers(case: str, dense: Path, transformers_model: Any) -> None:
    expected = Oracle(transformers_model).run(CASES[case])
    assert len(expected.tensors) == 14
    imatrix = collect(dense, CASES[case], threads=2)
    assert_same(imatrix, expected, SUMS_RTOL)
    tokens = sum(map(len, CASES[case]))
    assert all(sums.counts.tolist() == [tokens] for sums in imatrix.tensors.values())
    assert imatrix.chunk_size * imatrix.chunk_count >= tokens and imatrix.datasets == (
        "conversations",
    )


@pytest.mark.usefixtures("exact")
def test_sequences_packed_into_a_batch_have_the_same_sums(dense: Path) -> None:
    conversations = sequences(20, 1, 90, 7, BATCH_TOKENS, 33, 300, 12, seed=1)
    alone = [collect(dense, [ids], threads=1).tensors for ids in conversations]
    added = {
        name: Sums(sum(t[name].in_sum2 for t in alone), sum(t[name].counts for t in alone))
        for name in alone[0]
    }
    assert_same(collect(dense, conversations, threads=2), Imatrix(added, (), 0, 0), SUMS_RTOL)


def test_the_output_matrix_is_not_computed(dense: Path) -> None:
    asked: list[bytes] = []
    waited: list[bytes] = []
    collector = Collector()

    def observer(address: int, ask: bool) -> bool:
        (asked if ask else waited).append(collect_imatrix.Tensor.from_address(address).name)
        return collector(address, ask)

    with GGUFRuntime(dense, 1) as runtime:
        assert list(runtime.watch(sequences(30, 40), observer)) == [70]
        assert asked[-1] == b"result_norm" and b"result_output" not in asked
        # k and v read what q reads, up what gate reads (or the other way round).
        assert len(waited) == 2 * 4 + 1


def make_experts(folder: Path, base: Path, scale: float = 1.0) -> tuple[Path, Any]:
    """A random Mixtral as a GGUF file, and in transformers."""
    import torch
    import transformers
    from gguf import GGUFWriter

    config = transformers.MixtralConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=VOCABULARY, num_local_experts=6, num_experts_per_tok=2,
        max_position_embeddings=512, sliding_window=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.MixtralForCausalLM(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.2)
            weight *= scale if name.endswith("layers.1.input_layernorm.weight") else 1
            if name.endswith("mlp.gate.weight"):
                weight *= 5  # far from ties
    weights = {name: values.numpy() for name, values in model.state_dict().items()}
    tensors = {
        "token_embd.weight": weights["model.embed_tokens.weight"],
        "output_norm.weight": weights["model.norm.weight"],
        "output.weight": weights["lm_head.weight"],
    }
    for i in range(2):
        source, target = f"model.layers.{i}.", f"blk.{i}."
        for name in ("q", "k", "v", "o"):
            values = weights[f"{source}self_attn.{name}_proj.weight"]
            if name in "qk":
                transform, shape = TRANSFORMS[f"rope_{name}"], values.shape
                values = values[transform.source_rows(slice(None), shape, config.to_dict())]
            tensors[f"{target}attn_{'output' if name == 'o' else name}.weight"] = values
        gate_up = weights[f"{source}mlp.experts.gate_up_proj"]
        tensors |= {
            f"{target}attn_norm.weight": weights[f"{source}input_layernorm.weight"],
            f"{target}ffn_norm.weight": weights[f"{source}post_attention_layernorm.weight"],
            f"{target}ffn_gate_inp.weight": weights[f"{source}mlp.gate.weight"],
            f"{target}ffn_gate_exps.weight": np.ascontiguousarray(gate_up[:, :96]),
            f"{target}ffn_up_exps.weight": np.ascontiguousarray(gate_up[:, 96:]),
            f"{target}ffn_down_exps.weight": weights[f"{source}mlp.experts.down_proj"],
        }
    path = folder / "experts.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(64)
    writer.add_block_count(2)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_expert_count(6)
    writer.add_expert_used_count(2)
    vocabulary.write(writer, base, VOCABULARY)
    for name, values in tensors.items():
        writer.add_tensor(name, np.float32(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, model


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize(("lengths", "idle"), [((50, 9, 31), False), ((2,), True)])
def test_an_experts_sums_are_of_the_inputs_routed_to_it(
    tiny_base: Path, tmp_path: Path, lengths: tuple[int, ...], idle: bool
) -> None:
    path, model = make_experts(tmp_path, tiny_base)
    conversations = sequences(*lengths)
    expected = Oracle(model).run(conversations)
    assert len(expected.tensors) == 2 * 8
    imatrix = collect(path, conversations, threads=2)
    assert_same(imatrix, expected, SUMS_RTOL)
    for name in ("gate", "up", "down"):
        counts = imatrix.tensors[f"blk.1.ffn_{name}_exps.weight"].counts
        assert counts.sum() == 2 * sum(lengths) and (counts.min() == 0) == idle


@pytest.mark.parametrize("matrices", [(1, 1), (2, 1), (2, 3), (4, 3)])
def test_a_weight_of_three_dimensions_is_several_matrices(
    matrices: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ggml_mul_mat broadcasts: the weight's matrices are repeated over the input's."""
    ne2, ne3 = matrices
    inputs = np.random.default_rng(0).normal(size=(3, 4, 7, 5)).astype(np.float32)
    monkeypatch.setattr(collect_imatrix, "_view", lambda tensor: tensor)
    weight: Any = SimpleNamespace(ne=[5, 6, ne2, ne3])
    sums, counts = collect_imatrix._dense_sums(inputs, weight)  # type: ignore[arg-type]
    assert sums.shape == (ne2 * ne3, 5) and counts.tolist() == [84 / (ne2 * ne3)] * ne2 * ne3
    for i in range(ne3):
        for j in range(ne2):
            expected = (inputs[i::ne3, j::ne2] ** 2).sum(axis=(0, 1, 2))
            np.testing.assert_allclose(sums[i * ne2 + j], expected, 1e-5)


def test_inputs_that_are_not_finite_are_refused(tiny_base: Path, tmp_path: Path) -> None:
    path, _ = make_experts(tmp_path, tiny_base, scale=1e25)
    with pytest.raises(InputError, match=r"inputs of blk\.1\.\w+\.weight are not all finite"):
        collect(path, sequences(20), threads=1)


def test_inputs_on_another_device_are_copied(dense: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = collect(dense, CASES["packed"], threads=1)
    monkeypatch.setattr(collect_imatrix._ggml(), "ggml_backend_buffer_is_host", lambda _: False)
    assert_same(collect(dense, CASES["packed"], threads=1), here, 0)


def test_a_copied_weight_has_the_name_of_its_original() -> None:
    names = (b"CUDA0#blk.0.attn_k.weight#0", b"CPU#blk.0.attn_k.weight", b"blk.0.attn_k.weight")
    assert {collect_imatrix._weight_name(name) for name in names} == {"blk.0.attn_k.weight"}


def shuffled() -> Iterator[list[tuple[str, Any]]]:
    fields = list(collect_imatrix.Tensor._fields_)
    yield [("new", ctypes.c_int64), *fields]
    for i in (1, 3, 4, 6, 7, 9, 10):
        yield [*fields[:i], ("new", ctypes.c_int64), *fields[i:]]
    for i in (2, 9):
        yield [*fields[:i], fields[i + 1], fields[i], *fields[i + 2 :]]


@pytest.mark.parametrize(
    "fields", list(shuffled()), ids=lambda fields: "-".join(f[0] for f in fields)
)
def test_an_unknown_tensor_layout_is_refused(fields: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(ctypes.Structure):
        _fields_ = fields

    monkeypatch.setattr(collect_imatrix, "Tensor", Other)
    collect_imatrix._operations.cache_clear()
    try:
        with pytest.raises(EdgeftError, match="tensor layout"):
            Collector()
    finally:
        collect_imatrix._operations.cache_clear()


def test_empty_and_too_long_sequences_are_refused(dense: Path) -> None:
    with pytest.raises(InputError, match="no conversations"):
        collect(dense, [], threads=1)
    with pytest.raises(InputError, match="empty"):
        collect(dense, [[1, 2], []], threads=1)
    with (
        GGUFRuntime(dense, 1, context=8) as runtime,
        pytest.raises(InputError, match="9 tokens, the context only 8"),
    ):
        list(runtime.watch(sequences(9), Collector()))
