"""The whole pipeline on a tiny random Llama; an oracle checks each step."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgeft import machine, store
from edgeft.data.rows import load_examples
from edgeft.data.splits import fingerprint, training_examples, validation_examples
from edgeft.errors import AdapterError, ProofError
from edgeft.merge.landing import LandingProof
from edgeft.merge.view import open_merged
from helpers.converting import convert
from helpers.tiny import make_base, make_chats

Run = Callable[..., Any]
TRAIN = ("--steps", 6, "--batch-size", 4, "--learning-rate", 5e-3, "--save-every", 2)


@pytest.fixture(scope="module")
def adapter(tiny_base: Path, tiny_chats: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from edgeft.train.options import TrainOptions
    from edgeft.train.run import train

    output = tmp_path_factory.mktemp("adapter") / "adapter"
    train(TrainOptions(base=tiny_base, data=tiny_chats, output=output, steps=6, batch_size=4,
                       micro_batch_size=4, learning_rate=5e-3, save_every=2))  # fmt: skip
    return output


@pytest.fixture(scope="module")
def artifacts(adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from edgeft.adapter.read import Weighted
    from edgeft.export.pipeline import ExportOptions, export

    out = tmp_path_factory.mktemp("artifacts")
    export(ExportOptions(out=out, adapter=(Weighted(adapter),), quants=("f16", "q8_0", "q4_k_m")))
    return out


def peft_merged(base: Path, adapter: Path) -> Any:
    """The oracle: peft's own merge in float32."""
    import peft
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()


def test_the_adapter_has_pefts_files_and_a_manifest(adapter: Path, tiny_base: Path) -> None:
    manifest = store.read_manifest(adapter)
    assert manifest is not None
    assert set(manifest.files) == {"adapter_config.json", "adapter_model.safetensors"}
    assert manifest.parents["base"] == store.identity(tiny_base)
    assert manifest.options["steps"] == 6
    curve = manifest.facts["validation_loss"]
    assert len(curve) >= 2
    assert curve[-1][1] < curve[0][1]
    assert manifest.facts["tokens"] > 0
    rates = [rate for _, rate in manifest.facts["learning_rate"]]
    cosine = [(1 + math.cos(math.pi * step / 5)) / 2 for step in range(5)]
    peak = manifest.options["learning_rate"]
    assert rates == pytest.approx(
        [0.0, *(peak * part for part in cosine)], rel=1e-3
    )  # one of warm-up


def test_the_manifest_reproduces_the_splits(
    adapter: Path, tiny_chats: Path, tmp_path: Path
) -> None:
    manifest = store.read_manifest(adapter)
    assert manifest is not None
    train, validation = (
        find(manifest.options) for find in (training_examples, validation_examples)
    )
    assert len(train) == manifest.facts["examples"]["train"]
    assert fingerprint(validation) == manifest.facts["validation_items"]
    lines = [example.line for example in (*train, *validation)]
    assert sorted(lines) == list(range(1, 41))
    # With a validation file of its own nothing is split off.
    validation_file = make_chats(tmp_path / "validation.jsonl", 3)
    options = manifest.options | {"validation_data": str(validation_file)}
    assert fingerprint(training_examples(options)) == fingerprint(load_examples(tiny_chats))
    assert fingerprint(validation_examples(options)) == fingerprint(load_examples(validation_file))


def test_the_merged_view_equals_pefts_merge(adapter: Path, tiny_base: Path) -> None:
    expected = peft_merged(tiny_base, adapter).state_dict()
    merged = open_merged(tiny_base, adapter, "stored")
    for name in merged.shapes:
        np.testing.assert_allclose(
            merged.tensor(name), expected[name].numpy(), rtol=0, atol=1e-6, err_msg=name
        )


