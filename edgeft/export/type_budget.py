"""ExportPlan + bytes of a file -> a type for each of its tensors (`--quant auto --max-size 80M`).

    budget = type_budget(plan, file_plan, max_size)              # refuses before anything is measured
    file_plan, facts = choose_types(budget, plan, merged)

The merged model reads the calibration chats in float32. For each linear layer the mean squares of its
inputs x and of the gradients g of its outputs are measured; the loss is that of tokens drawn from the
model's own distribution, so that g is that of the Fisher information. With this diagonal of K-FAC
(Martens and Grosse, arXiv 1503.05671) rounding errors D of a weight cost about 1/2 sum_ij E[g_i^2] E[x_j^2] D_ij^2
nats of Kullback-Leibler divergence a token. So the errors of all tensors have one unit and add up.
D is measured with ggml's own quantizers on some rows of each tensor.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeft import files, machine
from edgeft.converters.gguf.convert import header_bytes
from edgeft.converters.gguf.plan import Part, Plan, Target
from edgeft.errors import FormatError, InputError, ProofError, ResourceError
from edgeft.export.fine_tune_data import calibration_ids
from edgeft.export.plan import ExportPlan
from edgeft.files import format_bytes
from edgeft.merge.landing import ZERO_DELTA_RATIO
from edgeft.merge.view import Merged
from edgeft.progress import Progress, say
from edgeft.quantization import ggml
from edgeft.quantization.budget import Choice, assign
from edgeft.quantization.tensor_types import overridden
from edgeft.runtimes.reference import ReferenceRuntime

Array = npt.NDArray[np.float32]

TYPES = ("q8_0", "q6_k", "q5_k", "q5_1", "q5_0", "q4_k", "q4_1", "iq4_nl", "q4_0", "q3_k", "q2_k")
"""that a tensor may get, where its block divides the rows"""
MAX_TOKENS, MAX_SEQUENCE_TOKENS = 4096, 512
"""calibration tokens for the gradients, in all and of a sequence"""
LOGIT_COPIES = 5
"""logits, their softmax and gradients that a backward pass holds at once"""
ALIGNMENT = 32
"""bytes that a tensor of a GGUF file is padded to"""
MIN_KEPT = 0.5
"""share of the adapter's change that a type keeps at least; one that rounds it away is left out, since errors
that all point one way cost more than the sum of squares says"""
SAMPLED_ROWS = 256
"""rows of a tensor that errors are measured on"""


@dataclass(frozen=True)
class Sensitivity:
    """What rounding errors of a weight cost where it is used.

    The embedding is looked up: its output is a row, so columns have the gradients, and each row counts
    as often as another.
    """

    columns: Array
    """(columns,): mean square of each input over the tokens"""
    rows: Array
    """(rows,): mean square of the loss's gradient by each output, the loss of a token in nats"""


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
        return assign(choices, self.max_size, self.fixed)


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

    `merged`: with the base precision that is written. ResourceError where no types fit that keep the
    adapter's change, ProofError for gradients that are not finite.
    """
    from gguf import GGMLQuantizationType

    tokens = min(plan.calibration_tokens, MAX_TOKENS)
    sequences = calibration_ids(merged, plan.data, tokens, MAX_SEQUENCE_TOKENS)
    uses = sensitivities(merged, sequences, plan.options.out, plan.options.threads)
    choices, left_out = _choices(merged, budget.targets, uses, plan.options.threads)
    try:
        chosen = budget.fit(choices)
    except ResourceError as error:
        problem = f"without types that round the adapter's change away, {error.message}"
        raise ResourceError(problem, error.hint) from None
    facts = {
        "max_size": budget.max_size,
        "nats": sum(choice.error for choice in chosen.values()),
        "left_out": left_out,
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


def sensitivities(
    merged: Merged, sequences: Sequence[Sequence[int]], folder: Path, threads: int, seed: int = 0
) -> dict[str, list[Sensitivity]]:
    """Checkpoint name of each weight of a linear layer, and of the embedding -> its uses.

    `folder`: where memory is checked for. ResourceError where the model does not fit in float32,
    InputError without tokens, ProofError where a gradient is not finite.
    """
    if not any(map(len, sequences)):
        raise InputError("there are no conversations to calibrate on", "other --calibration")
    saved = sum(sum(shape) for shape in merged.shapes.values() if len(shape) == 2)
    saved += (LOGIT_COPIES - 1) * merged.vocabulary  # the embedding counts once
    machine.preflight(
        folder, "measuring which weights need bits", 0,
        merged.bytes_as(32) + 4 * MAX_SEQUENCE_TOKENS * saved, "take a --quant of one type",
    )  # fmt: skip
    weights = ((name, merged.tensor(name)) for name in merged.shapes)
    with ReferenceRuntime(
        merged.base, threads, weights=weights, config=merged.config, tokenizer=merged.tokenizer,
        vocabulary=merged.vocabulary,
    ) as runtime:  # fmt: skip
        squares = _Squares(runtime.model)
        with Progress("gradients, tokens", sum(map(len, sequences))) as bar:
            for number, ids in enumerate(filter(len, sequences)):
                squares.read(ids, seed + number)
                bar.update(len(ids))
        uses = {merged.card.in_checkpoint(name): [use] for name, use in squares.layers()}
        embedding = merged.card.hf_name("token_embd.weight") or ""
        head = uses.pop(merged.card.hf_name("output.weight") or "", []) if merged.tied else []
        uses |= {embedding: [squares.lookup(), *head]}
    if not all(
        np.isfinite(part).all() for of in uses.values() for use in of for part in vars(use).values()
    ):
        raise ProofError("gradients of a layer are not finite", "are the base's weights whole?")
    return uses


class _Squares:
    """Sums of squares of each linear layer's inputs and output gradients, and of the embedding's."""

    def __init__(self, model: Any) -> None:
        import torch

        self._model, self._tokens = model.requires_grad_(False), 0
        self._inputs: dict[str, Any] = {}
        self._gradients: dict[str, Any] = {}
        self._embedding = model.get_input_embeddings()
        self._embedding.register_forward_hook(self._begin)
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_pre_hook(
                    lambda module, args, name=name: self._add(self._inputs, name, args[0])
                )
                module.register_full_backward_hook(
                    lambda module, into, out, name=name: self._add(self._gradients, name, out[0])
                )

    def _begin(self, module: Any, args: Any, output: Any) -> None:
        """The frozen model computes gradients from the embedding's output on."""
        output.requires_grad_()
        output.register_hook(lambda gradient: self._add(self._gradients, "", gradient))

    def _add(self, sums: dict[str, Any], name: str, values: Any) -> None:
        squares = values.detach().reshape(-1, values.shape[-1]).square().sum(0)
        sums[name] = sums[name].add_(squares) if name in sums else squares

    def read(self, ids: Sequence[int], seed: int) -> None:
        """One forward and backward pass."""
        import torch

        logits = self._model(torch.tensor([list(ids)]), use_cache=False).logits[0]
        drawn = torch.multinomial(
            logits.detach().softmax(-1), 1, generator=torch.Generator().manual_seed(seed)
        )
        torch.nn.functional.cross_entropy(logits, drawn[:, 0], reduction="sum").backward()
        self._tokens += len(ids)

    def layers(self) -> Iterator[tuple[str, Sensitivity]]:
        """(transformers' name of the weight, its sensitivity)"""
        for name in self._inputs:
            use = Sensitivity(self._mean(self._inputs[name]), self._mean(self._gradients[name]))
            yield f"{name}.weight", use

    def lookup(self) -> Sensitivity:
        rows = self._embedding.weight.shape[0]
        scale = float(getattr(self._embedding, "embed_scale", 1.0))  # Gemma's, after the lookup
        columns = self._mean(self._gradients[""]) * np.float32(scale**2)
        return Sensitivity(columns, np.full(rows, 1 / rows, np.float32))

    def _mean(self, sums: Any) -> Array:
        return np.asarray((sums / self._tokens).numpy(), np.float32)


