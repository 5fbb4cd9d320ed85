"""The oracles are transformers' pass over each sequence alone, and hooks on the live model."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from conftest import Family

from edgeft.errors import FormatError, InputError
from edgeft.gptq import blocks as gptq_blocks
from edgeft.gptq import hessians, kept_outputs
from edgeft.gptq.blocks import Blocks
from edgeft.gptq.linear_weights import stage_of
from edgeft.gptq.quantize import linears
from edgeft.merge.view import Merged, open_merged
from helpers.families import CHATGLM, TINY, by_family, exact_gelu

Sequences = list[list[int]]
TRANSFORMERS = [case for case, tiny in TINY.items() if tiny.config != CHATGLM]
CLOSE = 5e-5
"""of the states' standard deviation"""


def conversations(merged: Merged, *lengths: int) -> Sequences:
    draw = np.random.default_rng(0)
    return [draw.integers(0, merged.vocabulary, length).tolist() for length in lengths]


def alone(live: Any, sequences: Sequences) -> list[Any]:
    """What every block is given, and the last one's result after the final norm: the hidden states
    of each conversation by itself, side by side."""
    import torch

    with torch.inference_mode(), exact_gelu(live):
        found = [
            live.base_model.model.base_model(
                torch.tensor([ids]), output_hidden_states=True
            ).hidden_states
            for ids in sequences
        ]
    return [torch.cat([states[0] for states in level]) for level in zip(*found, strict=True)]


def apart(states: Any, wanted: Any) -> float:
    return float((states - wanted).abs().max() / wanted.std())


@pytest.mark.parametrize("case", by_family(TRANSFORMERS, "phi3-long", "olmo3-yarn"))
def test_blocks_compute_the_same_as_the_model(make: Family, case: str) -> None:
    """Sequences of one row do not see each other, and every linear layer is in some stage."""
    base, adapter, live = make(case)
    merged = open_merged(base, adapter)
    # The factors of longrope hang on the row's length: all of them above the original context.
    lengths = (200, 61, 44) if case == "phi3-long" else (50, 1, 200, 27)
    sequences = conversations(merged, *lengths)
    wanted = alone(live, sequences)
    blocks = Blocks(merged, sequences, threads=1)
    assert len(blocks.rows) == 1, "the conversations are to share a row"
    names: list[str] = []
    for block in blocks:
        assert apart(blocks.states, wanted[block.number]) < CLOSE
        names += [name for linear in block.linears for name in linear.names]
        gathered = [
            linear
            for stage in block.stages()
            for group in block.gather(stage)
            for linear in group.linears
        ]
        assert sorted(map(id, gathered)) == sorted(map(id, block.linears))
    assert sorted(names) == sorted(linears(merged))
    matrices = [name for name, shape in merged.shapes.items() if len(shape) == 2]
    others = [name for name in matrices if name not in names]
    assert all(any(word in name for word in OTHERS) for name in others), others


OTHERS = ("embed", "lm_head", "gate.weight")
"""matrices that are no linear layer of a block: embedding, output layer, routers"""


def test_rows_of_any_length(make: Family) -> None:
    """One longer than ROW_TOKENS is a row of its own; a single token is a sequence as well."""
    base, adapter, live = make("llama")
    merged = open_merged(base, adapter)
    sequences = conversations(merged, 1, 300, 212, 1, gptq_blocks.ROW_TOKENS + 88, 1, 1)
    sequences.insert(2, [])
    blocks = Blocks(merged, sequences, threads=1)
    spans = [span.stop - span.start for span, _ in blocks.rows]
    assert spans == [301, 213, gptq_blocks.ROW_TOKENS + 88, 2] and sum(spans) == blocks.tokens
    wanted = alone(live, [ids for ids in sequences if ids])
    for block in blocks:
        assert apart(blocks.states, wanted[block.number]) < CLOSE


def test_outputs_of_the_last_block(make: Family) -> None:
    base, adapter, live = make("llama")
    merged = open_merged(base, adapter)
    sequences = conversations(merged, 30, 5)
    blocks = Blocks(merged, sequences, threads=1)
    for _ in blocks:
        pass
    after = live.base_model.model.base_model.norm(blocks.states).detach()
    assert apart(after, alone(live, sequences)[-1]) < CLOSE


