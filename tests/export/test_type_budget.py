"""Types of tensors for a size: what they rest on, what they predict, and the file that has them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeft.adapter.read import Weighted
from edgeft.converters.gguf.plan import make_plan
from edgeft.converters.options import ConvertOptions
from edgeft.errors import FormatError, InputError, ProofError, ResourceError
from edgeft.export import sensitivity, type_budget
from edgeft.export.options import ExportOptions
from edgeft.export.pipeline import export
from edgeft.export.sensitivity import sensitivities
from edgeft.merge.view import open_merged
from edgeft.quantization import ggml
from edgeft.quantization.budget import assign_shifted, total_cost
from edgeft.weights import gguf_reader
from helpers.adapters import make_adapter
from helpers.tiny import make_base


def live_model(base: Path) -> Any:
    import torch
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)


def test_squares_are_those_of_the_gradient_of_a_single_token(
    tiny_base: Path, tmp_path: Path
) -> None:
    """The gradient of a weight is g x^T there, so its square is the product of the two."""
    import torch

    merged = open_merged(tiny_base, None)
    uses = sensitivities(merged, [[7]], tmp_path, threads=1, seed=3)
    model = live_model(tiny_base)
    logits = model(torch.tensor([[7]])).logits[0]
    drawn = torch.multinomial(logits.softmax(-1), 1, generator=torch.Generator().manual_seed(3))
    torch.nn.functional.cross_entropy(logits, drawn[:, 0], reduction="sum").backward()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and "embed" not in name:
            (use,) = uses[name]
            expected = parameter.grad.square().numpy()
            assert np.allclose(np.outer(use.rows, use.columns), expected, rtol=1e-3, atol=1e-12), (
                name
            )
    assert not set(merged.shapes) - set(uses) - {n for n, s in merged.shapes.items() if len(s) == 1}


def test_the_predicted_divergence_is_the_measured_one(tmp_path: Path) -> None:
    """Q8_0 on every layer of a tiny model: KL divergence in nats a token, within a factor of 2."""
    import torch
    from gguf import GGMLQuantizationType

    qtype = GGMLQuantizationType.Q8_0
    base = make_base(tmp_path / "base", hidden=256)
    merged = open_merged(base, None)
    rng = np.random.default_rng(0)
    sequences = rng.integers(0, merged.vocabulary, (24, 64)).tolist()
    uses = sensitivities(merged, sequences, tmp_path, threads=1)
    plan = make_plan(merged, "q8_0", ConvertOptions())
    model, rounded = live_model(base), live_model(base)
    state, expected = rounded.state_dict(), 0.0
    for target in plan.targets.values():
        part = target.parts[0]
        if len(part.shape) == 2 and "embed" not in part.source and part.transform.picks_rows:
            expected += type_budget.rounding(merged, part, uses[part.source], "q8_0")[0]
            values = state[part.source].numpy()
            rows = part.source_rows(np.arange(part.rows))
            data = ggml.quantize(np.ascontiguousarray(values[rows]), qtype, threads=1)
            values[rows] = ggml.dequantize(data, qtype)
    rounded.load_state_dict(state)
    with torch.inference_mode():
        before, after = (
            m(torch.tensor(sequences)).logits.log_softmax(-1) for m in (model, rounded)
        )
    measured = float((before.exp() * (before - after)).sum(-1).mean())
    assert measured / 2 < expected < measured * 2


@pytest.fixture(scope="module")
def on_the_grid(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A base whose layers lie on the grid of Q4_1, a small adapter, and the layers' targets and uses."""
    import torch
    from gguf import GGMLQuantizationType
    from safetensors.torch import load_file, save_file

    folder, q4_1 = tmp_path_factory.mktemp("grid"), GGMLQuantizationType.Q4_1
    base = make_base(folder / "base", hidden=256)
    state = load_file(base / "model.safetensors")
    for name, values in state.items():
        if values.ndim == 2 and "embed" not in name:
            data = ggml.quantize(values.float().numpy(), q4_1, threads=1)
            values.copy_(torch.from_numpy(ggml.dequantize(data, q4_1)))
    save_file(state, base / "model.safetensors")
    merged = open_merged(base, make_adapter(base, folder / "adapter", lora_alpha=0.1))
    ids = np.random.default_rng(0).integers(0, merged.vocabulary, (64, 48)).tolist()
    uses = sensitivities(merged, ids, folder, threads=1)
    plan = make_plan(merged, "q8_0", ConvertOptions())
    targets = {name: target for name, target in plan.targets.items()
               if len(target.parts[0].shape) == 2 and name != "token_embd.weight"}  # fmt: skip
    return merged, targets, uses


