"""Every row of METHODS: it learns, changes what it says, and its export is the live model."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeft import store
from edgeft.adapter.read import Weighted
from edgeft.base.resolve import resolve_base
from edgeft.benchmarks.suites import load_suite
from edgeft.export.options import ExportOptions
from edgeft.export.pipeline import export
from edgeft.files import read_json
from edgeft.merge.view import Merged, open_merged
from edgeft.records import Manifest
from edgeft.runtimes.gguf import GGUFRuntime
from edgeft.runtimes.reference import ReferenceRuntime
from edgeft.train.options import TrainOptions
from edgeft.train.registry import METHODS
from edgeft.weights.checkpoint import Checkpoint

PROJECTIONS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
NORMS = {"input_layernorm", "post_attention_layernorm", "norm"}
CHANGED = {
    "ia3": {"k_proj", "v_proj", "down_proj"},
    "ln_tuning": NORMS,
    "bitfit": NORMS,  # the base has no biases
    "freeze": PROJECTIONS | NORMS - {"norm"},
    "full": PROJECTIONS | NORMS | {"embed_tokens"},
}
"""method -> modules whose weights change; the others change the linear layers of a block"""


SLOW = pytest.mark.slow


def fast(*names: str) -> list[Any]:
    """Every method as a parameter; all but these are for the slow tests."""
    return [pytest.param(name, marks=() if name in names else SLOW) for name in METHODS]


@dataclass(frozen=True)
class Trained:
    method: str
    base: Path
    """what the method began from"""
    output: Path
    manifest: Manifest

    @property
    def is_base(self) -> bool:
        return METHODS[self.method].result == "base"

    @property
    def adapters(self) -> tuple[Weighted, ...]:
        return () if self.is_base else (Weighted(self.output),)

    @property
    def export_base(self) -> Path:
        return self.output if self.is_base else self.base


def train(
    method: str, base: Path, chats: Path, output: Path, resume: bool = False, **more: Any
) -> Trained:
    from edgeft.train.run import train as run

    settings: dict[str, Any] = {
        "steps": 4, "batch_size": 4, "micro_batch_size": 4, "validation_size": 4, "warmup": 0,
        "learning_rate": 10 * METHODS[method].learning_rate, "save_every": 0,
        "compute_type": "fp32",
    }  # fmt: skip
    options = TrainOptions(base, chats, output, **settings | more)
    return Trained(method, base, output, run(options, resume, method=method))


@pytest.fixture(scope="module", params=METHODS)
def trained(
    request: pytest.FixtureRequest,
    tiny_base: Path,
    tiny_chats: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Trained:
    output = tmp_path_factory.mktemp(request.param) / "result"
    return train(request.param, tiny_base, tiny_chats, output)


def test_the_loss_falls(trained: Trained) -> None:
    losses = [loss for _, loss in trained.manifest.facts["loss"]]
    assert len(losses) == 4 and min(losses[2:]) < 0.97 * losses[0]
    (_, last) = trained.manifest.facts["validation_loss"][-1]
    assert last < losses[0]


def test_the_chosen_weights_change_in_every_layer_and_no_others(trained: Trained) -> None:
    before, after = Checkpoint(trained.base), merged(trained)
    changed = {
        name for name in after.shapes if not np.array_equal(before.read(name), after.tensor(name))
    }
    modules = CHANGED.get(trained.method, PROJECTIONS)
    assert changed == {name for name in after.shapes if name.split(".")[-2] in modules}
    count = trained.manifest.facts["trained_parameters"]
    assert 0 < count <= sum(np.prod(shape) for shape in after.shapes.values())


def merged(trained: Trained) -> Merged:
    adapter = None if trained.is_base else trained.output
    return open_merged(trained.export_base, adapter)


def test_the_export_is_the_live_model(trained: Trained, tmp_path: Path) -> None:
    (artifact,) = export(
        ExportOptions(
            out=tmp_path, adapter=trained.adapters, base=str(trained.export_base),
            quants=("f32",), base_precision=precision(trained), threads=1,
        )
    )  # fmt: skip
    facts = artifact.manifest.facts
    assert facts["parity"]["live"]["kl"] < 1e-4 and facts["parity"]["greedy"]
    if trained.adapters:
        assert facts["proof"]["tensors"] + facts["proof"]["replaced"]
    else:
        assert artifact.manifest.parents["base"] == store.identity(trained.output)
    ids = [5, 40, 41, 42, 60, 61]
    with GGUFRuntime(artifact.path, threads=1) as model, live(trained) as reference:
        np.testing.assert_allclose(
            model.logits(ids), reference.logits(ids), atol=0.05, err_msg=trained.method
        )


def precision(trained: Trained) -> Any:
    """The one that was trained on, without the measurement of `auto`."""
    return "nf4" if trained.method == "qlora" else "stored"


def live(trained: Trained) -> ReferenceRuntime:
    """peft's live model; of QLoRA on the NF4 values."""
    view = merged(trained).with_base(precision(trained))
    weights = view.base_tensors() if trained.method == "qlora" else None
    return ReferenceRuntime(
        trained.export_base, weights=weights, adapters=[tuple(a) for a in trained.adapters]
    )


