"""`edgeft merge-export` with GPTQ: what it refuses, what a killed run leaves, what it goes on with."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeft import machine
from edgeft.benchmarks.suites import load_suite
from edgeft.formats import format_of
from edgeft.gptq import blocks as gptq_blocks
from edgeft.gptq import footprint, linears
from helpers.paths import DOCS
from helpers.tiny import make_chats

Run = Callable[..., Any]
Family = Callable[[str], tuple[Path, Path, Any]]
Export = Callable[..., Any]


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    return make_chats(tmp_path / "chats.jsonl", 12)


@pytest.fixture
def export(edgeft: Run, make: Family, tmp_path: Path, chats: Path) -> Export:
    """The tiny Llama with its adapter as gptq-4bit; other options go after it."""
    base, adapter, _ = make("llama")

    def run(*more: object) -> Any:
        given = [
            "--base",
            base,
            "--adapter",
            adapter,
            "--no-compare-live",
            "--out",
            tmp_path / "out",
        ]
        given += [] if "--calibration" in more else ["--calibration", chats]
        given += [] if "--format" in more or "--quant" in more else ["--format", "gptq"]
        return edgeft("merge-export", *given, *more)

    return run


def refused(ran: Any, says: str, out: Path) -> None:
    assert ran.code == 1 and says in ran.err, ran.err
    assert ran.err.count("\n") == 1 and ran.err.startswith("edgeft: error: ")
    assert ran.err.endswith(")\n"), "no hint"
    assert not out.exists() and not ran.out


def hashes(folder: Path) -> dict[str, str]:
    """Of everything but the manifests, which carry the time."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "manifest" not in path.name
    }


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--format", "gptq", "--quant", "4bits"], "did you mean '4bit'"),
        (["--quant", "4bit"], "no quantization '4bit' (--format gptq has)"),
        (["--quant", "gptq-q4km"], "did you mean 'gptq-q4_k_m'"),
        (["--group-size", "128"], "groups of 128 do not divide a layer of 64 columns"),
        (["--calibration", "nowhere.txt"], "no such file: nowhere.txt (check --calibration"),
        (["--calibration", "auto"], "nothing to calibrate GPTQ on: the adapter has no manifest"),
        (["--quant", "q4_0", "--group-size", "32"], "--group-size is not for format gguf"),
        (["--quant", "gptq-q4_0", "--asymmetric"], "--asymmetric is not for format gguf"),
        (
            ["--quant", "q4_0", "--calibration", "auto", "--offload-activations"],
            "--offload-activations is for GPTQ",
        ),
        (["--tensor-type", "ffn_down=q8_0"], "--tensor-type is not for format gptq"),
    ],
)
def test_input_errors_are_reported_before_any_work(
    export: Export, tmp_path: Path, options: list[str], says: str
) -> None:
    refused(export(*options), says, tmp_path / "out")


def test_invalid_calibration_files_are_refused(export: Export, tmp_path: Path) -> None:
    files = {
        "empty.jsonl": (b"", "holds no examples"), "empty.txt": (b" \n", "empty.txt is empty"),
        "binary.txt": (bytes(range(256)), "is not UTF-16"), "binary.json": (b"\xff", "is not UTF-8"),
        "other.jsonl": (b"the lamp\n", "not JSON"),
    }  # fmt: skip
    for name, (data, says) in files.items():
        (tmp_path / name).write_bytes(data)
        refused(export("--calibration", tmp_path / name), says, tmp_path / "out")
    test = load_suite("smart_home").test
    refused(export("--calibration", test), "of the test split of smart_home", tmp_path / "out")


def test_wrong_usage_exits_with_2(export: Export) -> None:
    for option in (["--group-size", "100"], ["--dampening-frac", "1"], ["--dampening-frac", "nan"], ["--dampening-frac", "0"],
                   ["--calibration-tokens", "0"]):  # fmt: skip
        assert export(*option).code == 2


def test_a_family_unknown_to_transformers_is_refused(
    edgeft: Run, make: Family, tmp_path: Path, chats: Path
) -> None:
    given = ["--base", make("chatglm2-32k")[0], "--out", tmp_path / "out", "--calibration", chats]
    for options, says in (
        (["--format", "gptq"], "cannot be exported as gptq (it can as gguf, onnx)"),
        (["--quant", "gptq-q4_0"], "transformers has no ChatGLMModel"),
    ):
        refused(edgeft("merge-export", *given, *options), says, tmp_path / "out")


