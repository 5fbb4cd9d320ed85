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
from edgeft.weights.gguf_check import NO_TOKENS, check_runs
from edgeft.weights.gguf_reader import Header, Tensor

IMPORTABLE_FAMILIES = ("llama", "qwen2")
"""families whose config.json follows from the header alone"""
NEEDED = ("context_length", "feed_forward_length", "attention.layer_norm_rms_epsilon")
"""keys of a header that such a family has, beside those that every model has"""
SHAPES = {
    "token_embd.weight": ("vocabulary", "width"), "output.weight": ("vocabulary", "width"),
    "output_norm.weight": ("width",), "attn_norm.weight": ("width",), "ffn_norm.weight": ("width",),
    "attn_q.weight": ("queries", "width"), "attn_k.weight": ("keys", "width"),
    "attn_v.weight": ("keys", "width"), "attn_output.weight": ("width", "queries"),
    "ffn_gate.weight": ("inner", "width"), "ffn_up.weight": ("inner", "width"),
    "ffn_down.weight": ("width", "inner"), "attn_q.bias": ("queries",), "attn_k.bias": ("keys",),
    "attn_v.bias": ("keys",), "attn_output.bias": ("width",), "ffn_gate.bias": ("inner",),
    "ffn_up.bias": ("inner",), "ffn_down.bias": ("width",),
}  # fmt: skip
"""tensor of such a family, without its layer -> its shape"""
OPTIONAL = ("output.weight", ".bias")
"""ends of tensors that a model may lack"""
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
    with store.writing_shared(target, kind="base", options=options, parents=parents) as work:
        if work is None:
            return target
        header = gguf_reader.read(file)
        check_runs(header)
        card = models.card_for_gguf(header.meta.get("general.architecture", ""))
        if card.family not in IMPORTABLE_FAMILIES:
            raise FormatError(
                f"GGUF import does not read {card.family} models",
                "use the Hugging Face folder of this model",
            )
        config = _config(header, card)
        _check_shapes(header, card, config)
        machine.preflight(target, f"importing {file.name}", disk=4 * file.stat().st_size)
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
    for gguf_key in NEEDED:
        value = header.meta.get(f"{card.gguf_arch}.{gguf_key}")
        if value is None or isinstance(value, list):
            raise FormatError(f"{header.path}: {card.gguf_arch}.{gguf_key} is {value!r}"[:200])
    models.check_config(config, card.hparams, card.defaults)
    scaling = header.meta.get(f"{card.gguf_arch}.rope.scaling.type")
    if scaling not in (None, "none") or "rope_freqs.weight" in header.tensors:
        raise FormatError(f"GGUF import does not read rope scaling {scaling or 'factors'!r}")
    theta = header.meta.get(f"{card.gguf_arch}.rope.freq_base", 10000.0)
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": theta}
    if "tokenizer.ggml.tokens" not in header.meta:
        raise FormatError(f"{header.path} has no vocabulary")
    config["vocab_size"] = len(header.meta["tokenizer.ggml.tokens"])
    config["tie_word_embeddings"] = "output.weight" not in header.tensors
    for key, name in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        config[f"{key}_token_id"] = _token_id(header, name)
    # The file has float32; the shortest decimal that rounds to it is the original's value.
    return {k: float(str(np.float32(v))) if isinstance(v, float) else v for k, v in config.items()}


def _token_id(header: Header, name: str) -> int | None:
    """The id of a special token by GGUF's name of it; None where the vocabulary lacks it."""
    token: int | None = header.meta.get(f"tokenizer.ggml.{name}_token_id")
    return None if token in NO_TOKENS else token


def _check_shapes(header: Header, card: models.Card, config: dict[str, Any]) -> None:
    """FormatError for a tensor of another shape than the header says, and for one that is missing."""
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    sizes = {
        "vocabulary": config["vocab_size"],
        "width": config["hidden_size"],
        "inner": config["intermediate_size"],
        "queries": heads * head_dim,
        "keys": (config.get("num_key_value_heads") or heads) * head_dim,
    }
    expected = {}
    for pattern in card.tensors.values():
        numbers = range(config["num_hidden_layers"]) if "{i}" in pattern else (0,)
        shape = SHAPES[str(pattern).removeprefix("blk.{i}.")]
        for layer in numbers:
            expected[models.fill(str(pattern), (layer,))] = tuple(sizes[name] for name in shape)
    for name, tensor in header.tensors.items():
        if expected.get(name, tensor.shape) != tensor.shape:
            raise FormatError(
                f"{header.path}: tensor {name} has the shape {tensor.shape}, {expected[name]} by its header"
            )
    for name in expected:
        if name not in header.tensors and not name.endswith(OPTIONAL):
            raise FormatError(f"{header.path} lacks the tensor {name}")


def write_tokenizer(header: Header, folder: Path, config: dict[str, Any]) -> None:
    """Write tokenizer.json, tokenizer_config.json, chat_template.jinja, generation_config.json.

    `config`: the model's config.json, of which only `max_position_embeddings` is read.
    """
    tokenizer = gguf_vocabulary.from_gguf(header.meta.get)
    tokens = {i: text for text, i in tokenizer["model"]["vocab"].items()}
    _write_json(folder / "tokenizer.json", tokenizer)
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    ids = {name: _token_id(header, key) for name, key in names.items()}
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
    ends = [_token_id(header, name) for name in ("eos", "eot", "eom")]
    ends = list(dict.fromkeys(end for end in ends if end is not None))
    generation: dict[str, Any] = {f"{name}_token_id": ids[name] for name in ("bos", "eos", "pad")}
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
