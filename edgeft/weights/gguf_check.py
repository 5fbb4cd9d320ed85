"""A GGUF header -> what is wrong with it: values by which llama.cpp would abort its process.

    problems(gguf_reader.read(path))        # ["llama.block_count is 0, a whole number from 1 …"]
    check_runs(header)                      # InputError with the first of them

llama.cpp checks names and shapes of tensors itself and reports them. It does not check what is here:
its assertions end the process, and some values make it read beyond an array. What no rule here foresees
is found by `edgeft.runtimes.trial`. Only language models are checked: an importance matrix, an adapter
or a vision part has other keys.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Iterator
from typing import Any

from edgeft import models
from edgeft.errors import InputError
from edgeft.models.hyperparameters import HYPERPARAMETERS, REQUIRED
from edgeft.weights.gguf_reader import Header, Tensor

ARCHITECTURE = "general.architecture"
TEXT_KEYS = ("general.name", "general.type", "tokenizer.ggml.model", "tokenizer.ggml.pre",
             "tokenizer.chat_template")  # fmt: skip
ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")
NO_TOKENS = (-1, 2**32 - 1)
"""ids of a special token that a vocabulary lacks: some converters write -1"""
PER_LAYER = ("attention.head_count", "attention.head_count_kv", "feed_forward_length")
"""keys that may hold a value per layer"""
EVERY_ARCHITECTURE = ("block_count", "embedding_length", "context_length", "expert_count",
                      "expert_used_count", "attention.layer_norm_rms_epsilon",
                      "attention.layer_norm_epsilon")  # fmt: skip
"""keys that are also checked for an architecture without a card, whose other keys may be 0"""
UNCOMPUTED_TYPES = ("I8", "I16", "I32", "I64", "F64", "Q8_1", "Q8_K")
"""types of tensors that llama.cpp cannot multiply by"""
MEMORY_ALIGNMENT = 32
"""bytes; ggml asserts it of mapped tensors (TENSOR_ALIGNMENT in ggml-backend.cpp)"""


def check_runs(header: Header) -> None:
    """InputError where llama.cpp would abort the process that loads the file."""
    for problem in problems(header, language_model=True):
        raise InputError(f"{header.path}: {problem}", "export or download it again")


def problems(header: Header, language_model: bool = False) -> Iterator[str]:
    """What is wrong, a line each. Nothing for a file that says it is no language model, unless it is
    used as a `language_model`."""
    meta = header.meta
    for key in (ARCHITECTURE, *TEXT_KEYS):
        if key in meta and not isinstance(meta[key], str):
            yield f"{key} is {_short(meta[key])}, a text is needed"
            return
    other = meta.get("general.type", "model") != "model" or meta.get(ARCHITECTURE) == "clip"
    if other and not language_model:
        return
    if ARCHITECTURE not in meta:
        yield f"{ARCHITECTURE} is missing"
        return
    yield from _hyperparameters(meta)
    yield from _vocabulary(meta)
    known = meta[ARCHITECTURE] in {card.gguf_arch for card in models.cards()}
    if any(tensor.offset % MEMORY_ALIGNMENT for tensor in header.tensors.values()):
        alignment = meta.get("general.alignment", MEMORY_ALIGNMENT)
        yield f"general.alignment is {alignment}, tensors begin between {MEMORY_ALIGNMENT} bytes"
    for tensor in header.tensors.values():
        yield from _tensor(tensor, known)


def _hyperparameters(meta: dict[str, Any]) -> Iterator[str]:
    arch = meta[ARCHITECTURE]
    known = any(card.gguf_arch == arch for card in models.cards())
    values = {
        key.removeprefix(f"{arch}."): value
        for key, value in meta.items()
        if key.startswith(f"{arch}.")
    }
    for name in REQUIRED if known else ("block_count",):
        if name not in values:
            yield f"{arch}.{name} is missing"
    for name, value in values.items():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, float) and not math.isfinite(item):
                yield f"{arch}.{name} is {item}"
        if name in (HYPERPARAMETERS if known else EVERY_ARCHITECTURE):
            items = value if isinstance(value, list) and name in PER_LAYER else [value]
            for problem in filter(None, map(HYPERPARAMETERS[name].problem, items)):
                yield f"{arch}.{name} is {_short(value)}, {problem}"
    scaling = values.get("rope.scaling.type", "none")
    if scaling not in ROPE_SCALINGS:
        yield f"{arch}.rope.scaling.type is {_short(scaling)}, not {', '.join(ROPE_SCALINGS)}"
    yield from (f"{arch}.{problem}" for problem in _relations(values, known))


def _relations(values: dict[str, Any], known: bool) -> Iterator[str]:
    """Values that contradict each other."""

    def number(name: str) -> int:
        value = values.get(name)
        return value if type(value) is int else 0

    layers, experts, used = map(number, ("block_count", "expert_count", "expert_used_count"))
    if not 0 <= used <= experts or (experts and not used):
        yield f"expert_used_count is {used} of {experts} experts"
    for name in PER_LAYER:
        if isinstance(values.get(name), list) and len(values[name]) < layers:
            yield f"{name} has {len(values[name])} values for {layers} layers"
    if not known:
        return
    heads, kv_heads = number("attention.head_count"), number("attention.head_count_kv")
    if kv_heads and heads % kv_heads:
        yield f"attention.head_count_kv is {kv_heads}, {heads} heads do not divide by it"
    if number("rope.dimension_count") % 2:
        yield f"rope.dimension_count is {values['rope.dimension_count']}, an even number is needed"


def _vocabulary(meta: dict[str, Any]) -> Iterator[str]:
    model = meta.get("tokenizer.ggml.model")
    if model in (None, "none", "no_vocab"):
        return
    tokens = meta.get("tokenizer.ggml.tokens")
    if not _list_of(tokens, str) or not tokens:
        yield "tokenizer.ggml.tokens is no list of texts"
        return
    texts = {text or f"[EMPTY_{i}]" for i, text in enumerate(tokens)}  # llama.cpp's name of it
    if len(texts) < len(tokens):
        ((text, _),) = collections.Counter(tokens).most_common(1)
        yield f"tokenizer.ggml.tokens has {_short(text)} twice"
    for name, item_type in (("scores", float), ("token_type", int)):
        values = meta.get(f"tokenizer.ggml.{name}")
        if values is not None and not (_list_of(values, item_type) and len(values) == len(tokens)):
            kind = "numbers" if item_type is float else "whole numbers"
            yield f"tokenizer.ggml.{name} is no list of {len(tokens)} {kind}"
    merges = meta.get("tokenizer.ggml.merges", [] if model != "gpt2" else None)
    if not (merges == [] or _list_of(merges, str)):
        yield "tokenizer.ggml.merges is no list of texts"
    for key, value in meta.items():
        if not (key.startswith("tokenizer.ggml.") and key.endswith("_token_id")):
            continue
        if type(value) is not int or not (0 <= value < len(tokens) or value in NO_TOKENS):
            yield f"{key} is {_short(value)}, the vocabulary has {len(tokens)} tokens"


def _tensor(tensor: Tensor, known: bool) -> Iterator[str]:
    """`known`: the architecture has a card, so all its tensors are weights of these two kinds."""
    name, stored = _short(tensor.name), tensor.type.name
    if known and stored in UNCOMPUTED_TYPES:
        yield f"tensor {name} is stored as {stored}, which llama.cpp does not multiply by"
    elif known and len(tensor.shape) == 1 and stored != "F32":
        yield f"tensor {name} is a vector stored as {stored}, F32 is needed"
    if not tensor.count:
        yield f"tensor {name} is empty"


def _list_of(values: Any, item_type: type) -> bool:
    """Whether all are of the type itself: Python's True is an int, too."""
    return isinstance(values, list) and set(map(type, values)) <= {item_type}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"
