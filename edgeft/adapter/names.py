"""Names of an adapter's tensors, as programs write them -> the names that peft writes.

    names = peft_names(["_orig_mod.base_model.model.model.norm.lora_A.default.weight"])
    fitted = fit_names(names.values(), card, Checkpoint(base))

Wrappers leave their name in the keys (torch.compile, FSDP, activation checkpoints, DDP), some programs
leave peft's prefix out or write it twice, and some keep the adapter's name. What is between
is the module's name, which the base decides.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable

from edgeft import models
from edgeft.errors import AdapterError
from edgeft.models.weight_names import HEADS as HEAD_NAMES
from edgeft.models.weight_names import WRAPPERS
from edgeft.weights.checkpoint import Checkpoint

PREFIX = "base_model.model."
"""before the names of modules in an adapter's file"""
_WRAPPERS = WRAPPERS | {"_ddp_module"}
OUTER = ("module.", "state_dict.", "llm.")
"""before the names of a whole model"""
HEADS = re.compile(rf"(^|\.)({'|'.join(sorted(HEAD_NAMES))})\.")
"""heads that say how good a text is, and generate none"""
OTHER_SENSES = re.compile(
    r"(^|\.)(vision_tower|vision_model|visual|vision_embed_tokens|multi_modal_projector|"
    r"audio_tower|mm_projector|image_newline|embed_vision|embed_audio)\."
)
"""parts of a model that reads images or sounds"""
ROLES = {
    role: re.compile(rf"(?P<module>.+?)\.{rest}")
    for role, rest in {
        "A": r"lora_A(\.weight)?",
        "B": r"lora_B(\.weight)?",
        "E": r"lora_E",
        "bias": r"lora_B\.bias",
        "embedding_A": r"lora_embedding_A",
        "embedding_B": r"lora_embedding_B",
        "magnitude": r"lora_magnitude_vector(\.weight)?",
        "tokens": r"(?:token_adapter\.)?trainable_tokens_delta",
        "": r"(?:(?:token_adapter\.)?trainable_tokens_original|ranknum)",
        "ia3_l": r"ia3_l",
        **{name: name for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")},
        **{name: name for name in ("lokr_w1", "lokr_w1_a", "lokr_w1_b",
                                   "lokr_w2", "lokr_w2_a", "lokr_w2_b")},
        "saved": r"(?:modules_to_save|ln_tuning_layers)\.(?P<leaf>weight|bias)",
        "base": r"(?:base_layer|original_module|token_adapter\.base_layer)\.(?P<leaf>weight|bias)",
    }.items()
}  # fmt: skip
"""role of a tensor -> the name that peft saves it under; "" is not needed"""
_NAMED = re.compile(
    r"\.(lora_[ABE]|lora_embedding_[AB]|lora_magnitude_vector|ia3_l|hada_\w+|lokr_\w+|ranknum|"
    r"ln_tuning_layers|modules_to_save|trainable_tokens_(?:delta|original))"
    r"\.(?P<adapter>[^.]+)(?=\.(?:weight|bias)$|$)"
)
"""a tensor that keeps the adapter's name"""


@functools.lru_cache(1 << 18)
def role_of(name: str) -> tuple[str, re.Match[str] | None]:
    """Key of ROLES and the match; ("", None) for a name that is none of peft's."""
    matches = ((role, pattern.fullmatch(name)) for role, pattern in ROLES.items())
    return next(((role, match) for role, match in matches if match), ("", None))


def module_of(name: str) -> str:
    """The module that a tensor belongs to; its name is without PREFIX."""
    _, match = role_of(name)
    return match["module"] if match else name.rpartition(".")[0]


def peft_names(names: Iterable[str]) -> dict[str, str]:
    """Name in the file -> the same without wrappers, with one PREFIX and without the adapter's name.

    AdapterError where the file holds several adapters, or two tensors get one name.
    """
    plain = {name: _unwrapped(name) for name in names}
    matches = (_NAMED.search(name) for name in plain.values())
    adapters = {m["adapter"] for m in matches if m} - {"weight", "bias"}
    if len(adapters) > 1:
        raise AdapterError(
            f"the file holds several adapters: {', '.join(sorted(adapters)[:5])}",
            "save each in a folder of its own: model.save_pretrained(FOLDER)",
        )
    for adapter in adapters:
        part = re.compile(
            rf"{_NAMED.pattern.partition('(?P<adapter>')[0]}{re.escape(adapter)}(?=\.|$)"
        )
        plain = {name: part.sub(r".\1", text) for name, text in plain.items()}
    if len(set(plain.values())) < len(plain):
        raise AdapterError("two tensors of the file are of the same module")
    return plain


def _unwrapped(name: str) -> str:
    name = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
    name = name.rpartition(PREFIX)[2]
    while name.startswith(OUTER):
        name = name.partition(".")[2]
    return PREFIX + name


def fit_names(names: Iterable[str], card: models.Card, weights: Checkpoint) -> dict[str, str]:
    """Name (with PREFIX) -> the same with the outer name that modules have in transformers.

    Names of modules of the base stay. The others stay where no outer name, or more than one, makes
    modules of the base of all of them.
    """
    names = [name.removeprefix(PREFIX) for name in names]
    known = _modules(card, weights)

    def fits(name: str) -> bool:
        module = module_of(name).replace(".base_layer", "")
        return module in known or card.in_checkpoint(module) in known

    strange = [name for name in names if not fits(name)]
    renamed = {tuple(map(outer, strange)) for outer in _OUTER_NAMES} - {()}
    fitting = [
        candidate
        for candidate in renamed
        if all(map(fits, candidate)) and not set(candidate) & set(names)
    ]
    new = dict(zip(strange, fitting[0], strict=True)) if len(fitting) == 1 else {}
    return {PREFIX + name: PREFIX + new.get(name, name) for name in names}


def _modules(card: models.Card, weights: Checkpoint) -> set[str]:
    """Names of modules in the checkpoint, and of the output layer, which may be tied."""
    output = card.hf_name("output.weight") or ""
    modules = {output.rpartition(".")[0]} - {""}
    for name in weights.tensors:
        while "." in name:
            name = name.rpartition(".")[0]
            modules.add(name)
    return modules


def _without_language_model(name: str) -> str:
    return re.sub(r"(^|\.)(language_model|text_model)\.", r"\1", name)


_OUTER_NAMES: tuple[Callable[[str], str], ...] = (
    lambda name: f"model.{name}",
    lambda name: name.removeprefix("model."),
    _without_language_model,
    lambda name: f"model.{_without_language_model(name)}",
    lambda name: _without_language_model(name).removeprefix("model."),
    lambda name: f"language_model.{name}",
    lambda name: re.sub(r"^model\.", "model.language_model.", name),
    lambda name: f"transformer.{name}",
    lambda name: name.removeprefix("transformer."),
    lambda name: f"gpt_neox.{name}",
)
"""what other programs, and other classes of transformers, write before a module's name"""