@pytest.mark.parametrize("trained", fast("qlora", "pissa", "full"), indirect=True)
def test_the_same_seed_writes_the_same_bytes(
    trained: Trained, tiny_chats: Path, tmp_path: Path
) -> None:
    again = train(trained.method, trained.base, tiny_chats, tmp_path / "again")
    assert again.manifest.files == trained.manifest.files
    weights = [name for name in again.manifest.files if name.endswith(".safetensors")]
    assert len(weights) == 1
    if (
        not trained.is_base
    ):  # peft writes sets in the order of their hashes, another in each process
        config = read_json(trained.output / "adapter_config.json")
        assert config["target_modules"] == sorted(config["target_modules"])


@pytest.mark.parametrize("method", (pytest.param("lora", marks=SLOW), "bitfit", "full"))
def test_each_kind_of_result_is_written_in_every_format(
    method: str, tiny_base: Path, tiny_chats: Path, tmp_path: Path
) -> None:
    """Matrices, whole weights, a base folder; GPTQ is calibrated on the data of the training."""
    trained = train(method, tiny_base, tiny_chats, tmp_path / "result")
    assert set(METHODS[method].formats) == {"gguf", "hf", "gptq", "onnx"}
    artifacts = export(
        ExportOptions(
            out=tmp_path / "out", adapter=trained.adapters, base=str(trained.export_base),
            formats=("hf", "gptq", "onnx"), quants=("f32", "8bit"), threads=1,
        )
    )  # fmt: skip
    kl = {(a.format, a.quant): a.manifest.facts["parity"]["live"]["kl"] for a in artifacts}
    assert kl.keys() == {("hf", "f32"), ("gptq", "8bit"), ("onnx", "f32")}
    assert kl["hf", "f32"] < 1e-6 and kl["onnx", "f32"] < 1e-4 and kl["gptq", "8bit"] < 0.01


@pytest.mark.parametrize("method", fast("pissa"))
def test_a_resumed_run_has_the_same_losses_and_result(
    method: str,
    tiny_base: Path,
    tiny_chats: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from edgeft.train import loop

    whole = train(method, tiny_base, tiny_chats, tmp_path / "result", save_every=2)
    shutil.rmtree(tmp_path / "result")

    class Stopped(Exception):
        pass

    def stop(*args: Any, **kwargs: Any) -> None:
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(loop, "loss_curve", stop)  # after the last checkpoint, before the manifest
        with pytest.raises(Stopped):
            train(method, tiny_base, tiny_chats, tmp_path / "result", save_every=2)
    shutil.rmtree(tmp_path / "result.work" / "checkpoint-4")
    again = train(method, tiny_base, tiny_chats, tmp_path / "result", resume=True, save_every=2)
    assert again.manifest.facts["loss"] == whole.manifest.facts["loss"]
    assert again.manifest.files == whole.manifest.files


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_the_embedded_model_learns_and_lands(method: str, tmp_path: Path) -> None:
    base, data = resolve_base("smollm2-135m"), load_suite("smart_home").train
    rate = METHODS[method].learning_rate
    more: dict[str, Any] = {"learning_rate": rate, "steps": 5, "seed": 1}
    trained = train(method, base, data, tmp_path / "result", **more)
    losses = [loss for _, loss in trained.manifest.facts["loss"]]
    assert min(losses[3:]) < losses[0]
    (artifact,) = export(
        ExportOptions(
            out=tmp_path / "out", adapter=trained.adapters, base=str(trained.export_base),
            quants=("f16",), base_precision=precision(trained),
        )
    )  # fmt: skip
    facts = artifact.manifest.facts
    assert facts["parity"]["live"]["kl"] < 1e-3 and facts["parity"]["greedy"]
    assert trained.is_base or facts["proof"]["tensors"] + facts["proof"]["replaced"]
