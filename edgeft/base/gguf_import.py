"""A GGUF file -> a base folder in Hugging Face's layout, in the cache.

    folder = import_gguf(Path("model.gguf"), "model")       # <home>/bases/model

Tensors are read one by one into float16 matrices and float32 vectors, with the names and the inverse
transforms of the family's card. tokenizer.json is rebuilt from the file's vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeft import files, machine, models, store
from edgeft.errors import FormatError
from edgeft.files import home
from edgeft.tokenizer import gguf_vocabulary
from edgeft.weights import gguf_reader
from edgeft.weights.checkpoint import Spec, write_safetensors
from edgeft.weights.gguf_reader import Header, Tensor

IMPORTABLE_FAMILIES = ("llama", "qwen2")
"""families whose config.json follows from the header alone"""
Q4_1_BLOCK_BYTES, Q4_1_BLOCK_VALUES = 20, 32
"""a float16 step, a float16 minimum and 32 values of 4 bits"""


def import_gguf(file: Path, name: str, dither_seed: int | None = None) -> Path:
    """Import `file` as `<home>/bases/<name>`, once, and return that folder.

    `dither_seed`: add noise to Q4_1 weights (`models/sources.toml` says why). FormatError for a
    family, a rope scaling, a vocabulary or a tensor that cannot be imported.
    """
    target = home() / "bases" / name
    options = {"source": file.name, "dither_seed": dither_seed}
    parents = {"file": files.sha256(file)}
    if store.find_complete(target, "base", options, parents):
        return target
    header = gguf_reader.read(file)
    card = models.card_for_gguf(header.meta.get("general.architecture", ""))
    if card.family not in IMPORTABLE_FAMILIES:
        raise FormatError(
            f"GGUF import does not read {card.family} models",
            "use the Hugging Face folder of this model",
        )
    config = _config(header, card)
    machine.preflight(target, f"importing {file.name}", disk=4 * file.stat().st_size)
    with store.writing(
        target, kind="base", options=options, parents=parents, overwrite=True
    ) as work:
        _write_json(work.path / "config.json", config)
        write_tokenizer(header, work.path, config)
        specs = [_spec(tensor, card, file) for tensor in header.tensors.values()]
        arrays = _arrays(header, card, config, dither_seed)
        write_safetensors(work.path / "model.safetensors", specs, arrays)
        source = models.sources().get(name)
        work.facts["about"] = source.about if source else f"import of {file.name}"
    return target


def _config(header: Header, card: models.Card) -> dict[str, Any]:
    """config.json in transformers' names, from the hyper-parameters of the header."""
    config: dict[str, Any] = {
        "architectures": [card.architectures[0]],
        "model_type": card.family,
        "dtype": "float16",
        "hidden_act": "silu",
    }
    for gguf_key, key in card.hparams.items():
        value = header.meta.get(f"{card.gguf_arch}.{gguf_key}")
        if value is not None and not key.startswith("="):
            config[key] = value
    scaling = header.meta.get(f"{card.gguf_arch}.rope.scaling.type")
    if scaling not in (None, "none") or "rope_freqs.weight" in header.tensors:
        raise FormatError(f"GGUF import does not read rope scaling {scaling or 'factors'!r}")
    theta = header.meta.get(f"{card.gguf_arch}.rope.freq_base", 10000.0)
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": theta}
    if "tokenizer.ggml.tokens" not in header.meta:
        raise FormatError(f"{header.path} has no vocabulary")
    config["vocab_size"] = len(header.meta["tokenizer.ggml.tokens"])
    config["tie_word_embeddings"] = "output.weight" not in header.tensors
    for key in ("bos", "eos"):
        config[f"{key}_token_id"] = header.meta.get(f"tokenizer.ggml.{key}_token_id")
    config["pad_token_id"] = header.meta.get("tokenizer.ggml.padding_token_id")
    # The file has float32; the shortest decimal that rounds to it is the original's value.
    return {k: float(str(np.float32(v))) if isinstance(v, float) else v for k, v in config.items()}


def write_tokenizer(header: Header, folder: Path, config: dict[str, Any]) -> None:
    """Write tokenizer.json, tokenizer_config.json, chat_template.jinja, generation_config.json.

    `config`: the model's config.json, of which only `max_position_embeddings` is read.
    """
    tokenizer = gguf_vocabulary.from_gguf(header.meta.get)
    tokens = {i: text for text, i in tokenizer["model"]["vocab"].items()}
    _write_json(folder / "tokenizer.json", tokenizer)
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    ids = {name: header.meta.get(f"tokenizer.ggml.{key}_token_id") for name, key in names.items()}
    special: dict[str, Any] = {
        f"{name}_token": tokens[i] for name, i in ids.items() if i is not None
    }
    for key in ("add_bos_token", "add_eos_token"):
        if (value := header.meta.get(f"tokenizer.ggml.{key}")) is not None:
            special[key] = bool(value)
    _write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False,
         "model_max_length": config["max_position_embeddings"], **special},
    )  # fmt: skip
    template = header.meta.get("tokenizer.chat_template")
    if template:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    ends = [header.meta.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    ends = list(dict.fromkeys(end for end in ends if end is not None))
    generation = {f"{name}_token_id": ids[name] for name in ("bos", "eos", "pad")}
    generation |= {"eos_token_id": ends} if len(ends) > 1 else {}
    _write_json(
        folder / "generation_config.json",
        {key: value for key, value in generation.items() if value is not None},
    )


def _spec(tensor: Tensor, card: models.Card, file: Path) -> Spec:
    """Name, type and shape of a tensor in model.safetensors."""
    name = card.hf_name(tensor.name)
    if name is None:
        raise FormatError(f"{file}: the {card.family} card has no tensor {tensor.name}")
    return Spec(name, "F16" if len(tensor.shape) > 1 else "F32", tensor.shape)


def _arrays(
    header: Header, card: models.Card, config: dict[str, Any], dither_seed: int | None
) -> Iterator[npt.NDArray[np.float32]]:
    """The values of every tensor in Hugging Face's order of rows, one tensor at a time."""
    from gguf import GGMLQuantizationType, dequantize

    noise = None if dither_seed is None else np.random.default_rng(dither_seed)
    for tensor in header.tensors.values():
        stored = gguf_reader.data(header, tensor)
        values = dequantize(stored, tensor.type).astype(np.float32, copy=False)
        if noise is not None and tensor.type == GGMLQuantizationType.Q4_1:
            values = values + _half_steps(stored, values.shape, noise)
        yield card.transform(tensor.name).inverse(values, config)


def _half_steps(
    blocks: npt.NDArray[np.uint8], shape: tuple[int, ...], noise: np.random.Generator
) -> npt.NDArray[np.float32]:
    """Uniform noise of +- half a quantization step of each Q4_1 block, in a tensor's `shape`."""
    steps = blocks.reshape(-1, Q4_1_BLOCK_BYTES)[:, :2].copy().view(np.float16).astype(np.float32)
    uniform = noise.uniform(-0.5, 0.5, (len(steps), Q4_1_BLOCK_VALUES)).astype(np.float32)
    return (uniform * steps).reshape(shape)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
