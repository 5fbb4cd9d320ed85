"""A batch of examples -> one row in which their common beginning stands, and is computed, once.

    prefix = SharedPrefix(model, longest=512)        # decides by rule whether the model allows it
    row = prefix.row(input_ids, attention_mask, labels)
    if row: output = model(**row.inputs)

Examples of a chat template begin alike: header, system prompt, instructions. In a causal model the
hidden states there depend on nothing behind, so they are the same in every example. The row holds the
common beginning and then each example's own tokens, without padding: p + Σ own tokens instead of
examples x longest. Every linear layer computes the row as one matrix. Attention keeps the examples apart:
own tokens see the beginning and the earlier own tokens of their example, at the positions they have there.
Loss and gradients are those of the plain batch, whose beginnings' gradients add up in one place
(prefix sharing; for preference pairs: arXiv 2410.20305).
"""

# Imported only when a run starts, after the check for the extra.
# ruff: noqa: TID253

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from edgeft.data.encoded_rows import IGNORED
from edgeft.progress import say

ATTENTION = "edgeft_shared_prefix"
"""name of `attention` in transformers' table: torch's SDPA, which also knows rows with a shared prefix"""
FLOAT32_TOLERANCE, BFLOAT16_TOLERANCE = 1e-3, 3e-2
"""relative differences of a batch's loss between two orders of the same sums"""
SMALL_LOSS = 0.3
"""nats a token; a smaller loss, as of a fine-tune that trains on, is held to the difference of this one"""


@dataclass(frozen=True)
class Layout:
    """Where the examples of a row lie."""

    prefix: int
    """tokens of the common beginning"""
    places: torch.Tensor
    """(examples, longest own part) int64: the row's index of every own token; padding repeats index 0"""
    own: torch.Tensor
    """(own tokens,) int64: where `places`, flattened, is no padding"""
    mask: torch.Tensor
    """(examples, 1, longest own part, prefix + longest own part) bool: what an own token sees"""


@dataclass(frozen=True)
class Row:
    """A batch as one row."""

    inputs: dict[str, torch.Tensor]
    """input_ids and position_ids (1, tokens), attention_mask (1, 1, tokens, tokens)"""
    predictors: torch.Tensor
    """(learned tokens,) int64: index of the token whose hidden state predicts the learned one"""
    targets: torch.Tensor
    """(learned tokens,) int64: ids, in the order of the plain batch"""


class SharedPrefix:
    """Decides for a model, once, whether batches may share their beginning, and makes the rows."""

    def __init__(self, model: Any, longest: int, training: Any = None) -> None:
        """`model`: transformers' own, without peft around it; its attention becomes `ATTENTION`.

        `longest`: tokens of the longest example. `training`: the `TrainingArguments`.
        """
        self.why_not = why_not(model, longest, training)
        """"" where beginnings are shared"""
        self._additive = model.config._attn_implementation == "eager"
        self._verified = False
        bfloat16 = any(parameter.dtype != torch.float32 for parameter in model.parameters())
        self._tolerance = BFLOAT16_TOLERANCE if bfloat16 else FLOAT32_TOLERANCE
        if self.why_not:
            say(f"the beginning of the examples is computed in each of them: {self.why_not}")
        elif not self._additive:
            _register()
            model.set_attn_implementation(ATTENTION)

    def verify(
        self,
        batch: dict[str, torch.Tensor],
        loss: Callable[[Row | None], tuple[torch.Tensor, int, Any]],
    ) -> None:
        """Hold the loss of the first batch's row to the plain pass; from then on nothing.

        `loss` gives the summed loss of a row, or of the plain batch for None. Where they differ, this
        model computes something else than `why_not` knows, and every batch takes the plain pass.
        """
        row = None if self._verified else self.row(**batch)
        if row is None:
            return
        self._verified = True
        with torch.no_grad():
            shared = float(loss(row)[0])
            total, learned, output = loss(None)
        plain, tolerance = float(total), self._tolerance
        if output.logits.dtype != torch.float32:  # autocast computes in bfloat16
            tolerance = BFLOAT16_TOLERANCE
        if not abs(shared - plain) <= tolerance * max(abs(plain), SMALL_LOSS * learned):
            self.why_not = f"the first batch's loss is {shared:.4f}, by the plain pass {plain:.4f}"
            say(f"the beginning of the examples is computed in each of them: {self.why_not}")

    def row(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor
    ) -> Row | None:
        """The batch as one row; None where the plain pass is to be used.

        All (examples, longest) int64, padded right.
        """
        if self.why_not or len(input_ids) < 2:
            return None
        lengths = attention_mask.sum(1)
        prefix = common_beginning(input_ids, lengths)
        return make_row(input_ids, lengths, labels, prefix, self._additive) if prefix else None