def inputs_by_hook(live: Any, sequences: Sequences, name: str) -> Any:
    """What reaches a linear layer of the live model."""
    import torch

    seen = []
    module = live.get_submodule("base_model.model." + name.removesuffix(".weight"))
    hook = module.register_forward_pre_hook(lambda _, given: seen.append(given[0].clone()))
    alone(live, sequences)
    hook.remove()
    return torch.cat([given.reshape(-1, given.shape[-1]) for given in seen])


def test_hessians_are_of_the_inputs(make: Family) -> None:
    base, adapter, live = make("llama")
    merged = open_merged(base, adapter)
    sequences = conversations(merged, 90, 30, 500)
    together = []
    blocks = Blocks(merged, sequences, threads=1)
    assert len(blocks.rows) == 2
    for block in blocks:
        for stage in block.stages():
            for group in block.gather(stage):
                together.append([linear.names[0].split(".")[-2] for linear in group.linears])
                for linear in group.linears:
                    given = inputs_by_hook(live, sequences, linear.names[0]).double()
                    assert group.count == len(given) == 620
                    assert apart(group.hessian, given.T @ given) < 1e-4
                assert (group.hessian == group.hessian.T).all()
    layer = [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]
    assert together == 2 * layer


def test_stage_reads_the_changed_weights_before_it(make: Family) -> None:
    """Queries and keys of zero, so that attention is the mean, and values that are doubled."""
    import torch

    base, adapter, live = make("llama")
    merged = open_merged(base, adapter)
    (ids,) = sequences = conversations(merged, 40)
    values = inputs_by_hook(live, sequences, "model.layers.0.self_attn.v_proj")
    block = next(iter(Blocks(merged, sequences, threads=1)))
    stages = block.stages()
    (group,) = block.gather(next(stages))
    query, key, value = (linear.weight for linear in group.linears)
    query.zero_()
    key.zero_()
    value.mul_(2)
    (output,) = block.gather(next(stages))
    heads = (values @ value.T).view(len(ids), 2, 1, 16).expand(-1, 2, 2, 16).reshape(len(ids), 64)
    means = heads.cumsum(0) / torch.arange(1, len(ids) + 1)[:, None]
    assert apart(output.hessian, means.T @ means) < 1e-4


@pytest.mark.parametrize(
    "case", ["llama", "pythia", "pythia-sequential", "gemma2", "mixtral", "deepseek3"]
)
def test_attention_is_kept_with_its_changed_weights(make: Family, case: str) -> None:
    """Weights that change stage by stage against a block that had them from the start."""
    base, adapter, _ = make(case)
    merged = open_merged(base, adapter)
    sequences = conversations(merged, 200, 500, 90)
    stepwise, atonce = Blocks(merged, sequences, 1), Blocks(merged, sequences, 1)
    for changed, fixed in zip(stepwise, atonce, strict=True):
        for linear in fixed.linears:
            linear.weight.mul_(1.1)
        by_names = {linear.names: linear for linear in fixed.linears}
        for stage in changed.stages():
            found = changed.gather(stage)
            wanted = fixed.gather([by_names[linear.names] for linear in stage])
            for one, other in zip(found, wanted, strict=True):
                assert one.count == other.count and (one.hessian == other.hessian).all()
            for linear in stage:
                linear.weight.mul_(1.1)
    assert (stepwise.states == atonce.states).all()


@pytest.mark.parametrize("lengths", [(60, 200), (1,)])
def test_experts(make: Family, lengths: tuple[int, ...]) -> None:
    """Routed by hand; one that is never chosen, as two of them are for one token, saw nothing."""
    import torch

    base, adapter, live = make("mixtral")
    merged = open_merged(base, adapter)
    sequences = conversations(merged, *lengths)
    given = inputs_by_hook(live, sequences, "model.layers.0.mlp.gate")
    router = torch.from_numpy(merged.tensor("model.layers.0.block_sparse_moe.gate.weight"))
    chosen = (given @ router.T).topk(2).indices
    block = next(iter(Blocks(merged, sequences, threads=1)))
    stages = {stage[0].stage: stage for stage in block.stages()}
    first, second = (block.gather(stages[stage]) for stage in (3, 4))
    assert len(first) == len(second) == 4
    counts = [group.count for group in first]
    assert sum(counts) == 2 * sum(lengths) and (0 in counts) == (lengths == (1,))
    for group in first + second:
        (linear,) = group.linears
        *_, expert, name, _ = linear.names[0].split(".")
        mine = given[(chosen == int(expert)).any(1)]
        assert group.count == len(mine)
        stem = f"model.layers.0.block_sparse_moe.experts.{expert}."
        gate, up, down = (torch.from_numpy(merged.tensor(f"{stem}w{i}.weight")) for i in (1, 3, 2))
        if name == "w1":
            wanted = {f"{stem}w1.weight": gate, f"{stem}w3.weight": up}
        else:
            wanted = {f"{stem}w2.weight": down}
            mine = torch.nn.functional.silu(mine @ gate.T) * (mine @ up.T)
        parts = dict(linear.parts())
        assert list(parts) == list(wanted)
        assert all(torch.equal(parts[name], wanted[name]) for name in wanted)
        if len(mine):
            assert apart(group.hessian, mine.T @ mine) < 1e-4
        else:
            assert not group.hessian.any()


