"""ExportPlan + bytes of a file -> a type for each of its tensors (`--quant auto --max-size 80M`).

    budget = type_budget(plan, file_plan, max_size)              # refuses before anything is measured
    file_plan, facts = choose_types(budget, plan, merged)

Rounding errors of a weight cost nats of Kullback-Leibler divergence a token by what its layer reads and how
sensitive its outputs are (`edgeft.export.sensitivity`). The errors are measured with ggml's own quantizers on some
rows of each tensor, and the bytes go where they save most (`edgeft.quantization.budget`).

Where the base's weights lie on the grid of a type, rounding takes part of the adapter's change away, or adds to it, or
makes all weights smaller. These errors do not add up as squares. So an error is divided into a share of the change, a
share of the weight and the rest, and the shares of all tensors cost the square of their sum.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeft import files
from edgeft.converters.gguf.convert import header_bytes
from edgeft.converters.gguf.plan import Part, Plan, Target
from edgeft.errors import FormatError, ProofError
from edgeft.export.fine_tune_data import calibration_ids
from edgeft.export.plan import ExportPlan
from edgeft.export.sensitivity import MAX_SEQUENCE_TOKENS, Sensitivity, sensitivities
from edgeft.files import format_bytes
from edgeft.merge.landing import ZERO_DELTA_RATIO
from edgeft.merge.view import Merged
from edgeft.progress import say
from edgeft.quantization import ggml
from edgeft.quantization.budget import Choice, assign_shifted, total_cost
from edgeft.quantization.tensor_types import overridden

Array = npt.NDArray[np.float32]

TYPES = ("q8_0", "q6_k", "q5_k", "q5_1", "q5_0", "q4_k", "q4_1", "iq4_nl", "q4_0", "q3_k", "q2_k")
"""that a tensor may get, where its block divides the rows"""
MAX_TOKENS = 4096
"""calibration tokens for the gradients"""
ALIGNMENT = 32
"""bytes that a tensor of a GGUF file is padded to"""
SAMPLED_ROWS = 256
"""rows of a tensor that errors are measured on"""


@dataclass(frozen=True)
class TypeBudget:
    """What may be chosen, before anything is measured."""

    file_plan: Plan
    """with the types that stay: of unquantized tensors, and those of --tensor-type"""
    targets: dict[str, Target]
    """GGUF name -> tensor whose type is chosen"""
    fixed: int
    """bytes of the file beside these tensors"""
    max_size: int

    def fit(self, choices: dict[str, list[Choice]]) -> dict[str, Choice]:
        """ResourceError where the smallest choices do not fit."""
        return assign_shifted(choices, self.max_size, self.fixed)


def type_budget(plan: ExportPlan, file_plan: Plan, max_size: int) -> TypeBudget:
    """FormatError for a model whose layers transformers does not compute one by one, ResourceError
    where no types fit."""
    stay = overridden(file_plan.types, plan.options.tensor_types)
    targets = {
        name: file_plan.targets[name]
        for name, qtype in file_plan.types.items()
        if qtype.name not in ("F32", "F16", "BF16") and name not in stay
    }
    for name, target in targets.items():
        if len(target.parts) > 1 or len(target.parts[0].shape) > 2:
            raise FormatError(
                f"{name}: the sensitivity of experts cannot be measured", "a --quant of one type"
            )
    with files.scratch(plan.options.out) as folder:
        header = header_bytes(plan.view, file_plan, folder / "header.gguf")
    others = {name: q for name, q in file_plan.types.items() if name not in targets}
    fixed = header + sum(_bytes(file_plan.shape(name), q.name) for name, q in others.items())
    budget = TypeBudget(file_plan, targets, fixed + ALIGNMENT * len(file_plan.types), max_size)
    budget.fit({
        name: [Choice(kind, size, 0.0) for kind, size in _sizes(target, _allowed(target)).items()]
        for name, target in targets.items()
    })  # fmt: skip
    return budget


def choose_types(
    budget: TypeBudget, plan: ExportPlan, merged: Merged
) -> tuple[Plan, dict[str, Any]]:
    """(the plan of the file with a type for each tensor, facts for the manifest).

    `merged`: with the base precision that is written. ProofError for gradients that are not finite.
    """
    from gguf import GGMLQuantizationType

    tokens = min(plan.calibration_tokens, MAX_TOKENS)
    sequences = calibration_ids(merged, plan.data, tokens, MAX_SEQUENCE_TOKENS)
    uses = sensitivities(merged, sequences, plan.options.out, plan.options.threads)
    chosen = budget.fit(_choices(merged, budget.targets, uses, plan.options.threads))
    nats = total_cost(chosen.values())
    facts = {
        "max_size": budget.max_size,
        "nats": nats,
        "nats_of_shares": nats - sum(choice.error for choice in chosen.values()),
        "tokens": sum(map(len, sequences)),
    }
    _report(chosen, budget, facts)
    types = {name: GGMLQuantizationType[choice.type.upper()] for name, choice in chosen.items()}
    weights: Counter[str] = Counter()
    for name, choice in chosen.items():
        weights[choice.type] += math.prod(budget.targets[name].shape)
    quant = weights.most_common(1)[0][0] if weights else budget.file_plan.quant
    quant = f"{quant}_s" if quant in ("q3_k", "q4_k", "q5_k") else quant
    file_plan = budget.file_plan
    return dataclasses.replace(file_plan, quant=quant, types=file_plan.types | types), facts


def _choices(
    merged: Merged,
    targets: dict[str, Target],
    uses: dict[str, list[Sensitivity]],
    threads: int,
) -> dict[str, list[Choice]]:
    """GGUF name -> bytes and cost of each type that the tensor may have."""

    def of(name: str) -> list[Choice]:
        target, part = targets[name], targets[name].parts[0]
        if part.source not in uses:
            raise FormatError(
                f"{name} is the weight of no linear layer of transformers' model",
                "a --quant of one type",
            )
        return [
            Choice(kind, size, *rounding(merged, part, uses[part.source], kind))
            for kind, size in _sizes(target, _allowed(target)).items()
        ]

    with ThreadPoolExecutor(threads) as pool:
        return dict(zip(targets, pool.map(of, targets), strict=True))


def rounding(
    merged: Merged, part: Part, uses: Sequence[Sensitivity], kind: str
) -> tuple[float, tuple[float, ...]]:
    """(nats a token, shift) of a whole tensor in a type, from some of its rows; see `Choice`.

    The errors are fitted by a share of the adapter's change (one less the landing coefficient,
    `edgeft.merge.landing`) and one of the weight; the shift is what these cost, the nats are of the rest.
    """
    from gguf import GGMLQuantizationType

    rows = np.unique(np.linspace(0, part.rows - 1, min(part.rows, SAMPLED_ROWS)).astype(np.intp))
    values = np.ascontiguousarray(part.read(merged.rows, rows), np.float32)
    qtype = GGMLQuantizationType[kind.upper()]
    try:
        data = ggml.quantize(values, qtype, threads=1)
    except ValueError as error:
        raise ProofError(f"{part.source} cannot be stored as {qtype.name}: {error}") from None
    errors = (ggml.dequantize(data, qtype) - values).astype(np.float64)
    source = part.source_rows(rows)
    _, delta = merged.addends(part.source, source)
    change = np.zeros_like(errors) if delta is None else part.apply(delta, rows)
    shared = np.stack([change, values]).reshape(2, -1).astype(np.float64)
    if np.square(shared[0]).sum() <= ZERO_DELTA_RATIO**2 * np.square(shared[1]).sum():
        shared[0] = 0
    shares = np.linalg.pinv(shared @ shared.T, hermitian=True) @ (shared @ errors.ravel())
    squares, nats = (errors - (shares @ shared).reshape(errors.shape)) ** 2, 0.0
    for use in uses:
        by_row = use.rows[source] if part.transform.picks_rows else use.rows.mean()
        nats += float((squares @ use.columns.astype(np.float64) * by_row).sum())
    shift = sum(shares @ use.slopes for use in uses)
    return 0.5 * nats * part.rows / len(rows), tuple(np.atleast_1d(shift).tolist())


def _allowed(target: Target) -> tuple[str, ...]:
    return tuple(kind for kind in TYPES if target.shape[-1] % _block(kind)[0] == 0)


def _sizes(target: Target, kinds: Sequence[str]) -> dict[str, int]:
    return {kind: _bytes(target.shape, kind) for kind in kinds}


def _block(kind: str) -> tuple[int, int]:
    """(weights, bytes) of a block."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    weights, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind.upper()]]
    return int(weights), int(size)


def _bytes(shape: tuple[int, ...], kind: str) -> int:
    weights, size = _block(kind)
    return math.prod(shape) // weights * size


def _report(chosen: dict[str, Choice], budget: TypeBudget, facts: dict[str, Any]) -> None:
    counts = Counter(choice.type for choice in chosen.values())
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
    size = budget.fixed + sum(choice.size for choice in chosen.values())
    say(
        f"types for {format_bytes(budget.max_size)}: {kinds}; {format_bytes(size)}, about "
        f"{facts['nats']:.2g} nats of KL divergence a token, {facts['nats_of_shares']:.2g} of it for shares of "
        "the adapter's change and of whole weights"
    )
