"""Training from a GGUF file (--ship-from): its codes move, its scales stay, and the export is that file."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeft import store
from edgeft.adapter.folder import file_facts
from edgeft.adapter.read import Weighted
from edgeft.errors import AdapterError, EdgeftError, InputError, StaleError
from edgeft.export.pipeline import ExportOptions, export
from edgeft.merge.view import open_merged
from edgeft.quantization.ggml_blocks import codes_of, grid_of
from edgeft.runtimes.reference import ReferenceRuntime
from edgeft.train.options import TrainOptions
from edgeft.train.run import train
from edgeft.weights import gguf_reader
from edgeft.weights.checkpoint import Checkpoint
from helpers.shipping import check_resumed, train_watched

Trained = tuple[TrainOptions, dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def first(
    tiny_base: Path, tiny_chats: Path, tmp_path_factory: pytest.TempPathFactory
) -> TrainOptions:
    """An adapter; its export by GPTQ lies beside it."""
    options = TrainOptions(
        base=tiny_base, data=tiny_chats, output=tmp_path_factory.mktemp("first") / "adapter",
        steps=4, batch_size=4, micro_batch_size=4, learning_rate=5e-3, save_every=2, eval_every=3,
        target_modules=("q_proj", "v_proj", "down_proj"), compute_type="fp32",
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
    options = dataclasses.replace(
        first, adapter=first.output, ship="q4_0", ship_from=file_of(first),
        output=tmp_path_factory.mktemp("ship") / "adapter",
    )  # fmt: skip
    return options, train_watched(options)


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
        if not name.startswith("blk.") or name.split(".")[2] not in (
            "attn_q",
            "attn_v",
            "ffn_down",
        ):
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
    check_resumed(trained[0], tmp_path / "adapter")


def test_a_text_is_learned_from_the_adapter_before_its_rounding(
    first: TrainOptions, trained: Trained, tmp_path: Path
) -> None:
    """What does not train, such as the embedding, has the file's values for the teacher, too."""
    import torch

    from edgeft.train.ship import text_windows
    from edgeft.train.ship.text_divergence import TextDivergence

    text = tmp_path / "text.txt"
    text.write_text("".join(f"{number} lamps. " for number in range(600)))
    options = dataclasses.replace(trained[0], ship_text=text, output=tmp_path / "adapter")
    said = []
    of_window = TextDivergence._log_probabilities

    def recorded(self: TextDivergence, ids: Any) -> Any:
        said.append((ids, of_window(self, ids)))
        return said[-1][1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TextDivergence, "_log_probabilities", recorded)
        manifest = train(options)
    whole = store.read_manifest(trained[0].output)
    assert whole is not None and manifest.files != whole.files, "it is learned"
    divergences = manifest.facts["ship"]["text_divergence"]
    assert [step for step, _ in divergences] == [1, 2, 3, 4]
    windows = text_windows(text, first.base, 4)
    assert [ids.tolist() for ids, _ in said[::2]] == [[window] for window in windows]
    file, teacher = (
        open_merged(first.base, trained[0].output),
        open_merged(first.base, first.output),
    )
    with ReferenceRuntime(first.base, threads=1) as runtime, torch.no_grad():
        for name, weight in runtime.model.named_parameters():
            view = teacher.with_base("nf4") if name in trained[1] else file
            weight.copy_(torch.from_numpy(view.tensor(name)))
        expected = torch.from_numpy(runtime.logits(windows[3])).log_softmax(-1)
    torch.testing.assert_close(said[6][1], expected, atol=1e-4, rtol=1e-4)
    check_resumed(options, tmp_path / "again")
    distilled = dataclasses.replace(
        trained[0], ship_distill=0.5, save_every=0, output=tmp_path / "distilled"
    )
    assert train(distilled).files != whole.files


