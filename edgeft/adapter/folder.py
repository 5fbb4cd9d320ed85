"""An adapter as a user has it -> a folder that peft can load, with its checked configuration.

    config, folder = open_adapter(Path("checkpoint-100"), base)

A folder in peft's format is taken as it is. Everything else that holds an adapter is written in that
format into a temporary folder, so that the merge and the live model read the same: a subfolder,
files of torch.save, several files, names with wrappers, PiSSA with the start of its training, and
adapters of MLX and llama.cpp. No file of the user is changed.
"""

from __future__ import annotations

import atexit
import functools
import json
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgeft import models
from edgeft.adapter.config import (
    FROM_FILE,
    adapter_manifest,
    base_is_changed,
    check_patterns,
    has_reward_head,
    merge_command,
    read_adapter_config,
)
from edgeft.adapter.names import (
    HEADS,
    OTHER_SENSES,
    PREFIX,
    fit_names,
    module_of,
    peft_names,
)
from edgeft.adapter.programs import AdapterSource, Values, converted, other_program
from edgeft.errors import AdapterError, InputError
from edgeft.files import read_json
from edgeft.models.text_model import SCORE
from edgeft.progress import say
from edgeft.weights.checkpoint import Array, Checkpoint, Spec, write_safetensors
from edgeft.weights.text_base import open_base

WEIGHTS = "adapter_model.safetensors"
STARTS = ("pissa_init", "initial_model", "init_adapter")
"""folders in which trainers keep the adapter before its first step, in the adapter or beside it"""


class PeftFolder(NamedTuple):
    """An adapter that peft can load."""

    config: dict[str, Any]
    """checked adapter_config.json"""
    folder: Path
    """adapter_config.json and adapter_model.safetensors"""


def open_adapter(path: Path, base: Path, reward: bool = False) -> PeftFolder:
    """InputError where there is nothing at `path`, AdapterError for what edgeft cannot merge.

    `reward`: take an adapter with the scalar head of a reward model, too, which writes no text.
    """
    home = adapter_home(path)
    reward = reward and is_reward_model(path)  # so that other adapters are opened, and noted, once
    return _open(path, home, base, reward, tuple(map(_stamp, (home, *_start_folders(home)))))


def is_reward_model(path: Path) -> bool:
    """Whether an adapter has a trained head that rates texts. InputError where there is no adapter."""
    home = adapter_home(path)
    config = read_json(home / "adapter_config.json") if home.is_dir() else {}
    return has_reward_head(config)