def test_the_nf4_view_equals_bitsandbytes_values(adapter: Path, tiny_base: Path) -> None:
    import bitsandbytes.functional as bnb
    import torch

    from edgeft.weights.checkpoint import Checkpoint

    merged, plain = open_merged(tiny_base, None, "nf4"), Checkpoint(tiny_base)
    for name in merged.shapes:
        weight = torch.from_numpy(plain.read(name))
        if name.endswith("_proj.weight"):
            packed = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4",
                                       compress_statistics=True)  # fmt: skip
            seen = bnb.dequantize_4bit(*packed).numpy()
            assert np.abs(merged.tensor(name) - seen).max() < 0.01 * np.abs(seen).max()
            assert not np.array_equal(merged.tensor(name), weight.numpy())
        else:
            np.testing.assert_array_equal(merged.tensor(name), weight.numpy())


def test_f16_gguf_has_the_logits_of_the_merged_model(
    adapter: Path, artifacts: Path, tiny_base: Path
) -> None:
    import torch

    from edgeft.runtimes.protocol import open_runtime

    facts = store.read_manifest(artifacts / "f16.gguf").facts  # type: ignore[union-attr]
    merged = open_merged(tiny_base, adapter, facts["base_precision"]["chosen"])
    oracle = peft_merged(tiny_base, adapter)
    with torch.no_grad():
        for name, parameter in oracle.named_parameters():
            parameter.copy_(torch.from_numpy(merged.tensor(name)))
    with open_runtime(artifacts / "f16.gguf") as model:
        ids = model.encode("<|im_start|>user\nlamp q on the 17 lamps<|im_end|>\n")
        got = model.logits(ids)
    with torch.inference_mode():
        expected = oracle(torch.tensor([ids])).logits[0].numpy()
    assert np.abs(got - expected).max() < 0.05, "float16 weights and activations"
    sure = np.sort(expected, axis=1)
    sure = sure[:, -1] - sure[:, -2] > 0.1
    assert sure.sum() > len(ids) // 2
    assert (got.argmax(1) == expected.argmax(1))[sure].all()


def test_every_manifest_holds_the_proof(artifacts: Path) -> None:
    for name in ("f16", "q8_0", "q4_k_m"):
        manifest = store.read_manifest(artifacts / f"{name}.gguf")
        assert manifest is not None
        assert manifest.facts["proof"]["tensors"] == 14
        assert manifest.facts["proof"]["beta"] == pytest.approx(1, abs=0.15)
        assert manifest.facts["parity"]["stops"] == ["<|im_end|>"]
        assert set(manifest.facts["base_precision"]["loss"]) == {"stored", "nf4"}
    f16 = store.read_manifest(artifacts / "f16.gguf")
    assert f16 is not None
    assert f16.facts["parity"]["greedy"]["tokens"] > 0