def why_not(model: Any, longest: int, training: Any = None) -> str:
    """Why the examples' beginnings cannot be shared in this model, "" where they can."""
    config = model.config
    kinds = set(getattr(config, "layer_types", None) or ())
    windows = [
        getattr(config, "sliding_window", None),
        getattr(config, "attention_chunk_size", None),
    ]
    if getattr(config, "use_sliding_window", True) is False:
        windows = []
    if config._attn_implementation not in ("sdpa", "eager", ATTENTION):
        return f"attention is {config._attn_implementation}"
    if kinds - {"full_attention", "sliding_attention", "chunked_attention"}:
        return f"layers of {', '.join(sorted(kinds))}"
    if any(window and window < longest for window in windows):
        return f"examples of {longest} tokens are longer than the attention window"
    if getattr(config, "output_router_logits", False):
        return "the router's loss counts every token of every example"
    if getattr(config, "attention_dropout", 0.0) or any(
        isinstance(part, torch.nn.Dropout) and part.p for part in model.modules()
    ):
        return "dropout is drawn for every example"
    if getattr(training, "neftune_noise_alpha", None):
        return "NEFTune's noise is drawn for every example"
    return ""


def common_beginning(input_ids: torch.Tensor, lengths: torch.Tensor) -> int:
    """Tokens that all examples begin with; the shortest example keeps one of its own."""
    shortest = int(lengths.min())
    differs = (input_ids[:, : shortest - 1] != input_ids[:1, : shortest - 1]).any(0)
    return int(differs.nonzero()[0]) if bool(differs.any()) else shortest - 1


def make_row(
    input_ids: torch.Tensor,
    lengths: torch.Tensor,
    labels: torch.Tensor,
    prefix: int,
    additive: bool = False,
) -> Row:
    """One row of `prefix` common tokens and every example's own.

    `lengths` (examples,): tokens without padding. `additive`: the mask is 0 and the type's least
    number, which is what transformers' eager attention adds, and not True and False.
    """
    device, width = input_ids.device, int(lengths.max())
    order = torch.arange(width, device=device)
    own = (order[None, :] < lengths[:, None])[:, prefix:]  # (examples, longest own part)
    # Index in the row of (example, position): the beginning is the same for all.
    places = (prefix + own.flatten().cumsum(0) - 1).view_as(own).masked_fill(~own, 0)
    index = torch.cat([order[:prefix].expand(len(input_ids), -1), places], dim=1)

    def as_row(values: torch.Tensor) -> torch.Tensor:
        return torch.cat([values[0, :prefix], values[:, prefix:width][own]])[None]

    positions = as_row(order.expand(len(input_ids), -1))
    example = torch.arange(len(input_ids), device=device)[:, None].expand_as(own)[own]
    example = torch.cat([torch.full((prefix,), -1, device=device), example])
    same = (example[None, :] == example[:, None]) | (example == -1)[None, :]
    mask = (same & (positions[0][None, :] <= positions[0][:, None]))[None, None]
    causal = order[None, :] <= order[prefix:, None]  # (longest own part, longest)
    seen = torch.cat([own.new_ones(len(own), prefix), own], dim=1)
    layout = Layout(
        prefix, places, own.flatten().nonzero()[:, 0], (causal[None] & seen[:, None, :])[:, None]
    )
    if additive:
        mask = torch.zeros(mask.shape, device=device).masked_fill_(
            ~mask, torch.finfo(torch.float32).min
        )
    # `attention` finds the layout here, under a name that a tensor does not have. Where a model copies
    # the mask, SDPA uses the mask itself.
    mask.shared_prefix = layout
    learned = labels[:, 1:width] != IGNORED
    return Row(
        inputs={"input_ids": as_row(input_ids), "position_ids": positions, "attention_mask": mask},
        predictors=index[:, : width - 1][learned],
        targets=labels[:, 1:width][learned],
    )


def attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' SDPA; for a row with a shared prefix without the pairs that its mask forbids.

    query (1, heads, tokens, width) and so on -> (1, tokens, heads, width).
    """
    layout: Layout | None = getattr(attention_mask, "shared_prefix", None)
    if layout is None or kwargs.get("position_bias") is not None:
        plain: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **kwargs
        )
        return plain
    prefix = layout.prefix
    beginning, _ = sdpa_attention_forward(
        module, query[:, :, :prefix], key[:, :, :prefix], value[:, :, :prefix], None,
        **kwargs | {"is_causal": True},
    )  # fmt: skip

    def of_examples(values: torch.Tensor) -> torch.Tensor:  # (examples, heads, own part, width)
        return values[0].index_select(1, layout.places.flatten()).unflatten(
            1, layout.places.shape
        ).transpose(0, 1)  # fmt: skip

    def with_beginning(values: torch.Tensor) -> torch.Tensor:
        own = of_examples(values)
        return torch.cat([values[:, :, :prefix].expand(len(own), -1, -1, -1), own], dim=2)

    own, _ = sdpa_attention_forward(
        module, of_examples(query), with_beginning(key), with_beginning(value), layout.mask,
        **kwargs,
    )  # fmt: skip
    return torch.cat([beginning[0], own.flatten(0, 1).index_select(0, layout.own)])[None], None


def _register() -> None:
    """Make `attention` known to transformers, with SDPA's masks for plain batches."""
    from transformers.masking_utils import sdpa_mask

    transformers.AttentionInterface.register(ATTENTION, attention)
    transformers.AttentionMaskInterface.register(ATTENTION, sdpa_mask)
