"""Training for a GPTQ or an ONNX folder: the export has the values of the last step, and nothing is calibrated."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeft import store
from edgeft.adapter.read import Weighted
from edgeft.errors import FormatError
from edgeft.export.pipeline import ExportOptions, export
from edgeft.train.options import TrainOptions
from edgeft.weights.checkpoint import Checkpoint

QUANTS = {"4bit": "gptq", "int4": "onnx"}
from helpers.shipping import check_resumed, train_watched

Trained = tuple[TrainOptions, dict[str, np.ndarray]]


@pytest.fixture(scope="module", params=list(QUANTS))
def trained(
    request: pytest.FixtureRequest, tiny_base: Path, tiny_chats: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Trained:  # fmt: skip
    """An adapter, and the values that its layers computed with at the end, by their names."""
    options = TrainOptions(
        base=tiny_base, data=tiny_chats, output=tmp_path_factory.mktemp("ship") / "adapter",
        steps=4, batch_size=4, micro_batch_size=4, learning_rate=5e-3, save_every=2, eval_every=3,
        ship=request.param, ship_steps=3, target_modules=("q_proj", "v_proj", "down_proj"),
    )  # fmt: skip
    return options, train_watched(options, embedding=True)


@pytest.fixture(scope="module")
def artifact(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without --format and --quant."""
    out = tmp_path_factory.mktemp("artifacts")
    (one,) = export(ExportOptions(out, (Weighted(trained[0].output),), threads=1))
    return one.path


def facts(path: Path) -> dict[str, Any]:
    manifest = store.read_manifest(path)
    assert manifest is not None
    return manifest.facts


def stored(folder: Path) -> dict[str, np.ndarray]:
    """Values that a finished folder has, by the names of the checkpoint, for a tiny Llama."""
    if (folder / "model.safetensors").is_file():
        checkpoint = Checkpoint(folder)
        return {name: checkpoint.read(name) for name in checkpoint.tensors}
    import onnx

    graph = onnx.load(folder / "model.onnx").graph
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    values = {}
    for node in graph.node:
        if node.op_type == "MatMulNBits":
            width, bits = (next(a.i for a in node.attribute if a.name == n) for n in ("K", "bits"))
            codes, scales = (arrays[name] for name in node.input[1:3])
            if bits == 4:
                codes = np.stack([codes & 15, codes >> 4], axis=-1)
            codes = codes.reshape(*scales.shape, -1).astype(np.float32) - 2 ** (bits - 1)
            values[node.name] = (codes * scales[..., None]).reshape(len(scales), -1)[:, :width]
    named = {}
    for i in range(2):
        layer = f"/model/layers.{i}"
        packed = values[f"{layer}/attn/qkv_proj/MatMul_MatMulNBits"]
        q, _, v = np.split(packed, [64, 96])
        down = values[f"{layer}/mlp/down_proj/MatMul_MatMulNBits"]
        prefix = f"model.layers.{i}."
        named |= {f"{prefix}self_attn.q_proj.weight": q, f"{prefix}self_attn.v_proj.weight": v,
                  f"{prefix}mlp.down_proj.weight": down}  # fmt: skip
    return named | {"model.embed_tokens.weight": values["/lm_head/MatMul_MatMulNBits"]}


def test_the_default_is_the_trained_format_and_type_with_the_values_of_the_last_step(
    trained: Trained, artifact: Path
) -> None:
    quant = trained[0].ship
    assert quant and artifact.name == f"{QUANTS[quant]}-{quant}"
    in_file = stored(artifact)
    assert len(trained[1]) == 7
    for name, values in trained[1].items():
        assert np.array_equal(in_file[name], values), name
    of_file = facts(artifact)
    count = {"4bit": 20, "int4": 15}[quant]  # a GPTQ folder has its norms in float16
    assert of_file["ship"] == {"type": quant, "equal": count, "tensors": count, "difference": 0}
    assert "calibration" not in of_file and "damp" not in of_file
    assert of_file["parity"]["live"]["prompts"] > 0


def test_a_run_that_was_interrupted_ends_with_the_same_bytes(
    trained: Trained, tmp_path: Path
) -> None:
    check_resumed(trained[0], tmp_path / "adapter")


def test_another_type_is_compared_and_other_groups_are_calibrated(
    trained: Trained, tiny_chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quant, adapters = trained[0].ship, (Weighted(trained[0].output),)
    export(ExportOptions(tmp_path, adapters, quants=("q8_0",), threads=1, compare_live=False))
    ship = facts(tmp_path / "q8_0.gguf")["ship"]
    assert ship["equal"] == 0 and 0.01 < ship["difference"] < 0.3
    assert f"trained for {quant}: the weights of q8_0 differ" in capsys.readouterr().err
    if quant == "4bit":
        options = ExportOptions(tmp_path, adapters, formats=("gptq",), group_size=32, threads=1,
                                compare_live=False)  # fmt: skip
        (one,) = export(options)
        assert "calibration" in one.manifest.facts and one.manifest.facts["group_size"] == 32
        assert one.manifest.facts["ship"]["equal"] < 20
        other = dataclasses.replace(options, out=tmp_path / "own", group_size=None,
                                    calibration=tiny_chats)  # fmt: skip
        assert "calibration" in export(other)[0].manifest.facts


@pytest.mark.parametrize("quant", ["2bit", "gptq-int4", "f32", "auto"])
def test_what_needs_calibration_or_does_not_round_is_refused(quant: str) -> None:
    from edgeft.train.ship import check_type

    with pytest.raises(FormatError, match=f"--ship {quant} is no type that rounds"):
        check_type(quant)
