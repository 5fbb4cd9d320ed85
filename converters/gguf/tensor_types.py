"""llama-quantize's choice of a type for each tensor of a model.

    types = choose_tensor_types("q4_k_m", {"blk.0.attn_v.weight": (256, 2048), ...}, arch="llama", ...)

In: the names and shapes of all tensors (numpy's shapes: (rows, columns), the reverse of the GGUF
header). Out: the type that `llama-quantize` gives to each, which is a property of the
quantization, the model and the place of a tensor in it; the tests hold it against llama-quantize
itself. The rules are llama.cpp's (src/llama-quant.cpp: `llama_tensor_get_type` and its helpers),
without those for the architecture glm5-next.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgeft.errors import FormatError, did_you_mean

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
"""quantizations refused without an importance matrix; `needs_importance` tells for one tensor,
because rows that are no multiple of 256 wide fall back to types that need none"""

TENSOR_TYPES = (
    "f32", "f16", "bf16", "q8_0", "q6_k", "q5_k", "q5_1", "q5_0", "q4_k", "iq4_nl", "iq4_xs",
    "q4_1", "q4_0", "mxfp4", "nvfp4", "q3_k", "iq3_s", "iq3_xxs", "q2_k", "iq2_s", "iq2_xs",
    "iq2_xxs", "tq2_0", "tq1_0", "iq1_m", "iq1_s",
)  # fmt: skip
"""what an override may ask for: the types that ggml writes and gguf reads back"""

# For rows that the type's block does not divide (`tensor_type_fallback`).
_SMALLER_BLOCK = {
    "IQ1_S": "IQ4_NL", "IQ1_M": "IQ4_NL", "IQ2_XXS": "IQ4_NL", "IQ2_XS": "IQ4_NL",
    "IQ2_S": "IQ4_NL", "IQ3_XXS": "IQ4_NL", "IQ3_S": "IQ4_NL", "IQ4_XS": "IQ4_NL",
    "Q2_K": "Q4_0", "Q3_K": "Q4_0", "TQ1_0": "Q4_0", "TQ2_0": "Q4_0",
    "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0",
}  # fmt: skip

# The choices that are the same in every layer: role -> quantization -> type.
_IN_EVERY_LAYER = {
    "token_embd": {"iq3_xxs": "IQ3_S"},
    "attn_q": {"iq3_xs": "IQ3_XXS", "iq3_xxs": "IQ2_S"},
    "attn_k": {"iq3_xs": "IQ3_XXS", "iq3_xxs": "IQ2_S"},
    "attn_output": {
        "q2_k": "Q3_K", "iq3_xxs": "IQ3_S", "q3_k_m": "Q4_K", "q3_k_l": "Q5_K", "iq3_m": "Q4_K",
    },
}  # fmt: skip

_EIGHT_EXPERTS_OUTPUT = {
    "q2_k", "q3_k_s", "q3_k_m", "q4_k_s", "q4_k_m", "iq3_xs", "iq3_xxs", "iq3_s", "iq3_m",
    "iq4_nl", "iq4_xs",
}  # fmt: skip
"""where attn_output of a model with eight experts becomes Q5_K"""


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
    """The type of every tensor of a model, by GGUF name, in the order llama-quantize takes them.

    `shapes` is the whole model, in any order: some choices hang on the number and the order of
    the tensors of a kind (which is the layer number only if every layer has one), and a model
    without output.weight is tied. `layers` is the header's block_count; `heads` and `kv_heads`
    are those of the first layer; `experts` is 0 for a dense model. What llama-quantize leaves as
    it is, here stays F32.

    `imatrix` says that there is an importance matrix, which changes some choices. `overrides` are
    llama-quantize's `--tensor-type`: pairs of a regular expression, in lower case and found
    anywhere in a name, and one of TENSOR_TYPES; the first that matches a tensor replaces the
    rules for it. Tensors that stay F32 and the quantizations f32, f16 and bf16 ignore them.
    """
    from gguf import GGML_QUANT_SIZES
    from gguf import GGMLQuantizationType as T

    def block(kind: str) -> int:
        return int(GGML_QUANT_SIZES[T[kind]][0])

    if quant not in FILE_TYPE:
        raise FormatError(f"no rules for {quant!r}", did_you_mean(quant, FILE_TYPE))
    patterns = [_override(pattern, kind) for pattern, kind in overrides]
    order = sorted(shapes, key=lambda name: (_layer(name), name))
    roles = {name: _role(name) for name in order}
    model = _Model(
        quant=quant,
        base=_base(quant),
        arch=arch,
        layers=layers,
        shared=kv_heads > 0 and heads // kv_heads >= 4,
        experts=experts,
        values=list(roles.values()).count("attn_v"),
        imatrix=imatrix,
        is_70b=_is_70b(arch, layers, heads, kv_heads),
    )
    head = {"output"} if "output" in roles.values() else {"token_embd"}
    types = dict.fromkeys(order, T.F32)
    seen: Counter[str] = Counter()
    for name in order:
        if not _may_quantize(name, shapes[name]):
            continue
        if block(model.base) == 1:
            types[name] = T[model.base]
            continue
        columns, role = shapes[name][-1], roles[name]
        wanted = next((kind for pattern, kind in patterns if pattern.search(name)), None)
        if wanted is None and role in head:
            wanted = model.output(fits=columns % block(model.base) == 0)
        elif wanted is None:
            nth = seen[role]
            seen[role] += 1
            # Mixtral's experts came as tensors of their own, so there the name tells the layer.
            by_name = experts > 1 and role.startswith("ffn")
            wanted = model.preferred(role, _layer(name) if by_name else nth)
        if columns % block(wanted):
            if wanted not in _SMALLER_BLOCK and block(wanted) > 32:
                raise FormatError(f"{name}: {wanted} needs a multiple of {block(wanted)} columns")
            wanted = _SMALLER_BLOCK.get(wanted, wanted)
        types[name] = T[wanted] if columns % block(wanted) == 0 else T.F16
        if not imatrix and needs_importance(quant, name, types[name]):
            raise FormatError(
                f"{quant} needs an importance matrix: {name} becomes {types[name].name}",
                "--imatrix auto",
            )
    return types


def needs_importance(quant: str, name: str, qtype: GGMLQuantizationType) -> bool:
    """Whether the tensor must have a row in the importance matrix (`tensor_requires_imatrix`)."""
    if qtype.name in ("IQ1_S", "IQ2_XS", "IQ2_XXS"):
        return True  # the kernel itself does
    if _role(name) in ("token_embd", "output"):
        return False
    low = ("IQ1_M", "IQ2_S", "IQ3_XXS")
    return qtype.name in low or (qtype.name == "Q2_K" and quant == "q2_k_s")


@dataclass(frozen=True)
class _Model:
    """What the rules look at."""

    quant: str
    base: str
    """the type of most tensors"""
    arch: str
    layers: int
    shared: bool
    """four or more heads share one key and value, so that more bits for them cost little"""
    experts: int
    values: int
    """tensors of the role attn_v"""
    imatrix: bool
    is_70b: bool

    def preferred(self, role: str, nth: int) -> str:
        """The type for the `nth` tensor of a role, before the width has its say."""
        if role == "attn_v":
            return self._attn_v(nth)
        if role == "ffn_down":
            return self._ffn_down(nth)
        if role in ("ffn_gate", "ffn_up"):
            middle = self.layers // 8 <= nth < 7 * self.layers // 8
            return "IQ3_XXS" if self.quant == "iq3_xs" and middle else self.base
        if role == "attn_k" and self.experts == 8:
            return "Q8_0"
        if role == "attn_output" and self.arch == "falcon":
            return "Q4_K" if self.quant == "q3_k_l" else self.base
        if role == "attn_output" and self.experts == 8:
            return "Q5_K" if self.quant in _EIGHT_EXPERTS_OUTPUT else self.base
        return _IN_EVERY_LAYER.get(role, {}).get(self.quant, self.base)

    def output(self, fits: bool) -> str:
        """The type of the output matrix, which in a tied model is the embedding."""
        if self.arch == "falcon" or self.base == "Q8_0" or not fits:
            return "Q8_0"
        return "Q5_K" if self.quant == "iq3_xxs" else "Q6_K"

    def _attn_v(self, nth: int) -> str:
        if self.experts == 8:
            return "Q8_0"
        kind = self.base
        match self.quant:
            case "q2_k":
                kind = "Q4_K" if self.shared else "Q3_K"
            case "q2_k_s" | "iq3_xxs" | "iq3_xs" | "iq3_s" if self.shared:
                kind = "Q4_K"
            case "iq3_xxs" if not self.imatrix:
                kind = "IQ3_S"
            case "iq3_m":
                kind = "Q4_K"
            case "q3_k_m":
                kind = "Q5_K" if nth < 2 else "Q4_K"
            case "q3_k_l":
                kind = "Q5_K"
            case "iq4_nl" | "iq4_xs" if self.shared:
                kind = "Q5_K"
            case "q4_k_m" | "q5_k_m" if _more_bits(nth, self.values):
                kind = "Q6_K"
            case "q4_k_s" if nth < 4:
                kind = "Q5_K"
        return "Q5_K" if self.is_70b and kind in ("Q3_K", "Q4_K") else kind

    def _ffn_down(self, nth: int) -> str:
        early, more = nth < self.layers // 8, _more_bits(nth, self.layers)
        falcon = self.arch == "falcon"
        match self.quant:
            case "q2_k":
                return "Q3_K"
            case "q2_k_s" if early:
                return "Q4_K"
            case "iq3_xxs" if not self.imatrix:
                return "Q4_K" if early else "Q3_K"
            case "iq3_m" if early or (self.experts == 8 and more):
                return "Q4_K"
            case "q3_k_m" if nth < self.layers // 16:
                return "Q5_K"
            case "q3_k_m" if more or not falcon:
                return "Q4_K"
            case "q3_k_l":
                return "Q4_K" if falcon else "Q5_K"
            case "q4_k_m" if falcon and nth >= self.layers // 16:
                return "Q5_K" if more else self.base
            case "q4_k_m" | "q5_k_m" if more:
                return "Q6_K"
            case "q4_k_s" if early and not falcon:
                return "Q5_K"
            case "iq4_nl" | "iq4_xs" if early and not self.imatrix:
                return "Q5_K"
            case "q4_0" if early and self.imatrix:
                return "Q4_1"
            case "q5_0" if early and self.imatrix:
                return "Q5_1"
        return self.base


def _base(quant: str) -> str:
    if quant in ("iq3_xs", "iq3_m"):
        return "IQ3_S"
    return re.sub(r"_K_[SML]$", "_K", quant.upper())


def _override(pattern: str, kind: str) -> tuple[re.Pattern[str], str]:
    if kind.lower() not in TENSOR_TYPES:
        raise FormatError(f"no tensor type {kind!r}", did_you_mean(kind, TENSOR_TYPES))
    try:
        return re.compile(pattern.lower(), re.ASCII), kind.upper()
    except re.error as error:
        raise FormatError(
            f"{pattern!r} is not a regular expression: {error}", "\\. stands for a dot"
        ) from None


def _more_bits(nth: int, count: int) -> bool:
    """The first and the last eighth, and every third between them."""
    first, last = count // 8, 7 * count // 8
    return nth < first or nth >= last or (nth - first) % 3 == 2


def _is_70b(arch: str, layers: int, heads: int, kv_heads: int) -> bool:
    """Whether llama.cpp calls it LLM_TYPE_70B (src/models/*.cpp: `load_arch_hparams`)."""
    if arch in ("llama", "llama-embed"):
        return layers == 80 and heads != kv_heads
    return (arch, layers) in {("qwen2", 80), ("deci", 80), ("olmo", 80), ("jais2", 68)}


def _layer(name: str) -> int:
    found = re.match(r"blk\.(\d+)", name)
    return int(found[1]) if found else -1


def _role(name: str) -> str:
    if name == "output.weight":
        return "output"
    if name in ("token_embd.weight", "per_layer_token_embd.weight"):
        return "token_embd"
    if re.search(r"attn_(v|qkv|kv_b)\.weight", name):
        return "attn_v"
    found = re.search(r"(attn_k|attn_q|attn_output)\.weight|(ffn_up|ffn_gate|ffn_down)", name)
    return (found[1] or found[2]) if found else ""


# src/llama-quant.cpp: `tensor_allows_quantization`
_KEPT = re.compile(
    r"_norm\.weight|ffn_gate_inp\.weight|ffn_gate_tid2eid\.weight|altup|laurel"
    r"|per_layer_model_proj|^position_embd\.weight$|^token_types\.weight$|ssm_conv1d"
    r"|shortconv\.conv\.weight|indexer\.[kq]_proj\.weight|attn_rel_b\.weight"
    r"|time_mix_(first|w[012]|v[012]|a[012]|g[12]|decay_w[12]|lerp_fused)\.weight"
    r"|\.position_embd|sam\.(pos_embd|neck\.|net_)|\.rel_pos|\.patch_(embd|merger)"
    r"|a\.rvq\.codebook|mm\.a\.code_embd"
)


def _may_quantize(name: str, shape: tuple[int, ...]) -> bool:
    """Matrices whose name ends in "weight", but for a list of small or touchy ones."""
    return math.prod(shape[:-1]) > 1 and name.endswith("weight") and not _KEPT.search(name)