@pytest.mark.parametrize("factor", [0.0, 2.0, 0.25])
@pytest.mark.parametrize("quant", ["f16", "q4_0"])
def test_a_merge_that_did_not_land_is_refused(
    adapter: Path, tiny_base: Path, tmp_path: Path, factor: float, quant: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from edgeft.merge.view import Merged

    merged, plain = open_merged(tiny_base, adapter), Merged.rows

    def wrong(self: Merged, name: str, rows: Any) -> Any:
        if not self.adapted(name):
            return plain(self, name, rows)
        before, delta = self.addends(name, rows)
        return before + np.float32(factor) * delta

    monkeypatch.setattr(Merged, "rows", wrong)
    converted = convert(merged, tmp_path / "x.gguf", quant, threads=1)
    with pytest.raises(ProofError, match=f"did not land in .*beta {factor:.3f}"):
        converted.proof()


@pytest.mark.parametrize("factor", [0.0, 2.0])
def test_a_delta_that_the_type_lost_or_doubled_is_refused(
    adapter: Path, tiny_base: Path, factor: float
) -> None:
    merged = open_merged(tiny_base, adapter)
    landing = LandingProof(merged)
    for name in filter(merged.adapted, merged.shapes):
        before, delta = merged.addends(name, slice(None))
        summed = merged.rows(name, slice(None))
        stored = before + np.float32(factor) * (summed - before)
        landing.add(name, before, delta, summed, stored)
    with pytest.raises(ProofError, match=f"this type keeps beta {factor:.3f}"):
        landing.result()


def test_imatrix_auto_is_collected_on_the_training_chats(
    adapter: Path, tmp_path: Path, edgeft: Run
) -> None:
    from edgeft.weights import imatrix

    command = ("merge-export", "--adapter", adapter, "--out", tmp_path, "--quant", "q4_0",
               "--base-precision", "stored", "--imatrix", "auto", "--tensor-type", "attn_v=q8_0", "--json")  # fmt: skip
    ran = edgeft(*command)
    assert ran.code == 0, ran.err
    facts = json.loads(ran.out)["artifacts"][0]
    assert facts["types"]["Q8_0"] == 3, "two of attn_v, and the embedding is the output layer"
    matrix = imatrix.read(tmp_path / "imatrix.gguf")
    assert len(matrix.tensors) == 14
    validation_examples = 2  # of 40 examples
    recorded = store.read_manifest(tmp_path / "imatrix.gguf")
    assert recorded is not None and recorded.facts["chats"] == 40 - validation_examples
    plain = edgeft(*command[:9], "--json", "--overwrite")
    assert plain.code == 0
    again = edgeft(*command, "--overwrite")
    assert "importance from" not in again.err, "it is there already"


def test_a_users_imatrix_file_is_not_replaced(adapter: Path, tmp_path: Path, edgeft: Run) -> None:
    (tmp_path / "imatrix.gguf").write_bytes(b"mine")
    ran = edgeft("merge-export", "--adapter", adapter, "--out", tmp_path, "--quant", "q4_0",
                 "--imatrix", "auto")  # fmt: skip
    assert ran.code == 1 and "imatrix.gguf is there already" in ran.err
    assert (tmp_path / "imatrix.gguf").read_bytes() == b"mine"


def test_every_artifact_is_compared_with_the_live_adapter(artifacts: Path) -> None:
    for name in ("f16", "q8_0", "q4_k_m"):
        manifest = store.read_manifest(artifacts / f"{name}.gguf")
        assert manifest is not None
        live = manifest.facts["parity"]["live"]
        assert live["prompts"] == 32
        assert live["kl"] < (1e-3 if name == "f16" else 0.2)
        text = (artifacts / f"{name}.Modelfile").read_text()
        assert text.startswith(f"FROM ./{name}.gguf\nTEMPLATE")
        assert 'PARAMETER stop "<|im_end|>"' in text


def test_a_template_that_differs_from_trainings_is_refused(
    adapter: Path, artifacts: Path, tiny_base: Path, tmp_path: Path, edgeft: Run
) -> None:
    learned = tmp_path / "adapter"
    shutil.copytree(adapter, learned)
    manifest = json.loads((learned / "manifest.json").read_text())
    manifest["facts"]["chat"]["source"] = manifest["facts"]["chat"]["source"].replace(
        "user", "human"
    )
    manifest["facts"]["chat"]["source"] += " "
    (learned / "manifest.json").write_text(json.dumps(manifest))
    ran = edgeft("merge-export", "--adapter", learned, "--base", tiny_base, "--out", tmp_path / "o")
    assert ran.code == 1 and "was trained with another chat template" in ran.err
    moved = tmp_path / "q8_0.gguf"
    shutil.copy(artifacts / "q8_0.gguf", moved)
    record = json.loads((artifacts / "q8_0.gguf.manifest.json").read_text())
    record["facts"]["parity"]["chat"]["stops"] = ["<|other|>"]
    moved.with_name("q8_0.gguf.manifest.json").write_text(json.dumps(record))
    ran = edgeft("bench", moved, "--no-speed", "--items", "smart_home", "--limit", "1")
    assert ran.code == 1 and "was made with other stops: '<|other|>' then, '<|im_end|>'" in ran.err


def test_an_adapted_tensor_that_was_not_written_is_refused(adapter: Path, tiny_base: Path) -> None:
    with pytest.raises(ProofError, match="14 adapted tensors were not written"):
        LandingProof(open_merged(tiny_base, adapter)).result()


def test_a_second_run_keeps_a_complete_artifact(
    adapter: Path, artifacts: Path, edgeft: Run, tiny_base: Path, tiny_chats: Path
) -> None:
    before = (artifacts / "q8_0.gguf").stat().st_mtime_ns
    ran = edgeft("merge-export", "--adapter", adapter, "--out", artifacts, "--quant", "q8_0")
    assert (ran.code, ran.out.strip()) == (0, str(artifacts / "q8_0.gguf"))
    assert "nothing to do" in ran.err
    assert (artifacts / "q8_0.gguf").stat().st_mtime_ns == before


def test_resumed_training_ends_with_the_same_adapter(
    adapter: Path, edgeft: Run, tiny_base: Path, tiny_chats: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from edgeft.progress import Progress

    update = Progress.update

    def interrupted(self: Progress, done: int, **kwargs: Any) -> None:
        update(self, done, **kwargs)
        if self.done == 5:
            raise KeyboardInterrupt

    command = ("train-qlora", "--base", tiny_base, "--data", tiny_chats, "--output",
               tmp_path / "a", *TRAIN)  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "update", interrupted)
        assert edgeft(*command).code == 130
    assert not (tmp_path / "a").exists()
    assert "--resume" in edgeft("merge-export", "--adapter", tmp_path / "a", "--base", tiny_base,
                                "--out", tmp_path / "o").err  # fmt: skip
    undecided = edgeft(*command)
    assert undecided.code == 1 and "--resume goes on from it" in undecided.err
    changed = edgeft(*command, "--seed", 1, "--resume")
    assert changed.code == 1
    assert "seed changed" in changed.err
    assert edgeft(*command, "--resume").code == 0
    name = "adapter_model.safetensors"
    assert (tmp_path / "a" / name).read_bytes() == (adapter / name).read_bytes()
    facts = [json.loads((folder / "manifest.json").read_text())["facts"]
             for folder in (tmp_path / "a", adapter)]  # fmt: skip
    assert facts[0]["tokens"] == facts[1]["tokens"], "of the whole training"


def test_a_4bit_base_has_nearly_the_same_losses(
    adapter: Path, edgeft: Run, tiny_base: Path, tiny_chats: Path, tmp_path: Path
) -> None:
    ran = edgeft("train-qlora", "--base", tiny_base, "--data", tiny_chats, "--output",
                 tmp_path / "a", *TRAIN, "--keep-4bit", "--json")  # fmt: skip
    assert ran.code == 0, ran.err
    losses = dict(json.loads(ran.out)["validation_loss"])
    fast = dict(store.read_manifest(adapter).facts["validation_loss"])  # type: ignore[union-attr]
    assert losses.keys() == fast.keys()
    for step, loss in losses.items():
        assert loss == pytest.approx(fast[step], rel=0.02)


def test_bench_and_ab_run_on_the_artifacts(artifacts: Path, edgeft: Run, tmp_path: Path) -> None:
    items = tmp_path / "items.jsonl"
    rows = [{"instruction": f"lamp {i}", "output": "x"} for i in range(70)]
    items.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ran = edgeft("bench", artifacts / "f16.gguf", artifacts / "q8_0.gguf", "--items", items,
                 "--max-tokens", 4, "--json")  # fmt: skip
    assert ran.code == 0, ran.err
    first, second = json.loads(ran.out)["rows"]
    assert first["size"] > second["size"] > 10_000
    for row in (first, second):
        assert row["speed"]["decode_tps"] > 0
        assert row["memory"]["peak"] > row["memory"]["anonymous"] > 0
        assert len(row["score"]["replies"]) == 70
    human = edgeft("bench", artifacts / "f16.gguf", "--no-speed", "--items", items,
                   "--max-tokens", 4)  # fmt: skip
    assert human.out.startswith("| artifact") and human.out.endswith("     0.0% |\n")
    same = edgeft("ab", artifacts / "q8_0.gguf", artifacts / "f16.gguf", "--items", items,
                  "--max-tokens", 4)  # fmt: skip
    assert same.code == 4 and same.out.startswith("INCONCLUSIVE\n")
    assert "the baseline's score is only 0 % on 70 items" in same.out
    few = edgeft("ab", artifacts / "q8_0.gguf", artifacts / "f16.gguf", "--items", items,
                 "--max-tokens", 4, "--limit", 20, "--json")  # fmt: skip
    assert few.code == 4 and json.loads(few.out)["outcome"] == "INCONCLUSIVE"


def test_hf_export_is_a_folder_that_transformers_opens(
    adapter: Path, edgeft: Run, tiny_base: Path, tmp_path: Path
) -> None:
    import torch
    import transformers

    ran = edgeft("merge-export", "--adapter", adapter, "--out", tmp_path, "--format", "hf",
                 "--quant", "f32", "--base-precision", "stored")  # fmt: skip
    assert ran.code == 0, ran.err
    folder = tmp_path / "hf-f32"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    expected = peft_merged(tiny_base, adapter).state_dict()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-6)
    assert transformers.AutoTokenizer.from_pretrained(folder).eos_token == "<|im_end|>"


