"""Training from a GGUF file (--ship-from): its codes move, its scales stay, and the export is that file."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeft import store
from edgeft.adapter.read import Weighted
from edgeft.errors import EdgeftError, InputError, StaleError
from edgeft.export.pipeline import ExportOptions, export
from edgeft.merge.view import open_merged
from edgeft.quantization.ggml_blocks import codes_of, grid_of
from edgeft.train.options import TrainOptions
from edgeft.train.run import train
from edgeft.weights import gguf_reader
from helpers.interrupting import interrupted_at

Trained = tuple[TrainOptions, dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def first(tiny_base: Path, tiny_chats: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainOptions:
    """An adapter; its export by GPTQ lies beside it."""
    options = TrainOptions(
        base=tiny_base, data=tiny_chats, output=tmp_path_factory.mktemp("first") / "adapter",
        steps=4, batch_size=4, micro_batch_size=4, learning_rate=5e-3, save_every=2, eval_every=3,
        target_modules=("q_proj", "v_proj", "down_proj"),
    )  # fmt: skip
    train(options)
    export(ExportOptions(options.output.parent, (Weighted(options.output),), quants=("gptq-q4_0",),
                         threads=1, compare_live=False))  # fmt: skip
    return options


def file_of(first: TrainOptions) -> Path:
    return first.output.with_name("gptq-q4_0.gguf")


@pytest.fixture(scope="module")
def trained(first: TrainOptions, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The training from the file, and the values that its layers computed with at the end."""
    from edgeft.train.ship.weights import ShipWeights

    options = dataclasses.replace(
        first, adapter=first.output, ship="q4_0", ship_from=file_of(first),
        output=tmp_path_factory.mktemp("ship") / "adapter",
    )  # fmt: skip
    values: dict[str, np.ndarray] = {}
    facts = ShipWeights.facts

    def watched(self: ShipWeights) -> dict[str, Any]:
        values.update({layer.name: layer.values.numpy().copy() for layer in self.layers})
        return facts(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShipWeights, "facts", watched)
        train(options)
    return options, values