def _choices(
    merged: Merged,
    targets: dict[str, Target],
    uses: dict[str, list[Sensitivity]],
    threads: int,
) -> tuple[dict[str, list[Choice]], int]:
    """(GGUF name -> bytes and error of each type that the tensor may have, types left out by MIN_KEPT)."""

    def of(name: str) -> list[tuple[Choice, float]]:
        target, part = targets[name], targets[name].parts[0]
        if part.source not in uses:
            raise FormatError(
                f"{name} is the weight of no linear layer of transformers' model",
                "a --quant of one type",
            )
        found = []
        for kind, size in _sizes(target, _allowed(target)).items():
            nats, kept = rounding(merged, part, uses[part.source], kind)
            found.append((Choice(kind, size, nats), kept))
        return found

    with ThreadPoolExecutor(threads) as pool:
        found = dict(zip(targets, pool.map(of, targets), strict=True))
    choices = {
        name: [choice for choice, kept in of_name if kept >= MIN_KEPT]
        or [choice for choice, _ in of_name]
        for name, of_name in found.items()
    }
    return choices, sum(len(found[name]) - len(kept) for name, kept in choices.items())


def rounding(
    merged: Merged, part: Part, uses: Sequence[Sensitivity], kind: str
) -> tuple[float, float]:
    """(nats a token, share of the adapter's change that is kept) of a whole tensor in a type.

    Both from some of its rows. The share is the landing coefficient (`edgeft.merge.landing`); 1 for a tensor
    that no adapter changes. It is low where the base's own weights lie on the grid of the type.
    """
    from gguf import GGMLQuantizationType

    rows = np.unique(np.linspace(0, part.rows - 1, min(part.rows, SAMPLED_ROWS)).astype(np.intp))
    values = np.ascontiguousarray(part.read(merged.rows, rows), np.float32)
    qtype = GGMLQuantizationType[kind.upper()]
    try:
        errors = ggml.dequantize(ggml.quantize(values, qtype, threads=1), qtype) - values
    except ValueError as error:
        raise ProofError(f"{part.source} cannot be stored as {qtype.name}: {error}") from None
    squares = errors.astype(np.float64) ** 2
    source = part.source_rows(rows)
    nats = 0.0
    for use in uses:
        by_row = use.rows[source] if part.transform.picks_rows else use.rows.mean()
        nats += float((squares @ use.columns.astype(np.float64) * by_row).sum())
    _, delta = merged.addends(part.source, source)
    change = np.zeros(0) if delta is None else part.apply(delta, rows).astype(np.float64)
    if np.square(change).sum() <= ZERO_DELTA_RATIO**2 * np.square(values).sum():
        return 0.5 * nats * part.rows / len(rows), 1.0
    kept = 1 + float((errors * change).sum() / (change * change).sum())
    return 0.5 * nats * part.rows / len(rows), kept


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
        f"{facts['nats']:.2g} nats of KL divergence a token"
    )
    if facts["left_out"]:
        say(
            f"  {facts['left_out']} times a type was left out that rounds the adapter's change away"
        )