def _stamp(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """What changes when a file of the folder does."""
    files = sorted(folder.iterdir()) if folder.is_dir() else [folder]
    stats = ((file.name, file.stat()) for file in files if file.is_file())
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def recorded_base(path: Path) -> str | None:
    """The base that adapter_config.json names (`model` in one of MLX)."""
    home = adapter_home(path)
    config = read_json(home / "adapter_config.json") if home.is_dir() else {}
    names = (config.get(key) for key in ("base_model_name_or_path", "model"))
    return next((name for name in names if name and isinstance(name, str)), None)


def adapter_home(path: Path) -> Path:
    """The folder of the adapter's files: `path`, or the only adapter below it.

    InputError for a path that does not exist (the hint names an interrupted training), AdapterError
    for a folder with several adapters.
    """
    if not path.exists():
        interrupted = path.with_name(path.name + ".work").is_dir()
        raise InputError(
            f"no such adapter: {path}",
            "its training was interrupted: edgeft train-qlora … --resume"
            if interrupted
            else "edgeft train-qlora makes one",
        )
    if path.is_file() or weight_files(path) or (path / "adapter_config.json").is_file():
        return path
    homes = sorted((file.parent for file in path.glob("*/adapter_config.json")), key=_number)
    if len(homes) > 1:
        names = ", ".join(home.name for home in homes[:8])
        raise AdapterError(
            f"{path} holds {len(homes)} adapters: {names}", f"name one: --adapter {homes[-1]}"
        )
    return homes[0] if homes else path


def _number(folder: Path) -> tuple[int, str]:
    """Order of checkpoint-500, checkpoint-1000."""
    digits = re.search(r"(\d{1,12})$", folder.name)
    return (int(digits[1]) if digits else 0, folder.name)


@functools.lru_cache(maxsize=64)
def _open(path: Path, home: Path, base: Path, reward: bool, stamp: tuple[Any, ...]) -> PeftFolder:
    """`stamp`: what changes when the files do."""
    text = open_base(base)
    card, weights = text.card, text.weights
    source = converted(home, card, text.config)
    files = [] if source else weight_files(home)
    if source is None:
        if home.is_file() or not files or not (home / "adapter_config.json").is_file():
            raise other_program(path, home)
        source = _read(home, files, reward)
    stored = read_json(home / "adapter_config.json") if files else {}
    check_patterns(path, source.config, _modules(source.tensors, weights))
    source = _fitted(path, source, card, weights, reward)
    if home != path:
        say(f"{path}: the adapter is in {home.name}/")
    if base_is_changed(source.config) == FROM_FILE:
        if not file_facts(home):
            raise AdapterError(
                f"{path} is the change of a GGUF file (--ship-from), and no manifest names the file",
                "copy the adapter with its manifest.json; a training goes on by --resume",
            )
    elif base_is_changed(source.config):
        start = _start(path, home, source.config)
        initial = _fitted(start, _read(start, weight_files(start), reward), card, weights, reward)
        source = _difference(path, start, source, initial)
    names = list(Checkpoint(home / WEIGHTS).tensors) if files == [home / WEIGHTS] else []
    if names == list(source.tensors) and source.config == stored:
        return PeftFolder(source.config, home)
    return PeftFolder(source.config, _write(source))


def file_facts(adapter: Path) -> dict[str, str]:
    """{"path": …, "identity": …} of the GGUF file that an adapter was trained from; {} for any other adapter."""
    manifest = adapter_manifest(adapter_home(adapter))
    facts: dict[str, str] = manifest.get("facts", {}).get("ship", {}).get("file", {})
    return facts


def weight_files(home: Path) -> list[Path]:
    """Files with the tensors of an adapter of peft, [] where there are none."""
    for name in (WEIGHTS, "adapter_model.bin"):
        if (home / name).is_file():
            return [home / name]
    for suffix in ("safetensors", "bin"):
        shards = sorted(home.glob(f"adapter_model-*-of-*.{suffix}"))
        if shards:
            count = re.search(r"-of-0*(\d{1,6})\.", shards[0].name)
            if count is None or len(shards) != int(count[1]):
                raise AdapterError(
                    f"{home} has {len(shards)} parts of an adapter, but not {shards[0].name[:60]!r}'s "
                    "number of them",
                    "download it again",
                )
            return shards
    return []


def _read(home: Path, files: list[Path], reward: bool) -> AdapterSource:
    """An adapter in peft's format, with peft's names."""
    config = read_adapter_config(home, reward)
    stored: dict[str, Values] = {}
    for file in files:
        weights = Checkpoint(file)
        for name, info in weights.tensors.items():
            if name in stored:
                raise AdapterError(f"{file}: tensor {name} is in two files")
            read = functools.partial(weights.read, name)
            dtype = info.dtype if info.dtype in ("F16", "BF16") else "F32"
            stored[name] = Values(info.shape, dtype, read)
    try:
        names = peft_names(stored)
    except AdapterError as error:
        raise AdapterError(f"{home}: {error.message}", error.hint) from None
    tensors = {names[name]: values for name, values in stored.items()}
    if "r" not in config and config["peft_type"] == "LORA":
        # peft's default is 8. The tensors' own rank is right where it is one.
        ranks = {
            v.shape[0] for name, v in tensors.items() if name.endswith(".lora_A.weight") and v.shape
        }
        config |= {"r": ranks.pop()} if len(ranks) == 1 else {}
    return AdapterSource(config, tensors)


def _modules(tensors: Iterable[str], weights: Checkpoint) -> set[str]:
    """Names that peft may match a pattern with."""
    names = (module_of(name.removeprefix(PREFIX)) for name in tensors)
    return {*names, *(name.rpartition(".")[0] for name in weights.tensors)}


def _fitted(
    path: Path,
    source: AdapterSource,
    card: models.Card,
    weights: Checkpoint,
    reward: bool = False,
) -> AdapterSource:
    """The same without what a language model has no place for, with the names of its modules.

    `reward`: the scalar head of a reward model stays.
    """
    config, tensors = source
    empty = next((name for name, values in tensors.items() if 0 in values.shape), None)
    if empty and config["peft_type"] != "ADALORA":
        raise AdapterError(
            f"{path}: {empty} is empty: DeepSpeed or FSDP kept its values elsewhere",
            "python zero_to_fp32.py in the checkpoint, or save it after gathering the weights "
            "(stage3_gather_16bit_weights_on_model_save, FULL_STATE_DICT)",
        )
    modules = {module_of(name) for name in weights.tensors}
    head = _reward_head(path, config, tensors) if reward and has_reward_head(config) else ""
    left_out = {}
    for name in tensors:
        module = module_of(name.removeprefix(PREFIX))
        part = HEADS.search(f"{module}.") or OTHER_SENSES.search(f"{module}.")
        if part and name != head and card.in_checkpoint(module) not in modules:
            left_out[name] = part[2]
    saved = config.get("modules_to_save") or []
    for name in ("score", "classifier", "classification_head", "qa_outputs"):
        if name in left_out.values() and name in saved:
            raise AdapterError(
                f"{path} is the adapter of a classifier: it trained {name}, which generates no text",
                "an adapter of a causal language model is needed (task_type CAUSAL_LM)",
            )
    if left_out:
        counts = ", ".join(f"{part} ({n})" for part, n in Counter(left_out.values()).items())
        say(f"{path}: left out the tensors of {counts}: text is generated without them")
        if saved:
            config = config | {"modules_to_save": [m for m in saved if m not in left_out.values()]}
    kept = [name for name in tensors if name not in left_out]
    fitted = fit_names((name for name in kept if name != head), card, weights)
    fitted |= {head: PREFIX + SCORE} if head else {}
    if isinstance(config.get("target_modules"), str) and any(fitted[name] != name for name in kept):
        adapted = (fitted[name].removeprefix(PREFIX) for name in kept if ".lora_A" in name)
        config = config | {"target_modules": sorted({module_of(name) for name in adapted})}
    return AdapterSource(config, {fitted[name]: tensors[name] for name in kept})


def _reward_head(path: Path, config: dict[str, Any], tensors: dict[str, Values]) -> str:
    """The name of the head's tensor. AdapterError where it is missing, or has more than one row."""
    names = [name for name in tensors if module_of(name.removeprefix(PREFIX)) == "score"]
    if len(names) == 1 and tensors[names[0]].shape[:1] == (1,):
        return names[0]
    rows = ", ".join(str(tensors[name].shape) for name in names) or "missing"
    raise AdapterError(
        f"{path} is the adapter of a classifier: its head `score` is {rows}, that of a reward model has one row",
        "an adapter of a causal language model, or of a reward model with one score, is needed",
    )


def _start_folders(home: Path) -> list[Path]:
    return [place / name for place in (home, home.parent) for name in STARTS]


def _start(path: Path, home: Path, config: dict[str, Any]) -> Path:
    """The folder of the adapter before its first step. AdapterError where it was not kept."""
    init = base_is_changed(config)
    start = next((folder for folder in _start_folders(home) if weight_files(folder)), None)
    if start is None or init == "loftq":
        raise AdapterError(
            f"{path} belongs to a changed base (init_lora_weights={init})",
            "merge it with peft into the model that LoftQ quantized"
            if init == "loftq"
            else "save it with peft's path_initial_model_for_weight_conversion, as plain LoRA",
        )
    say(f"{path}: merged as its difference to {start.name}/, its start ({init})")
    return start


def _difference(
    path: Path, start: Path, source: AdapterSource, initial: AdapterSource
) -> AdapterSource:
    """s·(B·A - B0·A0) as one LoRA of twice the rank: what training changed of the base on disk.

    As peft saves it with `path_initial_model_for_weight_conversion`: tuners/lora/model.py,
    `subtract_mutated_init`.
    """
    config, tensors = source.config, {}
    for name, values in source.tensors.items():
        part = re.search(r"\.lora_([AB])\.weight$", name)
        other = initial.tensors.get(name)
        if part is None or other is None or other.shape != values.shape or len(values.shape) != 2:
            raise AdapterError(
                f"{path}: {start.name} is not the start of {name}", merge_command(path)
            )
        rows, columns = values.shape
        if part[1] == "A":
            read = functools.partial(_joined, values, other, 1, axis=0)
            tensors[name] = Values((2 * rows, columns), "F32", read)
        else:
            read = functools.partial(_joined, values, other, -1, axis=1)
            tensors[name] = Values((rows, 2 * columns), "F32", read)
    factor = 2**0.5 if config.get("use_rslora") else 2
    doubled = {
        "r": 2 * config.get("r", 8),
        "lora_alpha": factor * config.get("lora_alpha", 8),
        "rank_pattern": {k: 2 * r for k, r in (config.get("rank_pattern") or {}).items()},
        "alpha_pattern": {k: factor * a for k, a in (config.get("alpha_pattern") or {}).items()},
        "init_lora_weights": True,
    }
    return AdapterSource(config | doubled, tensors)


def _joined(one: Values, other: Values, sign: int, axis: int) -> Array:
    return np.concatenate([one.read(), np.float32(sign) * other.read()], axis)


def _write(source: AdapterSource) -> Path:
    """A folder in peft's format, removed when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="edgeft-adapter-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    specs = [Spec(name, values.dtype, values.shape) for name, values in source.tensors.items()]
    write_safetensors(
        folder / WEIGHTS, specs, (values.read() for values in source.tensors.values())
    )
    (folder / "adapter_config.json").write_text(json.dumps(source.config))
    return folder