def test_an_adapter_of_another_base_is_refused(adapter: Path, edgeft: Run, tmp_path: Path) -> None:
    narrow = make_base(tmp_path / "narrow", hidden=32)
    ran = edgeft("merge-export", "--adapter", adapter, "--base", narrow, "--out", tmp_path / "o")
    assert ran.code == 1 and "trained on another base" in ran.err
    foreign = shutil.copytree(adapter, tmp_path / "foreign")
    (foreign / "manifest.json").unlink()
    with pytest.raises(AdapterError, match=r"does not fit narrow: .*the adapter's is \("):
        open_merged(narrow, foreign)
    same_shape = make_base(tmp_path / "other", seed=7)
    with pytest.raises(AdapterError, match="trained on another base"):
        open_merged(same_shape, adapter)


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (("merge-export", "--adapter", "{base}", "--base", "{base}"), "is a whole model"),
        (("merge-export", "--adapter", "nowhere", "--base", "{base}"), "no such adapter"),
        (("merge-export",), "nothing to export"),
        (("merge-export", "--base", "{base}", "--format", "ggfu"), "did you mean 'gguf'"),
        (("merge-export", "--base", "{base}", "--quant", "q4_km"), "did you mean 'q4_k_m'"),
        (("merge-export", "--base", "smollm-135m"), "did you mean 'smollm2-135m'"),
    ],
)
def test_export_errors_are_one_line(
    edgeft: Run, tiny_base: Path, tmp_path: Path, args: tuple[str, ...], text: str
) -> None:
    ran = edgeft(*(arg.format(base=tiny_base) for arg in args), "--out", tmp_path / "out")
    assert ran.code == 1
    assert text in ran.err
    assert ran.err.strip().count("\n") == 0
    assert not (tmp_path / "out").exists()


