"""`edgeft merge-export` in the hands of somebody who mistypes, interrupts and looks into the folder."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeft.weights.checkpoint import Checkpoint, Spec, write_safetensors
from edgeft.weights.imatrix import Imatrix, Sums, write
from helpers.tiny import make_base, make_chats

Run = Callable[..., Any]
Family = Callable[[str], tuple[Path, Path, Any]]
Export = Callable[..., Any]


@pytest.fixture
def export(edgeft: Run, make: Family, tmp_path: Path) -> Export:
    """The tiny Llama with its adapter, as q8_0, without torch; other options go after it."""
    base, adapter, _ = make("llama")

    def run(*more: object, base: object = base, adapter: object = adapter) -> Any:
        given = ["--base", base, "--no-compare-live", "--out", tmp_path / "out"]
        given += ["--adapter", adapter] if adapter else []
        asked = ["--quant", "q8_0"] if "--quant" not in more and "--format" not in more else []
        return edgeft("merge-export", *given, *asked, *more)

    return run


def refused(ran: Any, says: str, out: Path) -> None:
    """One line with a hint, and nothing on the disk."""
    assert ran.code == 1 and says in ran.err, ran.err
    assert ran.err.count("\n") == 1 and ran.err.startswith("edgeft: error: ")
    assert ran.err.endswith(")\n"), "no hint"
    assert not out.exists() and not ran.out


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def changed(folder: Path, copy: Path, name: str, values: dict[str, Any]) -> Path:
    """A copy of `folder` with another JSON file in it."""
    shutil.copytree(folder, copy)
    value = json.loads((copy / name).read_text())
    (copy / name).write_text(json.dumps(value | values))
    return copy


def other_weights(
    folder: Path, copy: Path, name: str, change: Callable[[dict[str, Any]], Any]
) -> Path:
    shutil.copytree(folder, copy)
    weights = Checkpoint(copy / name)
    arrays = {key: weights.read(key) for key in weights.tensors}
    change(arrays)
    specs = [Spec(key, "F32", values.shape) for key, values in arrays.items()]
    write_safetensors(copy / name, specs, list(arrays.values()))
    return copy


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--quant", "q4_k_n"], "did you mean 'q4_k_s'"),
        (["--format", "ggfu"], "did you mean 'gguf'"),
        (["--format", ","], "--format ',' names nothing"),
        (["--format", "hf", "--quant", "q8_0"], "format hf has no quantization"),
        (["--tensor-type", "ffn_down=q9"], "no tensor type 'q9'"),
        (["--tensor-type", "ffn_(down=q6_k"], "not a regular expression"),
        (["--tensor-type", "zzz=q6_k"], "no tensor's name matches 'zzz'"),
        (["--tensor-type", "ffn_down=q8_0", "--quant", "f16"], "changes nothing in f16"),
        (["--imatrix", "nowhere.gguf"], "check --imatrix"),
        (["--imatrix", __file__], "is not a whole GGUF file"),
        (["--imatrix", "auto"], "the adapter has no manifest"),
        (["--calibration", __file__], "--calibration is for --imatrix auto, --quant auto and GPTQ"),
        (["--validation-data", "nowhere.jsonl"], "check --validation-data"),
        (["--config", "nowhere.toml"], "no such file"),
    ],
)
def test_input_errors_are_reported_before_any_work(
    export: Export, tmp_path: Path, options: list[str], says: str
) -> None:
    refused(export(*options), says, tmp_path / "out")


def test_wrong_usage_exits_with_2(export: Export) -> None:
    for options in (["--tensor-type", "ffn_down"], ["--quants", "f16"], ["--threads", "0"]):
        assert export(*options).code == 2


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("compare-live = 'maybe'", "true or false"),
        ("threads = true", "a string or a number"),
        ("quant = [true]", "or a list of them"),
        ("[merge_export]\nquant = 'q8_0'", "did you mean 'merge-export'"),
        ("imatrix = 3", "no such file: 3"),
    ],
)
def test_config_values_are_checked_like_typed_ones(
    export: Export, tmp_path: Path, value: str, says: str
) -> None:
    (tmp_path / "run.toml").write_text(value)
    refused(export("--config", tmp_path / "run.toml"), says, tmp_path / "out")


def test_an_adapter_not_written_by_peft_is_refused(
    export: Export, make: Family, tmp_path: Path
) -> None:
    _, adapter, _ = make("llama")
    edits = {
        "lora_alpha": "x", "r": None, "rank_pattern": {"(": 4}, "alpha_pattern": [3],
        "target_modules": 3,
    }  # fmt: skip
    for key, value in edits.items():
        copy = changed(adapter, tmp_path / key, "adapter_config.json", {key: value})
        refused(export(adapter=copy), "is it the one that peft wrote?", tmp_path / "out")


def test_an_adapter_without_some_tensors_is_refused(
    export: Export, make: Family, tmp_path: Path
) -> None:
    _, adapter, _ = make("llama")

    def without(part: str) -> Callable[[dict[str, Any]], Any]:
        return lambda arrays: [arrays.pop(k) for k in list(arrays) if "1.mlp.up" in k and part in k]

    file = "adapter_model.safetensors"
    for part, says in (("lora_A", "has no lora_A"), ("lora_", "adapts it in other layers")):
        copy = other_weights(adapter, tmp_path / part, file, without(part))
        refused(export(adapter=copy), says, tmp_path / "out")


def test_a_broken_base_is_refused(export: Export, make: Family, tmp_path: Path) -> None:
    base, _, _ = make("llama")
    edits: dict[str, tuple[str, Any, str]] = {
        "arch": ("config.json", {"architectures": [3]}, "there are chatglm"),
        "heads": ("config.json", {"num_attention_heads": 3}, "3 heads do not divide by it"),
        "rope": (
            "config.json",
            {"rope_parameters": {"rope_type": "linear"}},
            "is not one of the llama",
        ),
        "layers": ("config.json", {"num_hidden_layers": 3}, "the artifact does not load"),
        "eos": ("generation_config.json", {"eos_token_id": "x"}, "an id or a list of ids"),
        "added": ("tokenizer.json", {"added_tokens": "x"}, "broken added_tokens"),
        "template": ("tokenizer_config.json", {"chat_template": [3]}, "chat_template is no text"),
    }
    for name, (file, values, says) in edits.items():
        copy = changed(base, tmp_path / name, file, values)
        ran = export(base=copy, adapter=None)
        refused(ran, says, tmp_path / "out")
        assert ".partial" not in ran.err


def test_a_quantized_base_is_refused(export: Export, make: Family, tmp_path: Path) -> None:
    base, _, _ = make("llama")
    copy = tmp_path / "base"
    shutil.copytree(base, copy)
    header = {"model.embed_tokens.weight": {"dtype": "I8", "shape": [4], "data_offsets": [0, 4]}}
    text = json.dumps(header).encode()
    raw = len(text).to_bytes(8, "little") + text + b"\0" * 4
    (copy / "model.safetensors").write_bytes(raw)
    refused(export(base=copy), "stored as I8 (an unquantized checkpoint", tmp_path / "out")


def test_values_outside_the_range_of_a_type_are_refused(
    export: Export, make: Family, tmp_path: Path
) -> None:
    base, _, _ = make("llama")

    def spoil(arrays: dict[str, Any]) -> None:
        arrays["model.layers.1.mlp.up_proj.weight"][0, 0] = 1e6

    copy = other_weights(base, tmp_path / "base", "model.safetensors", spoil)
    ran = export("--format", "hf", "--quant", "f16", base=copy, adapter=None)
    refused(ran, "up_proj.weight cannot be stored as F16", tmp_path / "out")


def test_the_imatrix_of_another_model_is_refused(export: Export, tmp_path: Path) -> None:
    names = [f"blk.{i}.attn_qkv.weight" for i in range(2)]
    ones = Sums(np.ones((1, 64), np.float32), np.ones(1, np.float32))
    write(Imatrix(dict.fromkeys(names, ones), ("x",), 512, 1), tmp_path / "imatrix.gguf")
    ran = export("--imatrix", tmp_path / "imatrix.gguf")
    refused(ran, "is of another model: it has nothing for", tmp_path / "out")


def test_types_that_need_an_imatrix_are_refused_without_one(export: Export, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", hidden=256)
    ran = export("--quant", "f16,iq3_xxs", base=base, adapter=None)
    refused(ran, "iq3_xxs needs an importance matrix", tmp_path / "out")


@pytest.mark.parametrize("name", ["q8_0.gguf", "q8_0.Modelfile", "imatrix.gguf"])
def test_a_file_of_the_user_is_not_overwritten(export: Export, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("mine")
    own = ["--imatrix", "auto", "--calibration", make_chats(tmp_path / "chats.jsonl", 4)]
    for options in ([], ["--quant", "f16,q8_0"]):
        ran = export(*options, *(own if name == "imatrix.gguf" else []))
        assert ran.code == 1 and ran.err.count("\n") == 1 and f"{name} " in ran.err
        assert content(out) == {str(out / name): b"mine"}


def test_a_run_with_other_options_names_the_difference(
    export: Export, make: Family, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert export().code == 0
    before = content(out)
    ran = export("--base-precision", "nf4", "--quant", "f16,q8_0")
    assert ran.code == 1 and "holds a result with other base_precision (--overwrite" in ran.err
    assert ran.err.count("\n") == 1 and content(out) == before
    (out / "q8_0.Modelfile").unlink()
    assert "nothing to do" in export().err and content(out) == before


def test_a_file_under_another_path_counts_as_the_same(
    export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chats = make_chats(tmp_path / "chats.jsonl", 4)
    options = ["--base-precision", "stored", "--validation-data"]
    assert export(*options, chats).code == 0
    monkeypatch.chdir(tmp_path)
    assert "nothing to do" in export(*options, chats.name).err


def test_a_file_in_place_of_the_output_folder_is_refused(export: Export, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    for out in (tmp_path / "out", tmp_path / "out" / "below"):
        ran = export("--out", out)
        assert ran.code == 1 and "is a file, not a folder (" in ran.err
    assert (tmp_path / "out").read_text() == "mine"


def test_a_full_disk_leaves_no_files(make: Family, tmp_path: Path) -> None:
    full = (
        "import resource, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
    )
    ran = _process(make, tmp_path, before=full).communicate(timeout=60)[1]
    assert "error: File too large (free some space" in ran and "Traceback" not in ran
    assert not (tmp_path / "out").exists()


def test_leftovers_of_killed_runs_are_removed_and_terminated_runs_clean_up(
    make: Family, export: Export, tmp_path: Path
) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    (tmp_path / "out").mkdir()
    for name in ("f16.gguf", "scratch"):
        (tmp_path / "out" / f".{name}.partial-{dead.pid}").write_text("half")
    assert export().code == 0
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]
    stop = (
        "import os, signal, edgeft.converters.gguf.convert as g\n"
        "g._write_header = lambda *_: os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    process = _process(make, tmp_path / "new", before=stop)
    told = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "interrupted; nothing half-written" in told
    assert not (tmp_path / "new" / "out").exists()


def test_of_two_concurrent_runs_one_result_stays(
    export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import edgeft.converters.gguf.convert as converter

    slow, header = threading.Event(), converter._write_header

    def other_first(*given: Any) -> None:
        header(*given)
        if not slow.is_set():  # the faster run, while this one writes
            slow.set()
            assert export("--base-precision", "stored").code == 0

    monkeypatch.setattr(converter, "_write_header", other_first)
    ran = export("--base-precision", "nf4")
    assert ran.code == 1 and "other base_precision" in ran.err
    kept = json.loads((tmp_path / "out" / "q8_0.gguf.manifest.json").read_text())
    assert kept["options"]["base_precision"] == "stored"
    assert sorted(path.suffix for path in (tmp_path / "out").iterdir()) == [
        ".Modelfile", ".gguf", ".json", ".json", ".md",
    ]  # fmt: skip


def test_without_torch_only_the_live_comparison_is_left_out(make: Family, tmp_path: Path) -> None:
    absent = "import sys\nfor name in ('torch', 'transformers', 'peft'): sys.modules[name] = None\n"
    process = _process(make, tmp_path, "--format", "gguf,hf", "--quant", "f16", before=absent)
    told = process.communicate(timeout=60)[1]
    assert process.returncode == 0, told
    assert told.count("not compared with the live model: torch is not installed") == 1
    for part in ("f16.gguf", "hf-f16"):
        assert (tmp_path / "out" / part).exists()


def test_an_edited_artifact_is_refused_with_both_values(
    export: Export, edgeft: Run, tmp_path: Path
) -> None:
    assert export().code == 0
    file = tmp_path / "out" / "q8_0.gguf"
    manifest = file.with_name(file.name + ".manifest.json")
    raw, text = file.read_bytes(), manifest.read_text()
    key = b"tokenizer.ggml.eos_token_id"
    place = raw.index(key) + len(key) + 4
    eos = raw[:place] + (70).to_bytes(4, "little") + raw[place + 4 :]
    template = raw.replace(b"<|im_start|>assistant", b"<|im_start|>asSistant")
    for data, says in ((eos, "the eos '<|im_end|>', now it is"), (template, "asSistant")):
        file.write_bytes(data)
        ran = edgeft("chat", file)
        assert ran.code == 1 and says in ran.err and ran.err.count("\n") == 1
        assert says in json.loads(edgeft("inspect", file, "--json").out)["template"]["lock"]
    file.write_bytes(raw)
    for value in (3, {"parity": []}, {"parity": {"chat": "x"}}):
        manifest.write_text(json.dumps(json.loads(text) | {"facts": value}))
        for command in ("chat", "inspect"):
            ran = edgeft(command, file)
            assert ran.code == 1 and "is not a manifest" in ran.err and ran.err.count("\n") == 1


def test_a_context_larger_than_the_memory_is_refused(
    export: Export, edgeft: Run, tmp_path: Path
) -> None:
    assert export().code == 0
    ran = edgeft("chat", tmp_path / "out" / "q8_0.gguf", "--context", 10**10)
    assert ran.code == 1 and "of memory" in ran.err and ran.err.count("\n") == 1
    for option in ("--temperature", "--top-p"):
        assert edgeft("chat", tmp_path / "out" / "q8_0.gguf", option, "nan").code == 2


def test_ctrl_c_during_loading_is_not_lost(
    export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeft.runtimes import gguf, llama_library

    assert export().code == 0
    lib, _ = llama_library.load_library()
    load = lib.llama_model_load_from_file

    # Python takes a signal in the next line that it runs, which then is one of such a callback.
    callback = ctypes.CFUNCTYPE(None)(lambda: os.kill(os.getpid(), signal.SIGINT))

    def interrupted(*given: Any) -> Any:
        callback()
        return load(*given)

    monkeypatch.setattr(lib, "llama_model_load_from_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        gguf.GGUFRuntime(tmp_path / "out" / "q8_0.gguf")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def _process(make: Family, folder: Path, *more: str, before: str = "") -> subprocess.Popen[str]:
    base, adapter, _ = make("llama")
    options = more or ("--quant", "q8_0", "--no-compare-live")
    given = ["--base", str(base), "--adapter", str(adapter), "--out", str(folder / "out")]
    code = f"{before}from edgeft.cli import main\nmain({['merge-export', *given, *options]!r})\n"
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)


def test_experts_are_compared_with_a_float32_cache(
    edgeft: Run, make: Family, tmp_path: Path
) -> None:
    base, adapter, _ = make("mixtral")
    given = ["--adapter", adapter, "--base", base, "--out", tmp_path / "out", "--json"]
    ran = edgeft("merge-export", *given, "--quant", "f32", "--base-precision", "nf4")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["artifacts"][0]["parity"]["live"]["kl"] < 1e-9