def test_few_hessians_at_a_time(make: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """As there is memory for; one that is larger than that goes alone."""
    base, adapter, _ = make("mixtral")
    merged = open_merged(base, adapter)
    block = next(iter(Blocks(merged, conversations(merged, 100), threads=1)))
    stages = list(block.stages())
    assert [len(stage) for stage in stages] == [3, 1, 4, 4]
    whole = block.gather(stages[2])
    monkeypatch.setattr(gptq_blocks, "HESSIAN_BYTES", 2 * 4 * 64**2)
    batches = list(block.stages())
    assert [len(stage) for stage in batches] == [2, 1, 1, 2, 2, 1, 1, 1, 1]
    parts = [group for stage in batches[3:5] for group in block.gather(stage)]
    by_name = {group.linears[0].names: group for group in parts}
    for group in whole:
        other = by_name[group.linears[0].names]
        assert other.count == group.count and (other.hessian == group.hessian).all()


def test_panels_of_a_hessian(make: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns that are no multiple of them."""
    base, adapter, _ = make("llama")
    merged = open_merged(base, adapter)
    block = next(iter(Blocks(merged, conversations(merged, 100), threads=1)))
    stage = next(block.stages())
    (whole,) = block.gather(stage)
    monkeypatch.setattr(hessians, "PANEL_COLUMNS", 40)
    (pieces,) = block.gather(stage)
    assert apart(pieces.hessian, whole.hessian) < 1e-5


def test_offload_changes_nothing(make: Family, tmp_path: Path) -> None:
    base, adapter, _ = make("llama")
    merged = open_merged(base, adapter)
    sequences = conversations(merged, 33, 500, 47)
    inside, outside = (Blocks(merged, sequences, 1, folder) for folder in (None, tmp_path))
    for _ in zip(inside, outside, strict=True):
        assert (inside.states == outside.states).all()
    mapped = Path("/proc/self/maps").read_text()
    assert mapped.count(str(tmp_path)) == 2 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("case", by_family(TRANSFORMERS))
def test_kept_inputs_change_no_bit(
    make: Family, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, adapter, _ = make(case)
    merged = open_merged(base, adapter)
    sequences = conversations(merged, 500, 300, 400)
    states = [states_of(merged, sequences)]
    monkeypatch.setattr(kept_outputs, "KEPT_BYTES", 0)
    states.append(states_of(merged, sequences))
    assert (states[0] == states[1]).all()


def states_of(merged: Merged, sequences: Sequences) -> Any:
    """The states after the last block, each layer halved once its inputs were gathered."""
    blocks = Blocks(merged, sequences, threads=1)
    for block in blocks:
        for stage in block.stages():
            for group in block.gather(stage):
                for linear in group.linears:
                    linear.weight.mul_(0.5)
    return blocks.states


def test_kept_inputs_save_a_pass(make: Family) -> None:
    """The block's own pass computes the feed-forward part of its first row alone, to compare."""
    import torch

    base, adapter, _ = make("llama")
    merged = open_merged(base, adapter)
    ran: list[int] = []
    original = torch.nn.functional.silu

    def counted(values: Any, *args: Any, **more: Any) -> Any:
        ran.append(values.shape[-2])
        return original(values, *args, **more)

    sequences = conversations(merged, 500, 300, 400)
    with mock.patch.object(torch.nn.functional, "silu", counted):
        states_of(merged, sequences)
    # For the inputs of gate and up, for those of down, and the first row of the block's own pass.
    assert ran == 2 * [500, 300, 400, 500, 300, 400, 500]


def test_one_block_is_in_memory(make: Family) -> None:
    """What the one before it was made of is gone when the next one is read."""
    import torch

    base, adapter, _ = make("llama")
    merged = open_merged(base, adapter)
    blocks = Blocks(merged, conversations(merged, 20), threads=1)
    layers = blocks._model.base_model.layers
    before: list[weakref.ref[Any]] = []

    def read(name: str) -> Any:
        assert not any(weight() is not None for weight in before), "two blocks"
        return type(merged).tensor(merged, name)

    with mock.patch.object(merged, "tensor", read):
        for block in blocks:
            assert {p.device for p in layers[block.number].parameters()} == {torch.device("cpu")}
            others = [p for i, layer in enumerate(layers) if i != block.number
                      for p in layer.parameters()]  # fmt: skip
            assert {p.device for p in others} == {torch.device("meta")}
            before = [weakref.ref(linear.weight) for linear in block.linears]
    assert {p.device for p in blocks._model.parameters()} == {torch.device("meta")}


def test_changed_weights_do_not_reach_the_view(make: Family) -> None:
    base, adapter, _ = make("llama")
    merged = open_merged(base, adapter, base_precision="nf4")
    before = {name: merged.tensor(name) for name in linears(merged)}
    block = next(iter(Blocks(merged, conversations(merged, 20), threads=1)))
    for linear in block.linears:
        linear.weight.zero_()
    assert all(np.array_equal(merged.tensor(name), before[name]) for name in before)


@pytest.mark.parametrize(("case", "stage"), [("llama", 0), ("mixtral", 2)])
def test_hooks_and_linear_are_restored(make: Family, case: str, stage: int) -> None:
    """After a stage of linear layers, and after one of experts in a 3-D parameter."""
    import torch

    base, adapter, _ = make(case)
    merged = open_merged(base, adapter)
    real = torch.nn.functional.linear
    block = next(iter(Blocks(merged, conversations(merged, 20), threads=1)))
    linears = list(block.stages())[stage]

    def restored() -> bool:
        hooks = [hook for linear in block.linears for hook in linear.module._forward_pre_hooks]
        return torch.nn.functional.linear is real and not hooks

    full = mock.patch.object(hessians.InputRecorder, "_add", side_effect=RuntimeError("full"))
    with full, pytest.raises(RuntimeError, match="full"):
        block.gather(linears)
    assert restored()
    block.gather(linears)
    assert restored()
    assert not [layer for layer in block._blocks._model.base_model.layers
                if "forward" in vars(layer)]  # fmt: skip


def test_unusable_input_is_refused(make: Family) -> None:
    base, adapter, _ = make("llama")
    merged = open_merged(base, adapter)
    for nothing in ([], [[], []]):
        with pytest.raises(InputError, match="no conversations"):
            Blocks(merged, nothing, threads=1)
    base, adapter, _ = make("chatglm3-32k")
    with pytest.raises(FormatError, match="transformers has no"):
        Blocks(open_merged(base, adapter), [[1, 2]], threads=1)


@pytest.mark.parametrize(
    ("case", "name", "stage"),
    [
        ("llama", "model.layers.1.self_attn.k_proj.weight", 0),
        ("llama", "model.layers.1.self_attn.o_proj.weight", 2),
        ("llama", "model.layers.1.mlp.down_proj.weight", 4),
        ("llama", "model.layers.1.input_layernorm.weight", None),
        ("llama-linear", "model.layers.1.self_attn.q_proj.bias", None),
        ("qwen3", "model.layers.1.self_attn.q_norm.weight", None),
        ("llama", "model.embed_tokens.weight", None),
        ("llama", "lm_head.weight", None),
        ("pythia", "gpt_neox.layers.0.attention.query_key_value.weight", 0),
        ("deepseek2", "model.layers.0.self_attn.q_a_proj.weight", 0),
        ("deepseek2", "model.layers.0.self_attn.kv_a_proj_with_mqa.weight", 0),
        ("deepseek2", "model.layers.0.self_attn.kv_b_proj.weight", 1),
        ("qwen2_moe", "model.layers.0.mlp.gate.weight", None),
        ("qwen2_moe", "model.layers.0.mlp.shared_expert_gate.weight", None),
        ("qwen2_moe", "model.layers.0.mlp.shared_expert.up_proj.weight", 3),
        ("qwen2_moe", "model.layers.0.mlp.experts.2.down_proj.weight", 4),
    ],
)
def test_stages(make: Family, case: str, name: str, stage: int | None) -> None:
    base, adapter, _ = make(case)
    merged = open_merged(base, adapter)
    assert name in merged.shapes
    assert stage_of(merged.card, name) == stage