def test_a_change_of_zero_moves_nothing(first: TrainOptions) -> None:
    """Every start is nearest to the value of the file, in every type whose values are evenly spaced."""
    from gguf import GGMLQuantizationType as Type

    from edgeft.quantization import ggml
    from edgeft.quantization.ggml_blocks import supports
    from edgeft.quantization.kept_scales import KeptScales

    draw = np.random.default_rng(0)
    for qtype in filter(supports, Type):
        weights = draw.standard_normal((6, 512), np.float32)
        weights[2] = 0
        data = ggml.quantize(weights, qtype, 1)
        kept = KeptScales.__new__(KeptScales)
        tensor = gguf_reader.Tensor("w", (6, 512), qtype, 0, data.shape[1])
        kept._places = {"w": (tensor, np.array([1, 0, 3, 2, 5, 4]))}
        kept._bytes = np.ascontiguousarray(data).reshape(-1)
        for rows in (slice(0, 6), slice(2, 4), np.array([5, 0])):
            start = kept.start("w", rows)
            assert np.array_equal(kept.nearest("w", rows, start), kept.data("w", rows)), qtype
            assert np.array_equal(kept.scales("w", rows).nearest(start), kept.values("w", rows))
            assert np.array_equal(start, kept.start("w", slice(None))[rows])
            assert np.array_equal(kept.data("w", rows), data[np.array([1, 0, 3, 2, 5, 4])[rows]])
        with pytest.raises(ValueError, match="not every weight is finite"):
            kept.nearest("w", slice(0, 6), np.full_like(weights, np.inf))
        # A step below the last bit of the block's minimum: codes mean the same, and stay codes.
        kept._bytes = ggml.quantize(1 + np.float32(1e-6) * weights, qtype, 1).reshape(-1)
        kept.nearest("w", slice(0, 6), kept.start("w", slice(0, 6)))


def test_small_changes_arrive_on_average() -> None:
    from edgeft.quantization.kept_scales import _places

    places = _places("blk.0.ffn_up.weight", np.arange(400), 512)
    assert abs(places.mean()) < 0.005 and abs(places).max() < 0.5
    assert np.rint(places + np.float32(0.1)).mean() == pytest.approx(0.1, abs=0.01)
    assert np.corrcoef(places[:-1].ravel(), places[1:].ravel())[0, 1] == pytest.approx(0, abs=0.01)


def test_files_of_others_are_refused(first: TrainOptions, trained: Trained, tmp_path: Path) -> None:
    adapters = (Weighted(first.output),)
    common = ExportOptions(
        tmp_path, adapters, quants=("q4_0", "q8_0"), threads=1, compare_live=False
    )
    export(common)
    half = dataclasses.replace(
        common, out=tmp_path / "half", adapter=(Weighted(first.output, 0.5),)
    )
    export(half)
    plain = tmp_path / "copy.gguf"
    plain.write_bytes((tmp_path / "q4_0.gguf").read_bytes())
    more = dataclasses.replace(trained[0], output=tmp_path / "out")
    for options, message in (
        (dataclasses.replace(more, ship_from=plain), "was not exported from"),
        (dataclasses.replace(more, ship_from=half.out / "q4_0.gguf"), "was not exported from"),
        (dataclasses.replace(more, ship_from=tmp_path / "q8_0.gguf"), "in Q8_0, q4_0 has it in"),
        (dataclasses.replace(more, ship_from=tmp_path / "none.gguf"), "no such file"),
        (dataclasses.replace(more, ship="int4"), "for types of GGUF, not int4"),
        (dataclasses.replace(more, adapter=trained[0].output), "no adapter of the base"),
    ):
        with pytest.raises(InputError, match=message):
            train(options)
    (tmp_path / "q4_0.gguf").write_bytes(file_of(first).read_bytes())
    with pytest.raises(InputError, match="q4_0.gguf"):  # its manifest names other bytes
        train(dataclasses.replace(more, ship_from=tmp_path / "q4_0.gguf"))
    assert not more.output.exists()
    for wrong in ({"adapter": None}, {"ship": None}, {"ship_steps": 0.5}):
        with pytest.raises(InputError, match="--ship-from"):
            dataclasses.replace(more, **wrong)


