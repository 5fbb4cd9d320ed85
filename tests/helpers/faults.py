"""Stages of edgeft, a fault at any call that changes the disk, and what must hold after it.

    with Server("core") as server:
        place = Place(server, STAGES["gguf"], material, folder)
        for number in range(1, place.calls + 1):
            assert place.spoil(number, FAULTS[number % len(FAULTS)]) == []

    python tests/helpers/faults.py all --kills 200      # every call of every stage, as a table

fault_shim.c spoils the calls, fault_server.py runs the stages in forks.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from edgeft import files, store
from edgeft.weights.checkpoint import Spec, write_safetensors
from helpers.power import crash_states, read_log
from helpers.tiny import make_base, make_chats

HERE = Path(__file__).parent
TIMEOUT_S = 120


class Fault(NamedTuple):
    name: str
    effect: int
    """of fault_shim.c"""
    error: int = 0

    @property
    def kills(self) -> bool:
        return self.effect >= 5

    @property
    def lasts(self) -> bool:
        """Whether every later call that needs the disk fails, too, so that nothing can be put back."""
        return self.effect in (2, 4)


FAULTS = (
    Fault("ENOSPC", 1, errno.ENOSPC),
    Fault("EIO", 1, errno.EIO),
    Fault("EDQUOT", 1, errno.EDQUOT),
    Fault("short write", 3),
    Fault("full disk", 2, errno.ENOSPC),
    Fault("short write, then full", 4, errno.ENOSPC),
)
KILLS = (Fault("kill", 5), Fault("kill in a write", 6))
NOTHING = Fault("", 0)


@dataclass(frozen=True)
class Stage:
    """Commands of one stage. `{m}` is the folder of inputs, `{s}` the one that is written to."""

    command: str
    needs: str = "core"
    """imports of the server: core, or all with torch"""
    before: str = ""
    """a command whose result the stage overwrites"""
    again: str = ""
    """added to the command after a fault, such as --resume"""
    codes: tuple[int, ...] = (0,)
    """exit codes of a run without a fault"""


EXPORT = "merge-export --out {s}/out --threads 1 --no-compare-live"
MERGE = f"{EXPORT} --base {{m}}/base --adapter {{m}}/adapter"
OLD = f"{EXPORT} --base {{m}}/base"
GPTQ = "--format gptq --quant 4bit --calibration {m}/chats.jsonl --calibration-tokens 256"
TRAIN = (
    "train --method lora --base {m}/base --data {m}/chats.jsonl --output {s}/adapter --steps 4 --batch-size 4 "
    "--validation-size 4 --save-every 2 --compute-type fp32 --lora-r 2 --threads 1"
)
ASK = "--items {m}/items.jsonl --scorer exact --max-tokens 2 --threads 1"
STAGES = {
    "import": Stage(f"{EXPORT} --base {{m}}/stranger.gguf --quant f16"),
    "gguf": Stage(f"{MERGE} --quant q8_0"),
    "gguf over": Stage(f"{MERGE} --quant q8_0 --overwrite", before=f"{OLD} --quant q8_0"),
    "hf": Stage(f"{MERGE} --format hf"),
    "hf over": Stage(f"{MERGE} --format hf --overwrite", before=f"{OLD} --format hf"),
    "imatrix": Stage(f"{MERGE} --quant q4_0 --imatrix auto --calibration {{m}}/chats.jsonl"),
    "bench": Stage(f"bench {{m}}/q8_0.gguf {ASK} --no-speed --baseline {{m}}/f16.gguf --text "
                   "{m}/text.txt --chunks 2 --save-baseline {s}/base.logprobs"),
    "ab": Stage(f"ab {{m}}/q8_0.gguf {{m}}/f16.gguf {ASK} --report {{s}}/report", codes=(0, 3, 4)),
    "report": Stage("report {m}/report/report.json --out {s}/report"),
    "clean": Stage("data clean {m}/chats.jsonl --output {s}/clean.jsonl"),
    "split": Stage("data split {m}/chats.jsonl --output {s}/split --validation 0.2 --test 0.2"),
    "mix over": Stage("data mix {m}/chats.jsonl {m}/items.jsonl --output {s}/mix.jsonl --overwrite",
                      before="data mix {m}/chats.jsonl --output {s}/mix.jsonl"),
    "train": Stage(TRAIN, needs="all", again="--resume"),
    "train over": Stage(f"{TRAIN} --overwrite", needs="all", before=f"{TRAIN} --seed 7"),
    "gptq": Stage(f"{MERGE} {GPTQ}", needs="all"),
    "onnx": Stage(f"{MERGE} --format onnx --quant int4", needs="all"),
}  # fmt: skip


class Server:
    """The process that runs stages in forks of itself, with the shim preloaded."""

    def __init__(self, needs: str, hash_seed: int = 0) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="edgeft-shim-"))
        self.shim = self._folder / "shim.so"
        subprocess.run(
            ["cc", "-shared", "-fPIC", "-O1", "-o", self.shim, HERE / "fault_shim.c", "-ldl"],
            check=True,
        )
        self.log, self._modules = self._folder / "log", self._folder / "modules"
        environment = {"LD_PRELOAD": str(self.shim), "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": str(hash_seed),
                       "TOKENIZERS_PARALLELISM": "false", "COLUMNS": "400",
                       "PYTHONPATH": os.pathsep.join(map(str, (HERE.parents[1], *sys.path)))}  # fmt: skip
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, HERE / "fault_server.py", needs],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=os.environ | environment,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._folder)

    def run(
        self, command: str, folder: Path, number: int = 0, fault: Fault = NOTHING, **more: Any
    ) -> tuple[int | str, int, str]:
        """(exit code, calls, output) of a command that writes below `folder`."""
        output = self._folder / "output"
        request = {
            "commands": [command.split()], "folders": [str(folder)], "number": number,
            "effect": fault.effect, "error": fault.error, "log": "", "output": str(output),
            "env": {"EDGEFT_HOME": str(folder / "home")}, "timeout": TIMEOUT_S, **more,
        }  # fmt: skip
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            raise RuntimeError(f"the server of stages ended: {self._errors.read()[-2000:]}")
        answer = json.loads(line)
        self.cpu_s: float = answer["cpu_s"]
        return answer["code"], answer["count"], output.read_text(errors="replace")

    def learn(self, command: str, folder: Path) -> tuple[int | str, int, str]:
        """Run a command; what it imports is imported by the server before the next one."""
        ran = self.run(command, folder, modules_to=str(self._modules))
        names = json.loads(self._modules.read_text())
        self.run("--version", folder, modules=names)
        return ran


class Place:
    """A stage and the folder that it writes to."""

    def __init__(self, server: Server, stage: Stage, material: Path, folder: Path) -> None:
        self.server, self.stage, self.folder = server, stage, folder
        self.command = self._filled(stage.command, material)
        self.again = f"{self.command} {stage.again}".strip()
        self._saved = folder.with_name(f"{folder.name}-before")
        shutil.rmtree(self._saved, ignore_errors=True)
        self.clean()
        if stage.before:
            code, _, output = server.run(self._filled(stage.before, material), folder)
            assert code == 0, output
        shutil.copytree(folder, self._saved, symlinks=True)
        self.before = content(folder)
        code, self.calls, output = server.learn(self.command, folder)
        assert code in stage.codes, output
        self.after, self.names = content(folder), names(folder)

    def _filled(self, command: str, material: Path) -> str:
        return command.format(m=material, s=self.folder)

    def clean(self) -> None:
        """The folder as it is before the stage."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._saved.exists():
            shutil.copytree(self._saved, self.folder, symlinks=True)
        else:
            self.folder.mkdir(parents=True)

    def spoil(self, number: int, fault: Fault, **more: Any) -> list[str]:
        """What does not hold after a fault at call `number`, and after the same command once more."""
        self.clean()
        code, _, output = self.server.run(self.command, self.folder, number, fault, **more)
        where = f"{fault.name} at call {number}"
        return [f"{where}: {problem}" for problem in self._problems(code, output, fault)]

    def power_losses(self) -> tuple[int, list[str]]:
        """(number of states, problems) of a loss of power at any moment of the stage."""
        self.clean()
        before = raw_content(self.folder)
        code, _, output = self.server.run(self.command, self.folder, log=str(self.server.log))
        assert code in self.stage.codes, output
        old, new = content_of(before), content(self.folder)
        states, problems = 0, []
        for where, state in crash_states(read_log(self.server.log), before, self.folder):
            states += 1
            shutil.rmtree(self.folder)
            for name, data in state.items():
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                (self.folder / name).write_bytes(data)
            self.folder.mkdir(exist_ok=True)
            problems += [
                f"{where}: {problem}"
                for problem in half_written(self.folder, old, new, cut_off=True)
            ]
        return states, problems

    def _problems(self, code: int | str, output: str, fault: Fault) -> Iterator[str]:
        killed = fault.kills and code == -9
        if not killed and code not in (*self.stage.codes, 1):
            yield f"exit code {code}: {output[-600:]}"
        if "Traceback" in output:
            yield f"a traceback: {output[-900:]}"
        lines = [line for line in output.splitlines() if "edgeft: error: " in line]
        if code == 1 and 1 not in self.stage.codes and len(lines) != 1:
            yield f"{len(lines)} lines of errors: {output[-300:]}"
        yield from half_written(self.folder, self.before, self.after, killed or fault.lasts)
        yield from self.problems_of_next_run()

    def problems_of_next_run(self) -> Iterator[str]:
        """Whether the command completes now, to the bytes of a run without a fault."""
        code, _, output = self.server.run(self.again, self.folder)
        if code not in self.stage.codes:
            yield f"the next run ends with {code}: {output[-600:]}"
            return
        result = content(self.folder)
        different = [n for n in {*result, *self.after} if result.get(n) != self.after.get(n)]
        if different:
            yield f"the next run has other bytes: {', '.join(sorted(different))}"
        if left := sorted(names(self.folder) ^ self.names):
            yield f"left over or missing: {', '.join(left)}"