def test_a_missing_artifact_is_a_one_line_error(edgeft: Run, tmp_path: Path) -> None:
    for command in (("bench", "x.gguf"), ("ab", "x.gguf", "y.gguf", "--items", "smart_home"),
                    ("chat", "x.gguf")):  # fmt: skip
        ran = edgeft(*command)
        assert (ran.code, ran.out) == (1, "")
        assert "no such artifact" in ran.err and ran.err.count("\n") == 1
    (tmp_path / "cut.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    ran = edgeft("bench", tmp_path / "cut.gguf", "--items", "smart_home")
    assert ran.code == 1 and "cannot load" in ran.err and ran.err.count("\n") == 1


def test_the_command_line_has_the_defaults_of_the_options() -> None:
    import dataclasses

    from edgeft.cli.train_qlora import command
    from edgeft.train.options import TrainOptions
    from edgeft.train.registry import METHODS

    defaults = {field.name: field.default for field in dataclasses.fields(TrainOptions)}
    del defaults["micro_batch_size"]  # the batch size, where it is not given
    del defaults["freeze_trainable_layers"]  # of another method
    assert defaults.pop("learning_rate") == METHODS["qlora"].learning_rate  # less with --ship-from
    offered = {param.name: param.to_info_dict()["default"] for param in command.params}
    checked = {name for name in defaults if defaults[name] is not dataclasses.MISSING}
    assert checked <= offered.keys()
    for name in checked:
        assert offered[name] == defaults[name] or (offered[name], defaults[name]) == (None, ())
    assert len(checked) > 15


def test_training_errors_are_one_line(
    edgeft: Run, tiny_base: Path, tiny_chats: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"instruction": "a", "output": "b"}\n{"instruction": \n')
    cases = {
        ("--data", "nowhere.jsonl"): "no such data file",
        ("--data", str(broken)): "broken.jsonl:2: not JSON",
        ("--data", str(tiny_chats), "--cutoff-length", "8"): "longer than the cutoff",
        ("--data", str(tiny_chats), "--validation-size", "40"): "leaves nothing",
        ("--data", str(tiny_chats), "--target-modules", "q_prog"): "no modules named q_prog",
        ("--data", str(tiny_chats), "--target-modules", "*_proj"): "'*_proj' is no pattern",
        ("--data", str(tiny_chats), "--micro-batch-size", "3"): "no multiple of",
    }
    for extra, text in cases.items():
        ran = edgeft("train-qlora", "--base", tiny_base, "--output", tmp_path / "a", *extra)
        assert (ran.code, ran.err.strip().splitlines()[-1].count(text)) == (1, 1), ran.err
        assert "Traceback" not in ran.err
        assert not (tmp_path / "a").exists()


def test_disk_and_memory_refusals_name_the_figure(
    adapter: Path, edgeft: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    tiny_base: Path, tiny_chats: Path,
) -> None:  # fmt: skip
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    ran = edgeft("merge-export", "--adapter", adapter, "--out", tmp_path / "o", "--quant", "f16")
    assert ran.code == 1 and "of disk" in ran.err and "1 kB is free" in ran.err
    monkeypatch.undo()
    monkeypatch.setattr(machine, "available_memory", lambda: 5_000_000)
    ran = edgeft("train-qlora", "--base", tiny_base, "--data", tiny_chats, "--output",
                 tmp_path / "a")  # fmt: skip
    assert ran.code == 1 and "of memory, 5.0 MB is available" in ran.err


def test_examples_over_the_cutoff_are_counted(edgeft: Run, tiny_base: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    rows = [{"instruction": "lamp " * (40 if i < 3 else 1), "output": "on"} for i in range(24)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ran = edgeft("train-qlora", "--base", tiny_base, "--data", data, "--output", tmp_path / "a",
                 "--steps", 1, "--cutoff-length", 96, "--validation-size", 0)  # fmt: skip
    assert ran.code == 0, ran.err
    assert "3 of 24 examples are longer than the cutoff of 96 tokens" in ran.err


def test_config_file_fills_options_and_refuses_unknown_keys(
    edgeft: Run, tiny_base: Path, tiny_chats: Path, tmp_path: Path
) -> None:
    config = tmp_path / "run.toml"
    config.write_text(f'[train-qlora]\nbase = "{tiny_base}"\nsteps = 1\nlora-r = 4\n')
    ran = edgeft("train-qlora", "--config", config, "--data", tiny_chats, "--output",
                 tmp_path / "a")  # fmt: skip
    assert ran.code == 0, ran.err
    manifest = store.read_manifest(tmp_path / "a")
    assert manifest is not None
    assert (manifest.options["steps"], manifest.options["lora_r"]) == (1, 4)
    config.write_text('[merge-export]\nquant = "q9"\n[train-qlora]\nlora-rank = 4\n')
    wrong = edgeft("merge-export", "--config", config, "--base", tiny_base, "--out", tmp_path)
    assert wrong.code == 1 and "no quantization 'q9'" in wrong.err
    ran = edgeft("train-qlora", "--config", config)
    assert ran.code == 1 and "unknown key 'lora-rank'" in ran.err and "lora-r" in ran.err
