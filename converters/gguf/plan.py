"""Merged view + quantization -> the plan of a GGUF file: its tensors, their types, its header.

    plan = make_plan(merged, "q4_k_m", options)             # FormatError for an unsupported model
    for target in plan.targets.values():
        for part in target.parts:                           # one, or one for each stacked expert
            values = part.read(merged.rows, slice(0, 256))

A plan reads no weights. It does not depend on the base precision, so one plan serves every
`Merged.with_base`. Rows are those of a tensor (…, columns) reshaped to (rows, columns). All parts of a
target have the same number of rows.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeft.converters.gguf.metadata import metadata, reward_keys, rope_factors
from edgeft.converters.options import ConvertOptions
from edgeft.errors import FormatError
from edgeft.formats import FORMATS, GPTQ_PREFIX
from edgeft.gptq.quantize import check_computes
from edgeft.merge.landing import sampled_rows
from edgeft.merge.view import Merged
from edgeft.models.text_model import SCORE
from edgeft.models.transforms import Transform
from edgeft.quantization.repack import BlockSource
from edgeft.quantization.tensor_types import choose_tensor_types, model_facts, needs_importance
from edgeft.weights.checkpoint import Array, Rows, as_rows
from edgeft.weights.imatrix import Imatrix

SIZED_FROM = "q4_0"
"""quantization of a file of a size, before its types are chosen (`edgeft.export.type_budget`)"""
OUTPUT_NORM = "output_norm.weight"
IMATRIX_HINT = "llama-imatrix on the model itself, or --imatrix auto"
"""hint of errors about an importance matrix"""


@dataclass(frozen=True)
class Part:
    """A checkpoint tensor and its transform: all of a GGUF tensor, or one expert."""

    source: str
    """name in the checkpoint"""
    source_shape: tuple[int, ...]
    shape: tuple[int, ...]
    """after the transform"""
    transform: Transform
    config: dict[str, Any]

    @property
    def rows(self) -> int:
        return as_rows(self.shape)[0]

    @property
    def matrices(self) -> int:
        """Number of matrices: one, or the first dimension of a part with three."""
        return math.prod(self.shape[:-2])

    def source_rows(self, rows: Rows) -> Rows:
        """Rows of the checkpoint's tensor that `rows` of the part depend on."""
        return self.transform.source_rows(rows, self.source_shape, self.config)

    def apply(self, values: npt.NDArray[Any], rows: Rows) -> npt.NDArray[Any]:
        """The values of `source_rows(rows)` -> `rows` of the part."""
        return self.transform.apply(values, rows, self.source_shape, self.config)

    def read(
        self, source_rows: Callable[[str, Rows], npt.NDArray[Any]], rows: Rows
    ) -> npt.NDArray[Any]:
        """`rows` of the part; `source_rows` reads rows of a checkpoint tensor by its name."""
        return self.apply(source_rows(self.source, self.source_rows(rows)), rows)

    def sampled_rows(self, parts: int) -> npt.NDArray[np.intp]:
        """Rows of the landing proof's sample, where `parts` share a tensor."""
        return sampled_rows(self.rows, math.prod(self.shape) // self.rows, parts)


@dataclass(frozen=True)
class Target:
    """A GGUF tensor and its parts, one per stacked expert."""

    name: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Plan:
    """The contents of a GGUF file."""

    quant: str
    """without GPTQ_PREFIX, and SIZED_FROM for a file of a size"""
    targets: dict[str, Target]
    """GGUF name -> tensor"""
    factors: dict[str, Array]
    """GGUF name -> rope factors, computed from config.json"""
    keys: dict[str, Any]
    """keys of the header, without the vocabulary"""
    types: dict[str, Any]
    """GGUF name -> GGMLQuantizationType, in the order of the file"""
    importance: Mapping[str, Array | None] | None = None
    """`importance_rows`; None where the importance matrix is collected after the plan is made"""
    block_sources: Mapping[str, BlockSource] = dataclasses.field(default_factory=dict)
    """GGUF name -> source of its bytes, for tensors that are quantized already"""

    def shape(self, name: str) -> tuple[int, ...]:
        return self.factors[name].shape if name in self.factors else self.targets[name].shape

    def with_blocks(self, source: BlockSource) -> Plan:
        """The plan with bytes and types of `source` for the tensors that it holds in one type."""
        return self._with(source, self._held(source))

    def with_equal_blocks(self, source: BlockSource) -> Plan:
        """The plan with the bytes of `source` for the tensors that it holds in the plan's type."""
        held = self._held(source)
        return self._with(source, {n: qtype for n, qtype in held.items() if qtype == self.types[n]})

    def _held(self, source: BlockSource) -> dict[str, Any]:
        """Tensor -> the one type that the source holds all of it in."""
        types = {name: _block_type(target, source) for name, target in self.targets.items()}
        return {name: qtype for name, qtype in types.items() if qtype is not None}

    def _with(self, source: BlockSource, types: dict[str, Any]) -> Plan:
        sources = {**self.block_sources, **dict.fromkeys(types, source)}
        return dataclasses.replace(self, types=self.types | types, block_sources=sources)


def make_plan(merged: Merged, quant: str, options: ConvertOptions) -> Plan:
    """The plan of a file of type `quant`; FormatError for an unsupported model or option."""
    if quant.startswith(GPTQ_PREFIX):
        check_computes(merged)
    quant = SIZED_FROM if quant == FORMATS["gguf"].sized else quant.removeprefix(GPTQ_PREFIX)
    targets, factors, keys, facts = _from_config(merged)
    head = merged.card.reward_head if merged.is_reward_model else ""
    shapes = {name: target.shape for name, target in targets.items() if name != head}
    types = choose_tensor_types(
        quant,
        shapes | {name: values.shape for name, values in factors.items()},
        arch=merged.card.gguf_arch,
        imatrix=options.imatrix_pending or options.imatrix is not None,
        overrides=options.tensor_types,
        **facts,
    )
    for pattern, _ in options.tensor_types:
        if not any(re.search(pattern.lower(), name) for name in shapes):
            raise FormatError(f"no tensor's name matches {pattern!r}", f"a name is {min(shapes)}")
    if head:
        types |= {head: types[OUTPUT_NORM]}  # F32: its two rows decide every score
    plan = Plan(quant, targets, factors, keys, types)
    if options.imatrix_pending:
        return plan
    importance = importance_rows(plan, options.imatrix)
    _check_imatrix(plan, options.imatrix)
    return dataclasses.replace(plan, importance=importance)


def importance_rows(plan: Plan, imatrix: Imatrix | None) -> dict[str, Array | None]:
    """GGUF name -> importance, (matrices, columns), or None for a tensor without.

    FormatError where a type needs an importance that the matrix lacks, or the shapes differ.
    """
    importance: dict[str, Array | None] = {}
    for name, qtype in plan.types.items():
        values = imatrix.importance(name) if imatrix and name in plan.targets else None
        if values is None and needs_importance(plan.quant, name, qtype):
            raise FormatError(
                f"{qtype.name} of {name} needs an importance matrix, and it has none for it",
                "--imatrix auto, on chats that reach every expert; or a finer --quant",
            )
        if values is not None:
            stored = plan.targets[name].shape
            shape = (math.prod(stored[:-2]), stored[-1])
            if values.size != math.prod(shape):
                raise FormatError(
                    f"the importance matrix is of another model: {name} is {values.shape}, not {shape}"
                )
            values = values.reshape(shape)
        importance[name] = values
    return importance


def without_importance(plan: Plan, imatrix: Imatrix) -> list[str]:
    """Quantized tensors without an entry in the importance matrix."""
    return [name for name in _quantized(plan) if name not in imatrix.tensors]


def _check_imatrix(plan: Plan, imatrix: Imatrix | None) -> None:
    """FormatError where most quantized tensors have no importance."""
    missing = without_importance(plan, imatrix) if imatrix else []
    if 2 * len(missing) > len(_quantized(plan)):
        raise FormatError(
            f"the importance matrix is of another model: it has nothing for {plan.quant}'s tensors, "
            f"such as {missing[0]}",
            IMATRIX_HINT,
        )


def _quantized(plan: Plan) -> list[str]:
    """Quantized tensors without embedding and output, for which llama-imatrix collects nothing."""
    ends = ("token_embd.weight", "output.weight")
    unquantized = ("F32", "F16", "BF16")
    return [n for n, qtype in plan.types.items() if qtype.name not in unquantized and n not in ends]


def _from_config(
    merged: Merged,
) -> tuple[dict[str, Target], dict[str, Array], dict[str, Any], dict[str, int]]:
    """(targets, rope factors, header keys, facts for `choose_tensor_types`)."""
    try:
        targets, factors = gguf_targets(merged), rope_factors(merged)
        keys = metadata(merged) | reward_keys(merged)
        facts = model_facts(merged.card, merged.config)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise FormatError(
            f"config.json of {merged.base} is not one of the {merged.card.family} family: "
            f"{type(error).__name__} {error}",
            "is it whole, and the one that came with the weights?",
        ) from None
    return targets, factors, keys, facts


def gguf_targets(merged: Merged) -> dict[str, Target]:
    """GGUF name -> target; FormatError for a checkpoint tensor without a GGUF name."""
    card, config = merged.card, {**merged.card.defaults, **merged.config}
    parts: dict[str, dict[int | None, Part]] = {}
    for source, source_shape in merged.shapes.items():
        names, expert = card.gguf_names(source)
        if source == SCORE and card.reward_head:
            names = (card.reward_head,)
        if not names:
            raise FormatError(
                f"the {card.family} card has no place for tensor {source}", "is it a variant?"
            )
        for name in names:
            transform = card.transform(name)
            shape = transform.shape(source_shape, config)
            part = Part(source, source_shape, shape, transform, config)
            parts.setdefault(name, {})[expert] = part
    if merged.tied:
        parts.pop("output.weight", None)
    return {name: _target(name, by_expert) for name, by_expert in parts.items()}


def _target(name: str, parts: dict[int | None, Part]) -> Target:
    if None in parts:
        return Target(name, parts[None].shape, (parts[None],))
    experts = sorted(number for number in parts if number is not None)
    shapes = {part.shape for part in parts.values()}
    if experts != list(range(len(experts))) or len(shapes) > 1:
        missing = next((i for i, n in enumerate(experts) if i != n), len(experts))
        raise FormatError(f"{name} lacks expert {missing}", "the checkpoint is incomplete")
    ordered = tuple(parts[number] for number in experts)
    return Target(name, (len(ordered), *shapes.pop()), ordered)


def _block_type(target: Target, source: BlockSource) -> Any:
    """The type in which `source` holds all parts of a tensor, else None."""
    qtypes = {source.block_type(part.source) for part in target.parts}
    picks_rows = all(part.transform.picks_rows for part in target.parts)
    return qtypes.pop() if len(qtypes) == 1 and picks_rows else None