def test_the_adapter_is_merged_into_its_file_alone(
    trained: Trained, first: TrainOptions, tmp_path: Path
) -> None:
    base, adapter = trained[0].base, trained[0].output
    with pytest.raises(EdgeftError, match="merged alone"):
        open_merged(base, [Weighted(adapter), Weighted(first.output)])
    with pytest.raises(EdgeftError, match="merged alone"):
        open_merged(base, [Weighted(adapter, 0.5)])
    with pytest.raises(InputError, match="no other one is"):
        open_merged(base, adapter).with_base("stored")
    options = ExportOptions(tmp_path, (Weighted(adapter),), threads=1, base_precision="stored")
    with pytest.raises(InputError, match="leave --base-precision out"):
        export(options)
    onto = dataclasses.replace(options, out=tmp_path / "onto", base_precision="auto")
    onto.out.mkdir()
    shutil.copy(file_of(first), onto.out / "q4_0.gguf")
    facts = file_facts(adapter)
    with pytest.MonkeyPatch.context() as patch:
        moved = {"path": str(onto.out / "q4_0.gguf"), "identity": facts["identity"]}
        patch.setattr("edgeft.merge.trained_file.file_facts", lambda path: moved)
        patch.setattr("edgeft.merge.view.file_facts", lambda path: moved)
        with pytest.raises(StaleError, match="is the file that the adapter was trained from"):
            export(dataclasses.replace(onto, overwrite=True))


def test_other_types_and_formats_have_the_trained_values(trained: Trained, tmp_path: Path) -> None:
    adapters = (Weighted(trained[0].output),)
    common = ExportOptions(tmp_path, adapters, threads=1, compare_live=False)
    (half,) = export(dataclasses.replace(common, quants=("f16",)))
    assert half.manifest.facts["ship"]["difference"] < 1e-3
    (folder,) = export(dataclasses.replace(common, formats=("hf",)))
    weights = Checkpoint(folder.path)
    for name, values in trained[1].items():
        assert np.array_equal(weights.read(name), values), name
    (solved,) = export(dataclasses.replace(common, quants=("gptq-q4_0",)))
    before, after = tensors(trained[0].ship_from), tensors(solved.path)  # type: ignore[arg-type]
    assert np.array_equal(before["token_embd.weight"][1], after["token_embd.weight"][1])
    assert solved.manifest.facts["ship"]["equal"] < 15
    export(dataclasses.replace(common, formats=("onnx",), quants=("int8",)))
    (important,) = export(dataclasses.replace(common, out=tmp_path / "important", quants=("q4_0",),
                                              imatrix="auto"))  # fmt: skip
    assert important.manifest.facts["ship"]["equal"] < 15


def test_without_its_manifest_or_its_file_it_is_no_adapter_of_the_base(
    trained: Trained, first: TrainOptions, tmp_path: Path
) -> None:
    base, adapter = trained[0].base, trained[0].output
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(adapter / name, bare / name)
    with pytest.raises(AdapterError, match="no manifest names the file"):
        open_merged(base, bare)
    import peft

    with pytest.raises(ValueError, match="Unknown initialization"):
        peft.PeftModel.from_pretrained(ReferenceRuntime(base, threads=1).model, bare)
    below = tmp_path / "runs"
    shutil.copytree(adapter, below / "shipped")
    assert open_merged(base, below).base_precision == "file"
    moved = file_of(first).rename(tmp_path / "moved.gguf")
    try:
        with pytest.raises(StaleError, match="which is gone"):
            open_merged(base, adapter)
        shutil.copy(moved, below / "shipped" / file_of(first).name)
        assert open_merged(base, below).base_precision == "file"
        (below / "shipped" / file_of(first).name).write_bytes(b"other")
        with pytest.raises(StaleError, match="no longer the file"):
            open_merged(base, below)
    finally:
        moved.rename(file_of(first))


def test_a_mixture_of_k_quants(first: TrainOptions, tmp_path: Path) -> None:
    """64 columns are no block of a K-quant: Q5_0 and Q8_0 stand in for them, as in the file."""
    adapters = (Weighted(first.output),)
    common = ExportOptions(tmp_path, adapters, threads=1, compare_live=False)
    export(dataclasses.replace(common, quants=("q4_k_m", "q4_1")))
    for quant in ("q4_k_m", "q4_1"):
        options = dataclasses.replace(
            first, adapter=first.output, ship=quant, ship_from=tmp_path / f"{quant}.gguf",
            output=tmp_path / f"from-{quant}",
        )  # fmt: skip
        train(options)
        (one,) = export(dataclasses.replace(common, out=tmp_path / "out", quants=(),
                                            adapter=(Weighted(options.output),)))  # fmt: skip
        ship = one.manifest.facts["ship"]
        assert (one.quant, ship["equal"]) == (quant, ship["tensors"])


