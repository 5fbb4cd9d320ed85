"""config.json -> the sizes of a model and the shape of every weight, without its weights.

    sizes = sizes_of(text.card, text.config)
    tensor_shapes(text.card, text.config)["model.layers.0.mlp.up_proj.weight"]     # (1536, 576)

Where a folder has its weights, their headers say the same and more exactly; this is for a config.json
alone. The names are the checkpoint's, as the card has them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgeft.errors import FormatError
from edgeft.kv_cache import CacheWidths
from edgeft.models.cards import Card
from edgeft.models.derived import DERIVED
from edgeft.models.names import fill, generalize

Shape = tuple[int, ...]

UNGATED = ("gptneox",)
"""GGUF architectures whose feed-forward layer is up, activation, down, without a gate"""
WHOLE_QK_NORMS = ("olmo2", "olmo3", "olmoe")
"""families that normalize all heads of queries and keys together, not each head"""
BIASES = {
    "attn_q": ("attention_bias", "qkv_bias"),
    "attn_k": ("attention_bias", "qkv_bias"),
    "attn_v": ("attention_bias", "qkv_bias"),
    "attn_qkv": ("attention_bias", "add_qkv_bias"),
    "attn_output": ("attention_bias",),
    "ffn_gate": ("mlp_bias",),
    "ffn_up": ("mlp_bias",),
    "ffn_down": ("mlp_bias",),
}
"""GGUF name of a linear layer -> keys of config.json, of which one says whether it has a bias"""
WITH_BIASES = {
    "qwen2": ("attn_q", "attn_k", "attn_v"),
    "qwen2_moe": ("attn_q", "attn_k", "attn_v"),
    "pythia": ("attn_qkv", "attn_output", "ffn_up", "ffn_down"),
}
"""family -> linear layers with a bias where config.json does not say it"""


@dataclass(frozen=True)
class Sizes:
    """The numbers from which all shapes follow."""

    hidden: int
    layers: int
    vocabulary: int
    heads: int
    kv_heads: int
    head_dim: int
    """of queries and keys"""
    value_dim: int
    """of a head's values"""
    ffn: int
    gated: bool
    """whether a gate multiplies the feed-forward layer's inner values"""
    experts: int = 0
    experts_used: int = 0
    """of each token"""
    expert_ffn: int = 0
    shared_ffn: int = 0
    """width of the experts that every token shares, together"""
    dense_layers: int = 0
    """layers at the beginning that have no experts"""
    kv_lora: int = 0
    """DeepSeek: width of a token's compressed keys and values; 0 elsewhere"""
    q_lora: int = 0
    rope_dim: int = 0
    """DeepSeek: dimensions of a head that are rotated"""
    tied: bool = False
    """whether the output layer is the embedding"""

    @property
    def cache_widths(self) -> CacheWidths:
        if self.kv_lora:  # values are a part of the keys
            return CacheWidths(self.layers * (self.kv_lora + self.rope_dim), 0)
        heads = self.layers * self.kv_heads
        return CacheWidths(heads * self.head_dim, heads * self.value_dim)


def sizes_of(card: Card, config: dict[str, Any]) -> Sizes:
    """The sizes of a text model (`text_model`). FormatError where config.json lacks one."""
    try:
        return _sizes(card, config)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise FormatError(
            f"config.json has not all sizes: {error!r}", "download it again"
        ) from None


def _sizes(card: Card, config: dict[str, Any]) -> Sizes:

    def value(key: str) -> int:
        """By its GGUF key, 0 where the model has none."""
        name = card.hparams.get(key)
        return int(card.value(config, name) or 0) if name else 0

    known = {k: v for k, v in {**card.defaults, **config}.items() if v is not None}
    hidden, heads = value("embedding_length"), value("attention.head_count")
    head_dim = int(known.get("kv_channels") or known.get("head_dim") or DERIVED["head_dim"](known))
    mla = value("attention.kv_lora_rank")
    if mla:
        head_dim = value("attention.key_length_mla")
    vocabulary = known.get("padded_vocab_size") or known.get("vocab_size") or 0
    experts = value("expert_count")
    expert_ffn = value("expert_feed_forward_length") or value("feed_forward_length")
    shared = value("expert_shared_feed_forward_length")
    return Sizes(
        hidden=hidden,
        layers=value("block_count"),
        vocabulary=int(vocabulary),
        heads=heads,
        kv_heads=heads if mla else value("attention.head_count_kv") or heads,
        head_dim=head_dim,
        value_dim=value("attention.value_length_mla") or head_dim,
        ffn=value("feed_forward_length"),
        gated=card.gguf_arch not in UNGATED,
        experts=experts,
        experts_used=int(known.get("num_experts_per_tok") or 0) if experts else 0,
        expert_ffn=expert_ffn if experts else 0,
        shared_ffn=shared or value("expert_shared_count") * expert_ffn,
        dense_layers=value("leading_dense_block_count"),
        kv_lora=mla,
        q_lora=int(known.get("q_lora_rank") or 0) if mla else 0,
        rope_dim=int(known.get("qk_rope_head_dim") or 0) if mla else 0,
        tied=bool(card.value(config, "tie_word_embeddings")),
    )