def measured(merged: Any, weights: dict[str, Any]) -> float:
    """KL divergence of the merged model with other weights from the merged model, nats a token."""
    import torch

    ids = torch.tensor(np.random.default_rng(1).integers(0, merged.vocabulary, (24, 48)))
    logits = []
    for changed in ({}, weights):
        model = live_model(merged.base)
        state = {name: torch.from_numpy(merged.tensor(name)) for name in merged.shapes}
        model.load_state_dict(
            state | {n: torch.from_numpy(v) for n, v in changed.items()}, strict=False
        )
        with torch.inference_mode():
            logits.append(model(ids).logits.log_softmax(-1))
    before, after = logits
    return float((before.exp() * (before - after)).sum(-1).mean())


def rounded(merged: Any, targets: dict[str, Any], types: dict[str, str]) -> dict[str, Any]:
    from gguf import GGMLQuantizationType

    weights = {}
    for name, kind in types.items():
        part = targets[name].parts[0]
        rows, values = part.source_rows(np.arange(part.rows)), merged.tensor(part.source)
        qtype = GGMLQuantizationType[kind.upper()]
        data = ggml.quantize(np.ascontiguousarray(values[rows]), qtype, threads=1)
        values[rows] = ggml.dequantize(data, qtype)
        weights[part.source] = values
    return weights


def test_what_is_lost_of_the_adapter_costs_what_is_predicted(on_the_grid: Any) -> None:
    """A share of the change of all layers, of some, and all that Q4_1 takes: nats a token."""
    merged, targets, uses = on_the_grid
    layers = [target.parts[0].source for target in targets.values()]
    layers = [name for name in layers if merged.adapted(name)]
    for share, lost in ((0.3, layers), (0.3, layers[::2]), (1.0, layers)):
        slopes = sum(use.slopes[0] for name in lost for use in uses[name])
        expected = float(np.square(share * slopes).sum())
        weights = {}
        for name in lost:
            before, delta = merged.addends(name, slice(None))
            weights[name] = before + np.float32(1 - share) * delta
        assert expected / 1.6 < measured(merged, weights) < expected * 1.6, share
    choices = type_budget._choices(merged, targets, uses, threads=1)
    q4_1 = {name: next(c for c in of if c.type == "q4_1") for name, of in choices.items()}
    assert total_cost(q4_1.values()) - sum(c.error for c in q4_1.values()) > 0.02, (
        "most of the change is lost"
    )
    found = measured(merged, rounded(merged, targets, dict.fromkeys(q4_1, "q4_1")))
    assert total_cost(q4_1.values()) / 1.6 < found < total_cost(q4_1.values()) * 1.6


def test_more_bytes_lose_less_where_the_base_lies_on_a_grid(on_the_grid: Any) -> None:
    merged, targets, uses = on_the_grid
    choices = type_budget._choices(merged, targets, uses, threads=1)
    largest = sum(max(choice.size for choice in of) for of in choices.values())
    found = []
    for share in (0.5, 0.6, 0.7):
        chosen = assign_shifted(choices, round(share * largest))
        types = {name: choice.type for name, choice in chosen.items()}
        found.append(measured(merged, rounded(merged, targets, types)))
        expected = total_cost(chosen.values())
        assert expected / 1.5 < found[-1] < expected * 1.5
    assert found[0] > 2 * found[1] > 4 * found[2]
    # Without the types that lose half of a layer's change, the second file had .23.
    assert found[1] < 0.08


@pytest.mark.parametrize("scale", [None, 8.0])
def test_the_embedding_is_as_sensitive_as_its_gradient(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: float | None
) -> None:
    """Of a single token only its row has a gradient; Gemma's embedding is scaled after the lookup."""
    import torch
    from torch.nn import Embedding

    forward = Embedding.forward
    if scale:
        monkeypatch.setattr(Embedding, "embed_scale", torch.tensor(scale), raising=False)
        monkeypatch.setattr(Embedding, "forward", lambda self, ids: forward(self, ids) * scale)
    lookup, head = sensitivities(open_merged(tiny_base, None), [[7]], tmp_path, threads=1, seed=3)[
        "model.embed_tokens.weight"
    ]
    model = live_model(tiny_base)
    states = model.get_input_embeddings()(torch.tensor([[7]]))
    row = states.detach() / (scale or 1.0)
    row.requires_grad_()
    logits = model(inputs_embeds=row * (scale or 1.0)).logits[0]
    drawn = torch.multinomial(logits.softmax(-1), 1, generator=torch.Generator().manual_seed(3))
    torch.nn.functional.cross_entropy(logits, drawn[:, 0], reduction="sum").backward()
    assert np.allclose(lookup.columns, row.grad[0, 0].square().numpy(), rtol=1e-3)
    assert lookup.rows.sum() == pytest.approx(1) and head.rows.shape == lookup.rows.shape