def test_one_command_exports_and_trains_from_the_file(
    first: TrainOptions, tmp_path: Path, edgeft: Any
) -> None:
    common = ("train", "--adapter", first.output, "--steps", 2, "--batch-size", 4, "--threads", 1)
    output = tmp_path / "shipped"
    again = (*common, "--ship", "gptq-q4_0", "--output", output, "--json")
    facts = json.loads(edgeft(*again).out)
    file = output.with_name("shipped.file") / "gptq-q4_0.gguf"
    assert facts["ship"]["type"] == "q4_0" and facts["ship"]["file"]["path"] == str(file)
    manifest = store.read_manifest(output)
    assert manifest is not None and manifest.options["learning_rate"] == 6e-4
    assert manifest.parents["ship_from"] == store.identity(file)
    assert f"{output} is complete, nothing to do" in edgeft(*again).err
    more = ("--ship", "gptq-q4_0", "--output", tmp_path / "more")
    shown = edgeft(*common, *more, "--show-config").out
    assert json.loads(shown) and not (tmp_path / "more.file").exists()
    assert edgeft(*common, *more, "--ship-steps", 0.5).code == 1  # before anything is calibrated
    assert (
        edgeft(*common, "--ship", "gptq-q4_0", "--output", tmp_path / "b", "--adapter", output).code
        == 1
    )
    assert not (tmp_path / "more.file").exists() and not (tmp_path / "b.file").exists()
    by_two = ("--ship", "q4_0", "--ship-from", file, "--output", tmp_path / "two")
    assert edgeft(*common, *by_two).code == 0
    two_manifest = store.read_manifest(tmp_path / "two")
    assert two_manifest is not None and two_manifest.files == manifest.files
    both = tmp_path / "elsewhere"
    both.mkdir()
    for folder in (output, file.parent):
        folder.rename(both / folder.name)
    assert open_merged(first.base, both / "shipped").base_precision == "file"
    assert "makes the file of --ship-from (--ship q4_0)" in edgeft(*again, "--ship-from", file).err
    alone = ("train", "--base", first.base, "--data", first.data, "--ship", "gptq-q4_0",
             "--output", tmp_path / "alone", "--steps", 2)  # fmt: skip
    assert "begins with a file of an adapter" in edgeft(*alone).err


def test_one_command_writes_the_text_too(
    first: TrainOptions, tmp_path: Path, edgeft: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeft.train.ship.written_text.PIECE_TOKENS", 24)
    output = tmp_path / "shipped"
    command = ("train", "--adapter", first.output, "--steps", 2, "--batch-size", 4, "--threads", 1,
               "--ship", "gptq-q4_0", "--ship-text", "auto", "--output", output)  # fmt: skip
    assert edgeft(*command, "--show-config").code == 0 and not (tmp_path / "shipped.file").exists()
    ran = edgeft(*command, "--json")
    assert len(json.loads(ran.out)["ship"]["text_divergence"]) == 2
    manifest = store.read_manifest(output)
    text = tmp_path / "shipped.file" / "text.txt"
    assert manifest is not None and manifest.parents["ship_text"] == store.identity(text)
    assert "complete, nothing to do" in edgeft(*command).err
    refused = edgeft("train", "--base", first.base, "--data", first.data, "--ship", "q4_0",
                     "--ship-text", "auto", "--output", tmp_path / "alone", "--steps", 2)  # fmt: skip
    assert refused.code == 1 and "--ship-text needs --ship, and the --adapter" in refused.err
    assert not (tmp_path / "alone.file").exists()


def test_search_tries_the_type_that_it_was_trained_for(trained: Trained, tmp_path: Path) -> None:
    from edgeft.release.search import lineup

    options = ExportOptions(tmp_path, (Weighted(trained[0].output),))
    assert "q4_0" in lineup("gguf", options) and "gptq-q4_0" not in lineup("gguf", options)