def tensor_shapes(card: Card, config: dict[str, Any]) -> dict[str, Shape]:
    """Name in the checkpoint -> shape, of every weight that a model of this config.json has."""
    sizes = sizes_of(card, config)
    known = {**card.defaults, **config}
    places = set(map(str, card.tensors.values()))
    shapes: dict[str, Shape] = {}
    for name, gguf in card.tensors.items():
        role = generalize(gguf if isinstance(gguf, str) else gguf[0])[0]
        part, kind = role.removeprefix("blk.{i}.").rsplit(".", 1)
        if kind == "bias" and not _has_bias(card, known, part):
            continue
        if part == "output" and sizes.tied:
            continue
        layers = range(sizes.layers) if "{i}" in name else range(1)
        for layer in layers:
            if not _in_layer(part, sizes, layer):
                continue
            shape = _SHAPES[part](sizes)
            if part in ("attn_q_norm", "attn_k_norm") and card.family in WHOLE_QK_NORMS:
                shape = (shape[0] * (sizes.heads if "_q_" in part else sizes.kv_heads),)
            if part == "ffn_up" and sizes.gated and "blk.{i}.ffn_gate.weight" not in places:
                shape = (2 * shape[0], shape[1])  # gate and up are one tensor
            for expert in range(sizes.experts) if "{e}" in name else range(1):
                shapes[fill(name, (layer, expert))] = shape[:1] if kind == "bias" else shape
    return shapes


def _has_bias(card: Card, known: dict[str, Any], part: str) -> bool:
    if part not in BIASES:
        return True  # of a norm or of a router
    said = [known[key] for key in BIASES[part] if known.get(key) is not None]
    return bool(said[0]) if said else part in WITH_BIASES.get(card.family, ())


def _in_layer(part: str, sizes: Sizes, layer: int) -> bool:
    """Whether a layer has this tensor: dense or experts, compressed queries or not."""
    if part in ("ffn_gate", "ffn_up", "ffn_down"):
        return not sizes.experts or layer < sizes.dense_layers
    if part.startswith(("ffn_gate_inp", "exp_probs_b")) or part.endswith(("_exps", "_shexp")):
        return bool(sizes.experts) and layer >= sizes.dense_layers
    if part in ("attn_q_a", "attn_q_a_norm", "attn_q_b"):
        return bool(sizes.q_lora)
    return not (part == "attn_q" and sizes.q_lora)


_SHAPES: dict[str, Callable[[Sizes], Shape]] = {
    "token_embd": lambda s: (s.vocabulary, s.hidden),
    "output": lambda s: (s.vocabulary, s.hidden),
    "output_norm": lambda s: (s.hidden,),
    "attn_norm": lambda s: (s.hidden,),
    "ffn_norm": lambda s: (s.hidden,),
    "post_attention_norm": lambda s: (s.hidden,),
    "post_ffw_norm": lambda s: (s.hidden,),
    "attn_q": lambda s: (s.heads * s.head_dim, s.hidden),
    "attn_k": lambda s: (s.kv_heads * s.head_dim, s.hidden),
    "attn_v": lambda s: (s.kv_heads * s.value_dim, s.hidden),
    "attn_qkv": lambda s: ((s.heads + 2 * s.kv_heads) * s.head_dim, s.hidden),
    "attn_output": lambda s: (s.hidden, s.heads * s.value_dim),
    "attn_q_norm": lambda s: (s.head_dim,),
    "attn_k_norm": lambda s: (s.head_dim,),
    "attn_q_a": lambda s: (s.q_lora, s.hidden),
    "attn_q_a_norm": lambda s: (s.q_lora,),
    "attn_q_b": lambda s: (s.heads * s.head_dim, s.q_lora),
    "attn_kv_a_mqa": lambda s: (s.kv_lora + s.rope_dim, s.hidden),
    "attn_kv_a_norm": lambda s: (s.kv_lora,),
    "attn_k_b": lambda s: (s.heads * (s.head_dim - s.rope_dim + s.value_dim), s.kv_lora),
    "ffn_gate": lambda s: (s.ffn, s.hidden),
    "ffn_up": lambda s: (s.ffn, s.hidden),
    "ffn_down": lambda s: (s.hidden, s.ffn),
    "ffn_gate_inp": lambda s: (s.experts, s.hidden),
    "exp_probs_b": lambda s: (s.experts,),
    "ffn_gate_exps": lambda s: (s.expert_ffn, s.hidden),
    "ffn_up_exps": lambda s: (s.expert_ffn, s.hidden),
    "ffn_down_exps": lambda s: (s.hidden, s.expert_ffn),
    "ffn_gate_inp_shexp": lambda s: (1, s.hidden),
    "ffn_gate_shexp": lambda s: (s.shared_ffn, s.hidden),
    "ffn_up_shexp": lambda s: (s.shared_ffn, s.hidden),
    "ffn_down_shexp": lambda s: (s.hidden, s.shared_ffn),
}
"""GGUF name without layer and kind -> shape (rows, columns) in the checkpoint"""