def test_nothing_to_calibrate_on_and_broken_weights_are_refused(
    tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merged = open_merged(tiny_base, None)
    with pytest.raises(InputError, match="no conversations"):
        sensitivities(merged, [[]], tmp_path, threads=1)
    monkeypatch.setattr(sensitivity._Squares, "_mean", lambda self, sums: sums.numpy() * np.nan)
    with pytest.raises(ProofError, match="not finite"):
        sensitivities(merged, [[7]], tmp_path, threads=1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("wide") / "base", hidden=256)


def sizes(base: Path, adapter: Path, chats: Path, out: Path, max_size: int) -> ExportOptions:
    return ExportOptions(
        adapter=(Weighted(adapter),), base=str(base), out=out, quants=("auto",), calibration=chats,
        max_size=max_size, threads=1,
    )  # fmt: skip


def test_the_file_fits_and_more_bytes_lose_less(
    base: Path, tiny_chats: Path, tmp_path: Path
) -> None:
    adapter = make_adapter(base, tmp_path / "adapter")
    options = ExportOptions(
        adapter=(Weighted(adapter),),
        base=str(base),
        out=tmp_path,
        quants=("q4_0", "q8_0"),
        threads=1,
    )
    small, large = sorted(one.path.stat().st_size for one in export(options))
    losses = []
    for share in (0.1, 0.5, 1.0):
        out, max_size = tmp_path / str(share), round(small + share * (large - small))
        (auto,) = export(sizes(base, adapter, tiny_chats, out, max_size))
        size = auto.path.stat().st_size
        assert 0.95 * max_size < size <= max_size
        assert auto.manifest.options["max_size"] == max_size
        losses.append(auto.manifest.facts["parity"]["live"]["kl"])
    assert losses[0] > losses[1] > losses[2] > 0
    written = (tmp_path / "0.5" / "auto.gguf").stat().st_mtime_ns
    (again,) = export(sizes(base, adapter, tiny_chats, tmp_path / "0.5", max_size=round(
        small + 0.5 * (large - small))))  # fmt: skip
    assert again.path.stat().st_mtime_ns == written  # complete: nothing was written again


def test_the_users_own_types_stay(base: Path, tiny_chats: Path, tmp_path: Path) -> None:
    adapter = make_adapter(base, tmp_path / "adapter")
    options = sizes(base, adapter, tiny_chats, tmp_path / "out", 10**9)
    named = (
        (r"blk\.0\.ffn_down", "q4_0"),
        (r"blk\.0\.ffn_up", "f16"),
        (r"blk\.0\.attn_q", "iq3_s"),
    )
    (auto,) = export(dataclasses.replace(options, tensor_types=named))
    types = {name: t.type.name for name, t in gguf_reader.read(auto.path).tensors.items()}
    assert types["blk.0.ffn_down.weight"] == "Q4_0"
    assert types["blk.0.ffn_up.weight"] == "F16" and types["blk.0.attn_q.weight"] == "IQ3_S"
    assert types["blk.1.ffn_down.weight"] == "Q8_0"
    assert gguf_reader.read(auto.path).meta["general.file_type"] == 7  # MOSTLY_Q8_0


def test_what_cannot_be_is_one_line(base: Path, tiny_chats: Path, tmp_path: Path) -> None:
    adapter = make_adapter(base, tmp_path / "adapter")
    options = sizes(base, adapter, tiny_chats, tmp_path / "out", 1000)
    with pytest.raises(ResourceError, match=r"the smallest types make .*, not 1 kB"):
        export(options)
    with pytest.raises(FormatError, match="--quant auto and --max-size go together"):
        export(dataclasses.replace(options, max_size=None))
    with pytest.raises(FormatError, match="--quant auto and --max-size go together"):
        export(dataclasses.replace(options, quants=("q8_0",)))
    with pytest.raises(InputError, match="nothing to calibrate --quant auto on"):
        export(dataclasses.replace(options, calibration=None))
    assert not list((tmp_path / "out").glob("*"))
