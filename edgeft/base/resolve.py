"""What `--base` names -> a Hugging Face folder on this machine.

    resolve("smollm2-135m")      embedded in a Python package, imported once into the cache
    resolve("./model")           a Hugging Face folder, used where it is
    resolve("./model.gguf")      a GGUF file, imported once into the cache
    resolve("owner/name")        a hub id, where there is a network

The import reads a GGUF tensor by tensor into float16 matrices and float32 vectors, with the names
and transforms of the family's card, and rebuilds tokenizer.json from the file's vocabulary.
"""

from __future__ import annotations

import importlib.resources
from pathlib import Path

from edgeft import files, models
from edgeft.base.gguf_import import import_gguf
from edgeft.errors import InputError, did_you_mean, require


def resolve(name: str, dither_seed: int | None = None) -> Path:
    """The Hugging Face folder of a base model; imports or downloads it when it must.

    `dither_seed`: of an embedded base a variant with noise of its own (`models/sources.toml`).
    """
    path = Path(name).expanduser()
    if name in models.sources():
        source = models.sources()[name]
        if dither_seed is not None:
            return import_gguf(_packaged(source), f"{name}-dither-{dither_seed}", dither_seed)
        return import_gguf(_packaged(source), source.name, source.dither_seed)
    if dither_seed is not None:
        raise InputError(
            f"{name} is no embedded base, only those are dithered", ", ".join(models.sources())
        )
    if path.is_dir():
        if not (path / "config.json").is_file():
            hint = (
                "an adapter goes to --adapter"
                if (path / "adapter_config.json").exists()
                else "a Hugging Face folder holds config.json, weights and tokenizer"
            )
            raise InputError(f"{path} is not a model folder: no config.json", hint)
        return path
    if path.suffix == ".gguf":
        if not path.is_file():
            raise InputError(f"no such file: {path}")
        return import_gguf(path, f"{path.stem}-{files.sha256(path)[:12]}")
    if name.count("/") == 1 and not path.exists() and not name.startswith((".", "/", "~")):
        return _download(name)
    raise InputError(
        f"no such base model: {name}",
        f"{did_you_mean(name, models.sources())}; or a Hugging Face folder, a .gguf or a hub id",
    )


def _packaged(source: models.Source) -> Path:
    require(source.package, "demo")
    file = importlib.resources.files(source.package) / source.file
    return Path(str(file))


def _download(name: str) -> Path:
    hub = require("huggingface_hub", "train")
    try:
        patterns = [
            "*.json",
            "*.safetensors",
            "*.jinja",
            "tokenizer.model",
            "tokenization_chatglm.py",
        ]
        return Path(hub.snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # noqa: BLE001
        # The hub's client raises a dozen unrelated types; for the user they are one thing.
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"cannot get {name} from the hub: {reason}",
            f"embedded bases need no network: {', '.join(models.sources())}",
        ) from None
