"""A training for a type, interrupted and not, and its export: the file has the bytes of the last step."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeft import store
from edgeft.adapter.read import Weighted
from edgeft.errors import EdgeftError, InputError
from edgeft.export.pipeline import ExportOptions, export
from edgeft.train.options import TrainOptions
from edgeft.train.run import train
from edgeft.weights import gguf_reader
from helpers.interrupting import interrupted_at
from helpers.shipping import check_resumed

Trained = tuple[TrainOptions, dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def trained(tiny_base: Path, tiny_chats: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """An adapter, and the values with which its layers computed at the end, by GGUF name."""
    from edgeft.train.ship.weights import ShipWeights

    options = TrainOptions(
        base=tiny_base, data=tiny_chats, output=tmp_path_factory.mktemp("ship") / "adapter",
        steps=6, batch_size=4, micro_batch_size=4, learning_rate=5e-3, save_every=2, eval_every=3,
        ship="q4_0", ship_steps=4,
    )  # fmt: skip
    values: dict[str, np.ndarray] = {}
    update = ShipWeights.update

    def watched(self: ShipWeights, exact: bool) -> None:
        update(self, exact)
        values.update({layer.file.name: layer.values.numpy()[rows_of(layer)].copy()
                       for layer in self.layers})  # fmt: skip

    def rows_of(layer: Any) -> Any:
        return slice(None) if layer.file.order is None else layer.file.order

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShipWeights, "update", watched)
        train(options)
    return options, values


@pytest.fixture(scope="module")
def artifacts(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("artifacts")
    adapters = (Weighted(trained[0].output),)
    export(ExportOptions(out, adapters))
    export(ExportOptions(out, adapters, quants=("f16",), compare_live=False))
    return out


def facts(path: Path) -> dict[str, Any]:
    manifest = store.read_manifest(path)
    assert manifest is not None
    return manifest.facts


def test_the_manifest_says_what_was_trained_for(trained: Trained) -> None:
    ship = facts(trained[0].output)["ship"]
    assert (ship["type"], ship["base_precision"], ship["from_step"]) == ("q4_0", "nf4", 3)
    assert set(trained[1]) | {"token_embd.weight"} == set(ship["tensors"])
    assert ship["tensors"]["token_embd.weight"][0] == "Q8_0"


def test_the_default_type_is_the_trained_one_and_has_the_values_of_the_last_step(
    trained: Trained, artifacts: Path
) -> None:
    from gguf import dequantize

    header = gguf_reader.read(artifacts / "q4_0.gguf")
    for name, values in trained[1].items():
        tensor = header.tensors[name]
        data = np.array(gguf_reader.data(header, tensor)).reshape(tensor.shape[0], -1)
        assert np.array_equal(dequantize(data, tensor.type), values), name
    of_file = facts(artifacts / "q4_0.gguf")
    assert of_file["ship"] == {"type": "q4_0", "equal": 15, "tensors": 15, "difference": 0}
    assert of_file["base_precision"]["chosen"] == "nf4"
    assert "loss" not in of_file["base_precision"], "nothing is left to be measured"


def test_the_report_says_what_a_file_was_trained_for(artifacts: Path) -> None:
    from edgeft.release.describe import _lineage

    said = {
        path: _lineage(artifacts / path)[0]["options"]["weights"]
        for path in ("q4_0.gguf", "f16.gguf")
    }
    assert said["q4_0.gguf"] == "the weights of the training's last step, bit for bit: 15 tensors"
    assert said["f16.gguf"].startswith("trained for q4_0: the weights of f16 differ")


def test_another_type_is_compared_with_the_trained_values(
    trained: Trained, artifacts: Path
) -> None:
    ship = facts(artifacts / "f16.gguf")["ship"]
    assert ship["equal"] == 0
    header = gguf_reader.read(artifacts / "f16.gguf")
    errors = sizes = 0.0
    for name, values in trained[1].items():
        tensor = header.tensors[name]
        half = np.array(gguf_reader.data(header, tensor)).view(np.float16).reshape(values.shape)
        errors += np.square(half.astype(np.float64) - values).sum()
        sizes += np.square(values, dtype=np.float64).sum()
    # The recorded one counts the embedding, too, whose Q8_0 is close to its half-precision values.
    assert 0.3 < ship["difference"] / (errors / sizes) ** 0.5 < 1


def test_another_base_precision_is_said_to_differ(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapters = (Weighted(trained[0].output),)
    export(ExportOptions(tmp_path, adapters, base_precision="stored", compare_live=False))
    assert 0 < facts(tmp_path / "q4_0.gguf")["ship"]["equal"] < 15
    said = capsys.readouterr().err
    assert "14 of 15 tensors differ from the training's by" in said and "base precision" in said


def test_a_run_that_was_interrupted_within_the_steps_of_ship_ends_with_the_same_bytes(
    trained: Trained, tmp_path: Path
) -> None:
    options = dataclasses.replace(trained[0], output=tmp_path / "adapter")
    with interrupted_at(5):
        train(options)
    again = train(options, resume=True)
    whole = store.read_manifest(trained[0].output)
    assert whole is not None
    for key in ("loss", "validation_loss", "ship"):
        assert again.facts[key] == whole.facts[key], key
    assert again.files == whole.files


def test_an_adapter_is_trained_on_for_a_type_alone(trained: Trained, tmp_path: Path) -> None:
    options = dataclasses.replace(
        trained[0], output=tmp_path / "adapter", adapter=trained[0].output, ship="q5_0",
        ship_steps=None, steps=2,
    )  # fmt: skip
    assert train(options).facts["ship"]["from_step"] == 1


def test_a_text_is_read_in_the_steps_of_the_type(trained: Trained, tmp_path: Path) -> None:
    """Also where a step has several micro-batches. Another text is another training."""
    text = tmp_path / "text.txt"
    text.write_text("The lamp on the floor is old. " * 60)
    options = dataclasses.replace(
        trained[0], adapter=trained[0].output, ship_steps=2, steps=4, save_every=3,
        micro_batch_size=2, ship_text=text, output=tmp_path / "adapter",
    )  # fmt: skip
    divergences = train(options).facts["ship"]["text_divergence"]
    assert [step for step, _ in divergences] == [3, 4]
    check_resumed(options, tmp_path / "again")
    assert train(options).facts["ship"]["text_divergence"] == divergences
    text.write_text("Other words. " * 60)
    with pytest.raises(EdgeftError, match="another|other"):
        train(options)


def test_what_a_text_or_a_teacher_does_not_go_with(trained: Trained, tmp_path: Path) -> None:
    options = dataclasses.replace(
        trained[0], adapter=trained[0].output, ship_steps=None, output=tmp_path / "adapter"
    )
    for wrong in ({"adapter": None}, {"ship": None, "ship_steps": None}):
        with pytest.raises(InputError, match="--ship-text needs --ship"):
            dataclasses.replace(options, ship_text=tmp_path / "text.txt", **wrong)
    for teacher in ({"ship_text": tmp_path / "text.txt"}, {"ship_distill": 0.5}):
        with pytest.raises(InputError, match="--neftune-alpha would also disturb"):
            dataclasses.replace(options, neftune_alpha=5.0, **teacher)
    with pytest.raises(InputError, match="no such file: .*text.txt"):
        train(dataclasses.replace(options, ship_text=tmp_path / "text.txt"))


def test_a_teacher_changes_what_is_learned_and_not_what_is_shipped(
    trained: Trained, tmp_path: Path
) -> None:
    options = dataclasses.replace(
        trained[0], adapter=trained[0].output, ship_steps=None, steps=3, save_every=0
    )
    losses = {}
    for share in (0.0, 0.5):
        out = tmp_path / str(share)
        run = dataclasses.replace(options, output=out / "adapter", ship_distill=share)
        losses[share] = train(run).facts["loss"]
        export(ExportOptions(out, (Weighted(run.output),), compare_live=False))
        assert facts(out / "q4_0.gguf")["ship"]["equal"] == 15
    assert losses[0.0] != losses[0.5]