def test_missing_torch_is_an_error_with_the_extra(
    export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    for options in ([], ["--quant", "gptq-q4_0"]):
        refused(export(*options), "torch is not installed (pip install 'edgeft[gptq]')",
                tmp_path / "out")  # fmt: skip


def test_disk_and_memory_are_checked_first(
    export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(machine, "available_memory", lambda: 1000)
        ran = export()
        refused(ran, "GPTQ for 4bit needs about", tmp_path / "out")
        assert "fewer --calibration-tokens, --offload-activations" in ran.err
        assert "--offload-activations" not in export("--offload-activations").err
    full = shutil._ntuple_diskusage(10**9, 10**9, 1000)  # type: ignore[attr-defined]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    refused(export(), "exporting 4bit needs", tmp_path / "out")


def test_the_footprint_counts_weights_and_activations(make: Family) -> None:
    """Activations go to the disk with --offload-activations, and there is a byte for each weight."""
    from edgeft.merge.view import open_merged

    merged = open_merged(make("llama")[0], None)
    weights = sum(merged.shapes[name][0] * merged.shapes[name][1] for name in linears(merged))
    (disk, memory), (more, less) = (footprint(merged, [[0] * 10_000], way) for way in (False, True))
    assert more - disk == memory - less == 2 * 10_000 * 64 * 4
    assert weights < disk < 1.2 * weights


def test_the_manifest_has_the_facts_and_other_options_are_refused(
    export: Export, tmp_path: Path
) -> None:
    ran = export("--json")
    assert ran.code == 0, ran.err
    (made,) = json.loads(ran.out)["artifacts"]
    assert (made["group_size"], made["quantized"], made["rounded"], made["damp"]) == (
        32,
        14,
        0,
        0.01,
    )
    learned = made["calibration"]
    assert learned["of"] == "chats.jsonl" and learned["sequences"] == 12
    assert learned["tokens"] > 300 and len(learned["sha256"]) == 64
    assert made["proof"]["tensors"] == 14
    before = hashes(tmp_path / "out")
    left = tmp_path / "out" / ".gptq-4bit.blocks"
    left.mkdir()  # of a run that was killed after its last step
    assert "is complete, nothing to do" in export().err and not left.exists()
    (tmp_path / "text.txt").write_text("the lamp is on the table. " * 50)
    for options, other in (
        (["--dampening-frac", "0.02"], "damp"), (["--group-size", "-1"], "group_size"),
        (["--asymmetric"], "symmetric"), (["--calibration-tokens", "99"], "calibration_tokens"),
        (["--calibration", tmp_path / "text.txt"], "calibration"),
    ):  # fmt: skip
        ran = export(*options)
        assert ran.code == 1 and f"a result with other {other} (--overwrite" in ran.err
    assert hashes(tmp_path / "out") == before
    ran = export("--calibration", tmp_path / "text.txt", "--overwrite", "--json")
    assert json.loads(ran.out)["artifacts"][0]["calibration"]["of"] == "text.txt"
    assert hashes(tmp_path / "out") != before
    assert export("--offload-activations", "--overwrite").code == 0
    assert hashes(tmp_path / "out") == before, "the same with the activations on the disk"


def test_ctrl_c_keeps_finished_blocks_and_leaves_no_artifact(
    export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(self: gptq_blocks.Block) -> None:
        raise KeyboardInterrupt

    for options, target in (([], "gptq-4bit"), (["--quant", "gptq-q4_0"], "gptq-q4_0.gguf")):
        with monkeypatch.context() as patch:
            patch.setattr(gptq_blocks.Block, "run", stopped)
            assert export(*options).code == 130
        blocks = tmp_path / "out" / f".{target}.blocks"
        assert [path.name for path in sorted((tmp_path / "out").iterdir())] == [blocks.name]
        assert len(list(blocks.glob("block-*"))) == 1
        assert not list(blocks.glob(".*")), "nothing half-written"
        ran = export(*options)
        assert ran.code == 0 and not blocks.exists(), ran.err
        shutil.rmtree(tmp_path / "out")


DIES = """
import os, signal
import transformers.models.llama.modeling_llama
from edgeft import cli, files, store

def dies(arguments, left):
    real = files.fsync
    def counted(path):
        nonlocal left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        real(path)
    files.fsync = store.fsync = counted
    cli.main(arguments)

for arguments, left in {runs!r}:
    child = os.fork()  # torch is imported once
    if not child:
        dies(arguments, left)
    _, status = os.waitpid(child, 0)
    out = arguments[arguments.index("--out") + 1]
    print(os.waitstatus_to_exitcode(status), *os.listdir(out))
"""


@pytest.mark.slow
def test_a_resumed_run_writes_the_same_bytes(
    edgeft: Run, make: Family, tmp_path: Path, chats: Path
) -> None:
    """Killed in the middle of writing: a file of a block, or later the artifact."""
    base, adapter, _ = make("llama")

    quants = {"gptq": "4bit", "gguf": "gptq-q4_0"}

    def arguments(kind: str, out: str) -> list[str]:
        given = ["--base", base, "--adapter", adapter, "--out", tmp_path / kind / out,
                 "--no-compare-live", "--calibration", chats, "--format", kind,
                 "--quant", quants[kind], "--threads", 2]  # fmt: skip
        return ["merge-export", *map(str, given)]

    killed = [("gptq", 2), ("gptq", 3), ("gguf", 4)]
    code = DIES.format(runs=[(arguments(kind, "killed"), left) for kind, left in killed])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    endings = [line.split() for line in done.stdout.splitlines()]
    assert [ending[0] for ending in endings] == [str(-signal.SIGKILL)] * 3, done.stderr
    for _, *names in endings:
        assert all(name.startswith(".") for name in names), f"one of {names} looks whole"
    for kind in quants:
        for out in ("whole", "killed"):
            ran = edgeft(*arguments(kind, out))
            assert ran.code == 0, ran.err
        folder = tmp_path / kind
        assert hashes(folder / "killed") == hashes(folder / "whole")
        assert not list((folder / "killed").glob(".*"))


def test_the_commands_of_the_docs(
    edgeft: Run, make: Family, tmp_path: Path, chats: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, adapter, _ = make("llama")
    shutil.copytree(adapter, tmp_path / "adapter")
    monkeypatch.chdir(tmp_path)
    page = (DOCS / "gptq.md").read_text(encoding="utf-8")
    commands = re.findall(r"^edgeft (merge-export .*gptq.*)$", page, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        here = ["--base", base, "--calibration", chats, "--no-compare-live"]
        assert edgeft(*shlex.split(command), *here).code == 0


@pytest.mark.slow
def test_two_formats_are_exported_at_once_and_open_in_every_command(
    export: Export, edgeft: Run, tmp_path: Path
) -> None:
    ran = export("--format", "gguf,gptq", "--quant", "f16,4bit,gptq-q4_0", "--imatrix", "auto",
                 "--tensor-type", "ffn_down=q6_k")  # fmt: skip
    assert ran.code == 0, ran.err
    out = tmp_path / "out"
    assert ran.out.split() == [
        str(out / name) for name in ("f16.gguf", "gptq-q4_0.gguf", "gptq-4bit")
    ]
    folder, items = out / "gptq-4bit", tmp_path / "items.jsonl"
    assert format_of(folder).name == "gptq"
    items.write_text('{"instruction": "lamp a on", "output": "{}"}\n' * 20)
    done = subprocess.run(
        [sys.executable, "-m", "edgeft", "chat", folder, "--max-tokens", "4"],
        input="hello\n", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.endswith("\n"), done.stderr
    how = ["--items", items, "--limit", 20, "--max-tokens", 4, "--json"]
    ran = edgeft("ab", folder, out / "f16.gguf", *how)
    assert json.loads(ran.out)["arms"][-1]["path"] == str(folder), ran.err
    (row,) = json.loads(edgeft("bench", folder, "--json").out)["rows"]
    assert row["name"] == "gptq-4bit" and row["speed"]["decode_tps"] > 0
    assert json.loads(edgeft("inspect", folder, "--json").out)["gptq"]["bits"] == 4