DERIVED = ("README.md", ".cdx.json")
"""cards, which are in no manifest"""


def half_written(
    folder: Path, before: dict[str, Any], after: dict[str, Any], cut_off: bool
) -> Iterator[str]:
    """Files that are neither the old nor the new ones, or that their manifests do not describe.

    A run that was cut off may leave the last renames to the next look at its result.
    """
    files.forget_hashes()
    targets = [path for path in folder.rglob("*") if path.suffix in (".gguf", ".jsonl")]
    for target in targets if cut_off else ():
        if not target.name.startswith("."):
            store.find_complete(target, "", {}, {})
            name = str(target.relative_to(folder))
            described = f"{name}.manifest.json" in {**before, **after}
            if described and not store.manifest_path(target).exists():
                yield f"{name} has no manifest for ever"
    now = content(folder)
    for name, value in now.items():
        if value not in (before.get(name), after.get(name)):
            yield f"{name} is neither old nor new"
    for name in before:
        if name not in now and not name.endswith(DERIVED):  # written again by the next run
            yield f"{name} is lost"
    for name in now:
        if name.endswith("manifest.json"):
            path = folder / name
            target = path.parent if path.name == "manifest.json" else path.with_name(
                path.name.removesuffix(".manifest.json"))  # fmt: skip
            manifest_of = store.read_manifest(target)
            assert manifest_of
            yield from store.damaged(target, manifest_of)


