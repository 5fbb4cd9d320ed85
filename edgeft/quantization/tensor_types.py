"""Quantization and tensor shapes -> the GGML type of every tensor, as llama-quantize chooses it.

    types = choose_tensor_types("q4_k_m", {"blk.0.attn_v.weight": (256, 2048), ...}, arch="llama", ...)

Shapes are numpy's, (rows, columns), the reverse of the GGUF header. A type depends on the
quantization, the model and the tensor's position in it. The rules are llama.cpp's
(src/llama-quant.cpp: `llama_tensor_get_type` and its helpers), without those for the architecture
glm5-next. The tests compare the types with llama-quantize's own.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgeft.errors import FormatError, did_you_mean
from edgeft.models import Card

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

FILE_TYPE = {
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "q2_k": 10,
    "q3_k_s": 11, "q3_k_m": 12, "q3_k_l": 13, "q4_k_s": 14, "q4_k_m": 15, "q5_k_s": 16,
    "q5_k_m": 17, "q6_k": 18, "q2_k_s": 21, "iq3_xs": 22, "iq3_xxs": 23, "iq4_nl": 25,
    "iq3_s": 26, "iq3_m": 27, "iq4_xs": 30, "bf16": 32,
}  # fmt: skip
"""quantization -> `general.file_type` (llama.h: `enum llama_ftype`)"""

NEEDS_IMATRIX = frozenset({"iq3_xs", "iq3_xxs", "q2_k_s"})
"""quantizations refused without an importance matrix; `needs_importance` decides for one tensor,
because rows of other widths than multiples of 256 fall back to types that need none"""

TENSOR_TYPES = (
    "f32", "f16", "bf16", "q8_0", "q6_k", "q5_k", "q5_1", "q5_0", "q4_k", "iq4_nl", "iq4_xs",
    "q4_1", "q4_0", "mxfp4", "nvfp4", "q3_k", "iq3_s", "iq3_xxs", "q2_k", "iq2_s", "iq2_xs",
    "iq2_xxs", "tq2_0", "tq1_0", "iq1_m", "iq1_s",
)  # fmt: skip
"""types allowed in an override: ggml writes them and gguf reads them"""

# Type -> the type for rows whose width is no multiple of its block (`tensor_type_fallback`).
_FALLBACK_TYPES = {
    "IQ1_S": "IQ4_NL", "IQ1_M": "IQ4_NL", "IQ2_XXS": "IQ4_NL", "IQ2_XS": "IQ4_NL",
    "IQ2_S": "IQ4_NL", "IQ3_XXS": "IQ4_NL", "IQ3_S": "IQ4_NL", "IQ4_XS": "IQ4_NL",
    "Q2_K": "Q4_0", "Q3_K": "Q4_0", "TQ1_0": "Q4_0", "TQ2_0": "Q4_0",
    "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0",
}  # fmt: skip

# Choices that do not depend on the layer: role -> quantization -> type.
_LAYER_INDEPENDENT_TYPES = {
    "token_embd": {"iq3_xxs": "IQ3_S"},
    "attn_q": {"iq3_xs": "IQ3_XXS", "iq3_xxs": "IQ2_S"},
    "attn_k": {"iq3_xs": "IQ3_XXS", "iq3_xxs": "IQ2_S"},
    "attn_output": {
        "q2_k": "Q3_K", "iq3_xxs": "IQ3_S", "q3_k_m": "Q4_K", "q3_k_l": "Q5_K", "iq3_m": "Q4_K",
    },
}  # fmt: skip

_EIGHT_EXPERTS_Q5_K_QUANTS = {
    "q2_k", "q3_k_s", "q3_k_m", "q4_k_s", "q4_k_m", "iq3_xs", "iq3_xxs", "iq3_s", "iq3_m",
    "iq4_nl", "iq4_xs",
}  # fmt: skip
"""quantizations where attn_output of a model with eight experts is Q5_K"""


def choose_tensor_types(
    quant: str,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    arch: str,
    layers: int,
    heads: int,
    kv_heads: int,
    experts: int,
    imatrix: bool = False,
    overrides: Sequence[tuple[str, str]] = (),
) -> dict[str, GGMLQuantizationType]:
    """GGUF name -> type, in llama-quantize's order. FormatError for an unknown or impossible type.

    `shapes`: all tensors of the model, in any order. Some choices depend on the number and the order
    of the tensors of a role; a model without output.weight is tied.
    `layers`: block_count of the header. `heads`, `kv_heads`: of the first layer. `experts`: 0 for a
    dense model.
    `imatrix`: whether an importance matrix exists, which changes some choices.
    `overrides`: llama-quantize's `--tensor-type`, pairs of a regular expression, searched in the
    lower-case name, and one of TENSOR_TYPES. The first match replaces the rules. Unquantized tensors
    and the quantizations f32, f16 and bf16 ignore overrides.

    Tensors that llama-quantize copies are F32 here.
    """
    from gguf import GGML_QUANT_SIZES
    from gguf import GGMLQuantizationType as T

    def block_size(type_name: str) -> int:
        return int(GGML_QUANT_SIZES[T[type_name]][0])

    if quant not in FILE_TYPE:
        raise FormatError(f"no rules for {quant!r}", did_you_mean(quant, FILE_TYPE))
    patterns = [_override(pattern, type_name) for pattern, type_name in overrides]
    order = sorted(shapes, key=lambda name: (_layer(name), name))
    roles = {name: _role(name) for name in order}
    model = _Model(
        quant=quant,
        default=_default_type(quant),
        arch=arch,
        layers=layers,
        grouped_kv=kv_heads > 0 and heads // kv_heads >= 4,
        experts=experts,
        attn_v_count=list(roles.values()).count("attn_v"),
        imatrix=imatrix,
        is_70b=_is_70b(arch, layers, heads, kv_heads),
    )
    head_roles = {"output"} if "output" in roles.values() else {"token_embd"}
    types = dict.fromkeys(order, T.F32)
    role_counts: Counter[str] = Counter()
    for name in order:
        if not _is_quantizable(name, shapes[name]):
            continue
        if block_size(model.default) == 1:
            types[name] = T[model.default]
            continue
        columns, role = shapes[name][-1], roles[name]
        override = next((entry for pattern, entry in patterns if pattern.search(name)), None)
        if override is not None:
            type_name = override
        elif role in head_roles:
            type_name = model.output(fits=columns % block_size(model.default) == 0)
        else:
            nth = role_counts[role]
            role_counts[role] += 1
            # Mixtral's experts were separate tensors, so llama.cpp reads the layer from the name.
            layer_from_name = experts > 1 and role.startswith("ffn")
            type_name = model.preferred(role, _layer(name) if layer_from_name else nth)
        if columns % block_size(type_name):
            if type_name not in _FALLBACK_TYPES and block_size(type_name) > 32:
                raise FormatError(
                    f"{name}: {type_name} needs a multiple of {block_size(type_name)} columns"
                )
            type_name = _FALLBACK_TYPES.get(type_name, type_name)
        types[name] = T[type_name] if columns % block_size(type_name) == 0 else T.F16
        if not imatrix and needs_importance(quant, name, types[name]):
            raise FormatError(
                f"{quant} needs an importance matrix: {name} becomes {types[name].name}",
                "--imatrix auto",
            )
    return types


def overridden(names: Iterable[str], overrides: Sequence[tuple[str, str]]) -> set[str]:
    """The names that a pattern of `overrides` matches, as `choose_tensor_types` does."""
    patterns = [_override(pattern, type_name)[0] for pattern, type_name in overrides]
    return {name for name in names if any(pattern.search(name) for pattern in patterns)}


def model_facts(card: Card, config: dict[str, Any]) -> dict[str, int]:
    """layers, heads, kv_heads and experts for `choose_tensor_types`, as a GGUF header has them."""

    def number(key: str, otherwise: int) -> int:
        source = card.hparams.get(key)
        value = card.constants.get(key) or (source and card.value(config, source))
        return otherwise if value is None else int(value)

    heads = number("attention.head_count", 0)
    return {
        "layers": number("block_count", 0),
        "heads": heads,
        "kv_heads": number("attention.head_count_kv", heads),
        "experts": number("expert_count", 0),
    }


def needs_importance(quant: str, name: str, qtype: GGMLQuantizationType) -> bool:
    """Whether the tensor must have a row in the importance matrix (`tensor_requires_imatrix`)."""
    if qtype.name in ("IQ1_S", "IQ2_XS", "IQ2_XXS"):
        return True  # the kernel needs it
    if _role(name) in ("token_embd", "output"):
        return False
    low = ("IQ1_M", "IQ2_S", "IQ3_XXS")
    return qtype.name in low or (qtype.name == "Q2_K" and quant == "q2_k_s")


@dataclass(frozen=True)
class _Model:
    """The facts that the rules depend on."""

    quant: str
    default: str
    """the type of most tensors"""
    arch: str
    layers: int
    grouped_kv: bool
    """whether four or more heads share a key and value; more bits for attn_v then cost little"""
    experts: int
    attn_v_count: int
    """tensors of the role attn_v"""
    imatrix: bool
    is_70b: bool

    def preferred(self, role: str, nth: int) -> str:
        """The type of the `nth` tensor of a role, without regard to the width of its rows."""
        if role == "attn_v":
            return self._attn_v(nth)
        if role == "ffn_down":
            return self._ffn_down(nth)
        if role in ("ffn_gate", "ffn_up"):
            middle = self.layers // 8 <= nth < 7 * self.layers // 8
            return "IQ3_XXS" if self.quant == "iq3_xs" and middle else self.default
        if role == "attn_k" and self.experts == 8:
            return "Q8_0"
        if role == "attn_output" and self.arch == "falcon":
            return "Q4_K" if self.quant == "q3_k_l" else self.default
        if role == "attn_output" and self.experts == 8:
            return "Q5_K" if self.quant in _EIGHT_EXPERTS_Q5_K_QUANTS else self.default
        return _LAYER_INDEPENDENT_TYPES.get(role, {}).get(self.quant, self.default)

    def output(self, fits: bool) -> str:
        """The type of the output matrix, or of the embedding of a tied model.

        `fits`: whether the default type's block divides the width of the rows.
        """
        if self.arch == "falcon" or self.default == "Q8_0" or not fits:
            return "Q8_0"
        return "Q5_K" if self.quant == "iq3_xxs" else "Q6_K"

    def _attn_v(self, nth: int) -> str:
        if self.experts == 8:
            return "Q8_0"
        type_name = self.default
        match self.quant:
            case "q2_k":
                type_name = "Q4_K" if self.grouped_kv else "Q3_K"
            case "q2_k_s" | "iq3_xxs" | "iq3_xs" | "iq3_s" if self.grouped_kv:
                type_name = "Q4_K"
            case "iq3_xxs" if not self.imatrix:
                type_name = "IQ3_S"
            case "iq3_m":
                type_name = "Q4_K"
            case "q3_k_m":
                type_name = "Q5_K" if nth < 2 else "Q4_K"
            case "q3_k_l":
                type_name = "Q5_K"
            case "iq4_nl" | "iq4_xs" if self.grouped_kv:
                type_name = "Q5_K"
            case "q4_k_m" | "q5_k_m" if _more_bits(nth, self.attn_v_count):
                type_name = "Q6_K"
            case "q4_k_s" if nth < 4:
                type_name = "Q5_K"
        return "Q5_K" if self.is_70b and type_name in ("Q3_K", "Q4_K") else type_name

    def _ffn_down(self, nth: int) -> str:
        early, more_bits = nth < self.layers // 8, _more_bits(nth, self.layers)
        falcon = self.arch == "falcon"
        match self.quant:
            case "q2_k":
                return "Q3_K"
            case "q2_k_s" if early:
                return "Q4_K"
            case "iq3_xxs" if not self.imatrix:
                return "Q4_K" if early else "Q3_K"
            case "iq3_m" if early or (self.experts == 8 and more_bits):
                return "Q4_K"
            case "q3_k_m" if nth < self.layers // 16:
                return "Q5_K"
            case "q3_k_m" if more_bits or not falcon:
                return "Q4_K"
            case "q3_k_l":
                return "Q4_K" if falcon else "Q5_K"
            case "q4_k_m" if falcon and nth >= self.layers // 16:
                return "Q5_K" if more_bits else self.default
            case "q4_k_m" | "q5_k_m" if more_bits:
                return "Q6_K"
            case "q4_k_s" if early and not falcon:
                return "Q5_K"
            case "iq4_nl" | "iq4_xs" if early and not self.imatrix:
                return "Q5_K"
            case "q4_0" if early and self.imatrix:
                return "Q4_1"
            case "q5_0" if early and self.imatrix:
                return "Q5_1"
        return self.default


def _default_type(quant: str) -> str:
    if quant in ("iq3_xs", "iq3_m"):
        return "IQ3_S"
    return re.sub(r"_K_[SML]$", "_K", quant.upper())


def _override(pattern: str, type_name: str) -> tuple[re.Pattern[str], str]:
    if type_name.lower() not in TENSOR_TYPES:
        raise FormatError(f"no tensor type {type_name!r}", did_you_mean(type_name, TENSOR_TYPES))
    try:
        return re.compile(pattern.lower(), re.ASCII), type_name.upper()
    except re.error as error:
        raise FormatError(
            f"{pattern!r} is not a regular expression: {error}", "\\. stands for a dot"
        ) from None


def _more_bits(nth: int, count: int) -> bool:
    """Whether the `nth` tensor is in the first or last eighth, or is a third one between them."""
    first, last = count // 8, 7 * count // 8
    return nth < first or nth >= last or (nth - first) % 3 == 2


def _is_70b(arch: str, layers: int, heads: int, kv_heads: int) -> bool:
    """Whether the model is LLM_TYPE_70B in llama.cpp (src/models/*.cpp: `load_arch_hparams`)."""
    if arch in ("llama", "llama-embed"):
        return layers == 80 and heads != kv_heads
    return (arch, layers) in {("qwen2", 80), ("deci", 80), ("olmo", 80), ("jais2", 68)}


def _layer(name: str) -> int:
    match = re.match(r"blk\.(\d+)", name)
    return int(match[1]) if match else -1


def _role(name: str) -> str:
    if name == "output.weight":
        return "output"
    if name in ("token_embd.weight", "per_layer_token_embd.weight"):
        return "token_embd"
    if re.search(r"attn_(v|qkv|kv_b)\.weight", name):
        return "attn_v"
    match = re.search(r"(attn_k|attn_q|attn_output)\.weight|(ffn_up|ffn_gate|ffn_down)", name)
    return (match[1] or match[2]) if match else ""


# src/llama-quant.cpp: `tensor_allows_quantization`
_UNQUANTIZED_NAMES = re.compile(
    r"_norm\.weight|ffn_gate_inp\.weight|ffn_gate_tid2eid\.weight|altup|laurel"
    r"|per_layer_model_proj|^position_embd\.weight$|^token_types\.weight$|ssm_conv1d"
    r"|shortconv\.conv\.weight|indexer\.[kq]_proj\.weight|attn_rel_b\.weight"
    r"|time_mix_(first|w[012]|v[012]|a[012]|g[12]|decay_w[12]|lerp_fused)\.weight"
    r"|\.position_embd|sam\.(pos_embd|neck\.|net_)|\.rel_pos|\.patch_(embd|merger)"
    r"|a\.rvq\.codebook|mm\.a\.code_embd"
)


def _is_quantizable(name: str, shape: tuple[int, ...]) -> bool:
    """Whether it is a matrix of weights, and none of the small or sensitive ones."""
    return (
        math.prod(shape[:-1]) > 1
        and name.endswith("weight")
        and not _UNQUANTIZED_NAMES.search(name)
    )
