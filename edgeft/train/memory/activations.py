"""Base + options + what trains + a batch -> bytes that autograd keeps for the backward pass.

    kept, temporary = activation_bytes(base, options, LORA, Batch(8, 60, 120), value_bytes=4)

Which inputs and outputs of a layer a backward pass needs follows from what trains. A test holds the
count to the tensors that autograd saves in real models of every family.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from edgeft import models
from edgeft.train.memory.base_model import BaseModel, Linear
from edgeft.train.memory.trained import Trains, target_linears, trained_weights, trains_weight
from edgeft.train.options import TrainOptions

HEAP_LIMIT_BYTES = 32 << 20
"""larger blocks are mapped one by one (glibc's DEFAULT_MMAP_THRESHOLD_MAX)"""
HEAP_HOLES = 0.5
"""bytes that stay unused in the heap for each byte of smaller blocks on a CPU: glibc 2.36 does not reuse
the place of an aligned block for a block of the same size (docs/results/2026-11-29-plan.md)"""
CHECKPOINTED_HOLES = 0.65
"""the same for each byte that checkpointed activations do not keep"""
LAYER_NORMS = ("pythia", "olmo")
"""families with torch's layer_norm in place of RMS norms; OLMo's has no weights"""
FLOAT32_NORMS = ("gemma", "gemma2", "gemma3", "olmo2", "olmo3")
"""families whose norms multiply by their weights before they round to the type of the computation"""
_SOURCES = {
    "attn_k": "attn_q", "attn_v": "attn_q", "attn_qkv": "attn_q", "attn_q_a": "attn_q",
    "attn_kv_a_mqa": "attn_q", "ffn_gate": "ffn_up", "ffn_gate_shexp": "ffn_up",
    "ffn_up_shexp": "ffn_up", "ffn_gate_inp": "ffn_up", "ffn_gate_inp_shexp": "ffn_up",
    "ffn_gate_exps": "ffn_up_exps",
}  # fmt: skip
"""linear layer -> the one that has the same input"""


@dataclass(frozen=True)
class Batch:
    """The largest micro-batch of a run."""

    examples: int
    length: int
    """tokens of the longest example, to which the others are padded"""
    learned: int
    """tokens of all its examples that are learned: rows of logits"""
    padded: bool = True
    """whether the examples differ in length, so that attention has a mask"""
    shared: int = 0
    """tokens that all examples begin with, where these are computed once"""
    sequences: int = 1
    """of an example: 2 of a preference pair"""

    @property
    def tokens(self) -> int:
        return self.sequences * self.examples * (self.length - self.shared) + self.shared

    def of(self, examples: int) -> Batch:
        """A batch of fewer examples."""
        learned = math.ceil(self.learned * examples / self.examples)
        padded = self.padded and examples * self.sequences > 1
        return dataclasses.replace(self, examples=examples, learned=learned, padded=padded)


def activation_bytes(
    base: BaseModel, options: TrainOptions, trains: Trains, batch: Batch, value_bytes: int
) -> tuple[int, int]:
    """(bytes that are kept for the backward pass, bytes that are needed for a moment beside them)."""
    sizes, tokens, v = base.sizes, batch.tokens, value_bytes
    if not trained_weights(base, options, trains):
        return 0, 0
    layers = [sum(blocks) for blocks in _layers(base, options, trains, batch, v)]
    inputs = sizes.hidden * 4
    logits = batch.learned * sizes.vocabulary * 4
    final = tokens * (inputs + 4) + logits
    if trains.base == "all":
        final += batch.learned * sizes.hidden * v + tokens * sizes.hidden * v
    rotary = 2 * sizes.head_dim * v * batch.length
    working = tokens * 4 * (2 * sizes.ffn + 2 * sizes.hidden)
    head = 2 * logits + (logits // 2 if v == 2 else 0)
    blocks = tokens * sum(layers)
    if options.checkpoint_activations:
        blocks = tokens * sizes.layers * sizes.hidden * v
    if options.checkpoint_activations or options.offload_activations:
        working += tokens * max(layers)  # those of one block are in memory
    return blocks + final + rotary, max(working, head)


def heap_holes(
    base: BaseModel, options: TrainOptions, trains: Trains, batch: Batch, value_bytes: int
) -> int:
    """Bytes of the heap that activations leave unused."""
    small = sum(
        block * batch.tokens
        for blocks in _layers(base, options, trains, batch, value_bytes)
        for block in blocks
        if block * batch.tokens < HEAP_LIMIT_BYTES
    )
    return int(small * (CHECKPOINTED_HOLES if options.checkpoint_activations else HEAP_HOLES))


def _layers(
    base: BaseModel, options: TrainOptions, trains: Trains, batch: Batch, v: int
) -> list[list[int]]:
    """For each block of the model the sizes of what it keeps for the backward pass, bytes a token."""
    reached = _first_reached(base, options, trains)
    layers = [
        _layer(base, options, trains, batch, v, layer) if layer >= reached else [0]
        for layer in range(base.sizes.layers)
    ]
    if reached < len(layers) and not _embedding_trains(base, options, trains):
        layers[reached].append(-4 * base.sizes.hidden)  # of the first norm: no gradient passes on
    return layers


def _first_reached(base: BaseModel, options: TrainOptions, trains: Trains) -> int:
    """The first block with something that trains: the backward pass ends there."""
    if _embedding_trains(base, options, trains):
        return 0
    for layer in range(base.sizes.layers):
        if target_linears(base, options, trains, layer):
            return layer
        if any(trains_weight(base, options, trains, name) for name, _ in base.layer(layer)):
            return layer
    return base.sizes.layers


def _embedding_trains(base: BaseModel, options: TrainOptions, trains: Trains) -> bool:
    return any(
        base.part(name) == "token_embd" and trains_weight(base, options, trains, name)
        for name in base.shapes
    )


def _layer(
    base: BaseModel, options: TrainOptions, trains: Trains, batch: Batch, v: int, layer: int
) -> list[int]:
    """Bytes for each token of every tensor that one block keeps; `v`: bytes of a value."""
    s = base.sizes
    tensors = {base.part(n): shape for n, shape in base.layer(layer) if n.endswith("weight")}
    targets = target_linears(base, options, trains, layer)
    trained = {
        base.part(name)
        for name, shape in base.layer(layer)
        if trains_weight(base, options, trains, name) and name.endswith("weight")
    }
    kept = _norms(base, tensors, trained, v) + _attention(base, options, batch, v)
    kept += _inputs(targets, trained, tensors, trains, v)
    if "attn_qkv" in tensors and (s.heads == s.kv_heads or not batch.padded):
        kept += [2 * s.kv_heads * s.head_dim * v]  # values are a view of all three
    if trains.beside in ("lora", "dora"):
        kept += [4 * options.lora_r] * len(targets)
    if trains.beside == "dora":  # the output before it is scaled
        kept += [v * linear.rows for linear in targets]
    if "ffn_down" in tensors:
        kept += [s.ffn * v] * (3 if s.gated else 1)
    if "ffn_down_exps" in tensors:
        kept += [s.experts_used * s.expert_ffn * v] * 3
        kept += [s.experts_used * s.hidden * v, 4 * s.experts]
        if "ffn_down_exps" in trained:
            kept += [s.experts_used * s.hidden * v, s.experts_used * s.expert_ffn * v]
    if "ffn_down_shexp" in tensors:
        kept += [s.shared_ffn * v] * 3
    if s.kv_lora:
        kept += [s.heads * s.head_dim * v, s.heads * s.value_dim * v]
    return kept


def _norms(
    base: BaseModel, tensors: dict[str, models.Shape], trained: set[str], v: int
) -> list[int]:
    """Inputs of the norms, in float32, and their factors; the normed values where weights train."""
    s = base.sizes
    widths = {"attn_q_norm": s.heads * s.head_dim, "attn_k_norm": s.kv_heads * s.head_dim,
              "attn_q_a_norm": s.q_lora, "attn_kv_a_norm": s.kv_lora}  # fmt: skip
    plain = base.card.family in LAYER_NORMS
    names = ["attn_norm", "ffn_norm"] if plain else [n for n in tensors if n.endswith("_norm")]
    kept = []
    for name in names:
        width = widths.get(name, s.hidden)
        kept += [width * (v if base.card.family == "pythia" else 4), 8 if plain else 4]
        if name in trained and not plain:
            kept.append(width * (4 if base.card.family in FLOAT32_NORMS else v))
    return kept


def _attention(base: BaseModel, options: TrainOptions, batch: Batch, v: int) -> list[int]:
    """Queries, keys, values and outputs of the attention, for each token."""
    s = base.sizes
    kv_heads = s.heads if batch.padded else s.kv_heads
    kept = [width * v for heads in (s.heads, kv_heads)
            for width in (heads * s.head_dim, heads * s.value_dim)]  # fmt: skip
    soft_cap = bool(base.card.value(base.config, "attn_logit_softcapping"))
    if options.attention == "eager" or soft_cap:  # transformers computes soft caps in eager mode
        probabilities = s.heads * batch.length
        return [*kept, probabilities * 4, probabilities * v * ((v == 2) + soft_cap)]
    return [*kept, 4 * s.heads, batch.length * v if batch.padded else 0]


def _inputs(
    targets: list[Linear],
    trained: set[str],
    tensors: dict[str, models.Shape],
    trains: Trains,
    v: int,
) -> list[int]:
    """Inputs of linear layers that the gradient of a weight needs, each once.

    In bfloat16 peft casts the input of each of its layers to float32.
    """
    if trains.beside == "scales":
        return [
            v * (linear.columns if linear.part == "ffn_down" else linear.rows) for linear in targets
        ]
    if trains.beside and v == 2:
        return [4 * linear.columns for linear in targets]
    parts = {linear.part: linear.columns for linear in targets}
    for part in trained & set(tensors):
        if len(tensors[part]) == 2 and not part.endswith("_exps"):
            parts[part] = tensors[part][1]
    distinct = {_SOURCES.get(part, part): width for part, width in parts.items()}
    distinct.pop("attn_output", None)  # attention keeps its output in any case
    return [v * width for width in distinct.values()]