@pytest.fixture(scope="module")
def artifact(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without --format and --quant."""
    out = tmp_path_factory.mktemp("artifacts")
    (one,) = export(ExportOptions(out, (Weighted(trained[0].output),), threads=1))
    return one.path


def tensors(path: Path) -> dict[str, tuple[Any, np.ndarray]]:
    """GGUF name -> (type, bytes)."""
    header = gguf_reader.read(path)
    return {name: (t.type, gguf_reader.data(header, t)) for name, t in header.tensors.items()}


def test_codes_of_the_trained_layers_move_and_nothing_else(
    first: TrainOptions, artifact: Path
) -> None:
    assert artifact.name == "q4_0.gguf"
    before, after = tensors(file_of(first)), tensors(artifact)
    assert before.keys() == after.keys()
    moved = 0
    for name, (qtype, data) in after.items():
        assert qtype == before[name][0]
        if not name.startswith("blk.") or name.split(".")[2] not in ("attn_q", "attn_v", "ffn_down"):
            assert np.array_equal(data, before[name][1]), name
            continue
        assert np.array_equal(grid_of(data, qtype).step, grid_of(before[name][1], qtype).step)
        codes = [codes_of(one, qtype).astype(int) for one in (data, before[name][1])]
        moved += int((codes[0] != codes[1]).sum())
        assert abs(codes[0] - codes[1]).max() <= 4, name
    assert moved > 10


def test_the_file_and_the_view_have_the_values_of_the_last_step(
    trained: Trained, artifact: Path
) -> None:
    manifest = store.read_manifest(artifact)
    assert manifest is not None
    ship = manifest.facts["ship"]
    assert ship["equal"] == ship["tensors"] == 15 and ship["difference"] == 0
    assert manifest.facts["parity"]["live"]["prompts"] > 0
    assert manifest.facts["proof"]["base_precision"] == "file"
    assert manifest.facts["proof"]["beta"] == pytest.approx(1)
    view = open_merged(trained[0].base, trained[0].output)
    assert len(trained[1]) == 6
    for name, values in trained[1].items():
        assert np.array_equal(view.tensor(name), values), name


def test_a_run_that_was_interrupted_ends_with_the_same_bytes(
    trained: Trained, tmp_path: Path
) -> None:
    options = dataclasses.replace(trained[0], output=tmp_path / "adapter")
    with interrupted_at(3):
        train(options)
    again = train(options, resume=True)
    whole = store.read_manifest(trained[0].output)
    assert whole is not None and again.facts["ship"] == whole.facts["ship"]
    assert again.files == whole.files


def test_a_change_of_zero_moves_nothing(first: TrainOptions) -> None:
    """Every start is nearest to the value of the file, in every type whose values are evenly spaced."""
    from gguf import GGMLQuantizationType as Type

    from edgeft.quantization import ggml
    from edgeft.quantization.ggml_blocks import supports
    from edgeft.quantization.kept_scales import KeptScales

    draw = np.random.default_rng(0)
    for qtype in filter(supports, Type):
        data = ggml.quantize(draw.standard_normal((6, 512), np.float32), qtype, 1)
        data[2] = ggml.quantize(np.zeros((1, 512), np.float32), qtype, 1)[0]
        kept = KeptScales.__new__(KeptScales)
        tensor = gguf_reader.Tensor("w", (6, 512), qtype, 0, data.shape[1])
        kept._places = {"w": (tensor, np.array([1, 0, 3, 2, 5, 4]))}
        kept.data = lambda name, rows, data=data: data[kept._places["w"][1][rows]]  # type: ignore[method-assign]
        for rows in (slice(0, 6), slice(2, 4), np.array([5, 0])):
            start = kept.start("w", rows)
            assert np.array_equal(kept.nearest("w", rows, start), kept.data("w", rows)), qtype
            assert np.array_equal(kept.scales("w", rows).nearest(start), kept.values("w", rows))
            assert np.array_equal(start, kept.start("w", slice(None))[rows])


def test_small_changes_arrive_on_average() -> None:
    from edgeft.quantization.kept_scales import _places

    places = _places("blk.0.ffn_up.weight", np.arange(400), 512)
    assert abs(places.mean()) < 0.005 and abs(places).max() < 0.5
    assert np.rint(places + np.float32(0.1)).mean() == pytest.approx(0.1, abs=0.01)
    assert np.corrcoef(places[:-1].ravel(), places[1:].ravel())[0, 1] == pytest.approx(0, abs=0.01)


def test_files_of_others_are_refused(first: TrainOptions, trained: Trained, tmp_path: Path) -> None:
    export(ExportOptions(tmp_path, (Weighted(first.output),), quants=("q4_0", "q8_0"), threads=1,
                         compare_live=False))  # fmt: skip
    plain = tmp_path / "copy.gguf"
    plain.write_bytes((tmp_path / "q4_0.gguf").read_bytes())
    more = dataclasses.replace(trained[0], output=tmp_path / "out")
    for options, message in (
        (dataclasses.replace(more, ship_from=plain), "was not exported from"),
        (dataclasses.replace(more, ship_from=tmp_path / "q8_0.gguf"), "in Q8_0, q4_0 has it in"),
        (dataclasses.replace(more, ship_from=tmp_path / "none.gguf"), "no such file"),
        (dataclasses.replace(more, adapter=trained[0].output), "no adapter of the base"),
    ):
        with pytest.raises(InputError, match=message):
            train(options)
    for wrong in ({"adapter": None}, {"ship": None}, {"ship_distill": 0.5}, {"ship_steps": 0.5}):
        with pytest.raises(InputError, match="--ship-from"):
            dataclasses.replace(more, **wrong)


def test_the_adapter_alone_is_no_adapter_of_the_base(
    trained: Trained, first: TrainOptions, tmp_path: Path
) -> None:
    base, adapter = trained[0].base, trained[0].output
    with pytest.raises(EdgeftError, match="merged alone"):
        open_merged(base, [Weighted(adapter), Weighted(first.output)])
    with pytest.raises(InputError, match="no other one is"):
        open_merged(base, adapter).with_base("stored")
    options = ExportOptions(tmp_path, (Weighted(adapter),), quants=("f16",), threads=1)
    (half,) = export(options)
    assert half.manifest.facts["ship"]["difference"] < 1e-3  # float16 of the file's values
    moved = file_of(first).rename(tmp_path / "moved.gguf")
    try:
        with pytest.raises(StaleError, match="which is gone"):
            open_merged(base, adapter)
    finally:
        moved.rename(file_of(first))
