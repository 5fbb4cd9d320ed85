"""What `--base` names -> a Hugging Face folder on this machine.

resolve_base("smollm2-135m")      embedded in a Python package, imported once into the cache
resolve_base("./model")           a Hugging Face folder, used where it is
resolve_base("./model.gguf")      a GGUF file, imported once into the cache
resolve_base("owner/name")        a hub id, downloaded into the hub's cache
"""

from __future__ import annotations

import importlib.resources
from pathlib import Path

from edgeft import files, models
from edgeft.base.gguf_import import import_gguf
from edgeft.errors import InputError, did_you_mean, require
from edgeft.weights.checkpoint import other_weights

HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "tokenization_chatglm.py"]
"""files of a hub repository that a base folder needs; code among them is read, never run"""
PICKLED_FILES = ["pytorch_model*.bin"]
"""of a repository without safetensors; they are read without unpickling"""
OTHER_COPIES = ["consolidated*", "original/*"]
"""the same weights again, in the makers' own formats"""


def resolve_base(name: str, dither_seed: int | None = None) -> Path:
    """The Hugging Face folder of a base model; imports or downloads it where needed.

    `dither_seed`: a variant of an embedded base with other noise (`models/sources.toml`).
    InputError for a name, folder or file that is no base model, MissingExtra where the package with
    an embedded base, or the hub's client, is not installed.
    """
    if name in models.sources():
        return _embedded(models.sources()[name], dither_seed)
    if dither_seed is not None:
        raise InputError(
            f"{name} is no embedded base, only those are dithered", ", ".join(models.sources())
        )
    path = files.expand_user(name)
    if path.is_dir():
        _check_folder(path)
        return path
    if path.suffix == ".gguf":
        if not path.is_file():
            raise InputError(f"no such file: {path}")
        return import_gguf(path, f"{path.stem}-{files.sha256(path)[:12]}")
    if path.is_file():
        raise InputError(f"{path} is one file of a model", "give its folder, with config.json")
    if name.count("/") == 1 and not path.exists() and not name.startswith((".", "/", "~")):
        return _download(name)
    raise InputError(
        f"no such base model: {name}",
        f"{did_you_mean(name, models.sources())}; or a Hugging Face folder, a .gguf or a hub id",
    )


def _embedded(source: models.Source, dither_seed: int | None) -> Path:
    """The import of the GGUF file that a Python package carries."""
    require(source.package, "demo")
    file = Path(str(importlib.resources.files(source.package) / source.file))
    if dither_seed is None:
        return import_gguf(file, source.name, source.dither_seed)
    return import_gguf(file, f"{source.name}-dither-{dither_seed}", dither_seed)


def _check_folder(folder: Path) -> None:
    """InputError where a folder is no model."""
    if (folder / "config.json").is_file():
        return
    hint = (
        "an adapter goes to --adapter"
        if (folder / "adapter_config.json").exists()
        else other_weights(folder, "a Hugging Face folder holds config.json, weights and tokenizer")
    )
    raise InputError(f"{folder} is not a model folder: no config.json", hint)


def _download(name: str) -> Path:
    hub = require("huggingface_hub", "train")
    try:
        folder = Path(
            hub.snapshot_download(name, allow_patterns=HUB_FILES, ignore_patterns=OTHER_COPIES)
        )
        if not any(folder.glob("*.safetensors")):
            hub.snapshot_download(name, allow_patterns=PICKLED_FILES)
        return folder
    except Exception as error:  # noqa: BLE001
        # The hub's client raises a dozen unrelated types; all mean that there is no download.
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"cannot get {name} from the hub: {reason}",
            f"embedded bases need no network: {', '.join(models.sources())}",
        ) from None