def names(folder: Path) -> set[str]:
    """Relative names of all files and folders, without caches of no account."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")
            if path.suffix != ".lock" and "tried" not in path.parts and path.name != "home"}  # fmt: skip


VOLATILE = re.compile(rb'"(created|seconds|tokens_per_second|mtime|total_flos|load_s)": ?[^,\n}]+')


def content(folder: Path) -> dict[str, bytes]:
    """Name -> bytes of the files under their final names, without times."""
    return content_of(raw_content(folder))


def content_of(raw: dict[str, bytes]) -> dict[str, bytes]:
    """The part of `raw_content` that is under final names, without times."""
    return {name: normalized(name, data) for name, data in raw.items() if not HIDDEN.search(name)}


def raw_content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


HIDDEN = re.compile(r"(^|/)(\.|[^/]*\.(work|logs)/|tried/)")
"""names that are not final"""


def normalized(name: str, data: bytes) -> bytes:
    if name.endswith(("manifest.json", ".cdx.json", "README.md")) or re.search(
        "(^|/)(report|scores)/", name
    ):
        data = VOLATILE.sub(b"", data)
        data = re.sub(rb"\d\d\d\d-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?[^\s<\"]*", b"", data)
    return data


def make_material(folder: Path, server: Server) -> Path:
    """Inputs of the stages: a tiny base, an adapter, data, two artifacts and a report."""
    make_base(folder / "base")
    make_chats(folder / "chats.jsonl", 24)
    rows = [{"question": f"lamp {i} on", "answer": f"on {i}"} for i in range(6)]
    (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "text.txt").write_text(
        "the lamp in the hall is on and the one on the stairs is off. " * 60
    )
    write_adapter(folder / "base", folder / "adapter")
    scratch = folder / "scratch"
    command = f"{MERGE} --quant f16,q8_0".format(m=folder, s=scratch)
    code, _, output = server.learn(command, scratch)
    assert code == 0, output
    for name in ("f16.gguf", "q8_0.gguf"):
        shutil.copy(scratch / "out" / name, folder / name)
    shutil.copy(folder / "f16.gguf", folder / "stranger.gguf")
    command = STAGES["ab"].command.format(m=folder, s=scratch)
    code, _, output = server.learn(command, scratch)
    assert code in (0, 3, 4), output
    (scratch / "report").rename(folder / "report")
    shutil.rmtree(scratch)
    return folder


def write_adapter(base: Path, folder: Path) -> None:
    """A LoRA of rank 2 on queries and values, in peft's format."""
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"],
              "base_model_name_or_path": str(base), "task_type": "CAUSAL_LM", "bias": "none"}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    sizes = json.loads((base / "config.json").read_text())
    hidden = sizes["hidden_size"]
    keys = sizes["num_key_value_heads"] * sizes["head_dim"]
    draw, specs, arrays = np.random.default_rng(1), [], []
    for layer in range(sizes["num_hidden_layers"]):
        for module, rows in (("q_proj", hidden), ("v_proj", keys)):
            name = f"base_model.model.model.layers.{layer}.self_attn.{module}.lora"
            for part, shape in (("A", (2, hidden)), ("B", (rows, 2))):
                specs.append(Spec(f"{name}_{part}.weight", "F32", shape))
                arrays.append(draw.normal(0, 0.1, shape).astype(np.float32))
    write_safetensors(folder / "adapter_model.safetensors", specs, arrays)


def fast_folder() -> str | None:
    """A folder in memory, where flushing costs nothing; None where there is none."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("stages", nargs="+", choices=["all", *STAGES])
    parser.add_argument("--step", type=int, default=1, help="every so many calls")
    parser.add_argument("--kills", type=int, default=0, help="kills at random calls, of each stage")
    parser.add_argument(
        "--power", action="store_true", help="only losses of power, at every moment"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    chosen = list(STAGES) if "all" in args.stages else args.stages
    root = Path(tempfile.mkdtemp(prefix="edgeft-faults-", dir=fast_folder()))
    draw = random.Random(args.seed)
    needs = "all" if any(STAGES[name].needs == "all" for name in chosen) else "core"
    bad = 0
    with Server(needs) as server:
        material = make_material(root / "material", server)
        for name in chosen:
            started = time.monotonic()
            place = Place(server, STAGES[name], material, root / "place")
            if args.power:
                states, problems = place.power_losses()
                print(f"{name}: {states} states, {len(problems)} problems, "
                      f"{time.monotonic() - started:.0f} s", flush=True)  # fmt: skip
                print("".join(f"    {problem}\n" for problem in problems[:5]), end="", flush=True)
                bad += len(problems)
                continue
            points = [
                (n, FAULTS[(n + args.seed) % len(FAULTS)])
                for n in range(1, place.calls + 1, args.step)
            ]
            points += [
                (draw.randint(1, place.calls), draw.choice(KILLS)) for _ in range(args.kills)
            ]
            problems = [problem for point in points for problem in place.spoil(*point)]
            bad += len(problems)
            print(f"{name}: {place.calls} calls, {len(points)} points, {len(problems)} problems, "
                  f"{time.monotonic() - started:.0f} s", flush=True)  # fmt: skip
            for problem in problems:
                print(f"    {problem}", flush=True)
    shutil.rmtree(root)
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
