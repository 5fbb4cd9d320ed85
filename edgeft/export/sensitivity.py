"""Merged view + texts -> what rounding errors of each weight cost, in nats of KL divergence a token.

    uses = sensitivities(merged, sequences, folder, threads=2)
    uses["model.layers.0.mlp.up_proj.weight"][0].columns

The merged model reads the texts in float32. For each linear layer the mean squares of its inputs x and of the
gradients g of its outputs are measured; the loss is that of tokens drawn from the model's own distribution, so that
g is that of the Fisher information. With this diagonal of K-FAC (Martens and Grosse, arXiv 1503.05671) errors D of
a weight cost about 1/2 sum_ij E[g_i^2] E[x_j^2] D_ij^2 nats a token. So those of all tensors have one unit and add up.

Errors that many weights share are no such noise: a share of an adapter's change, or of the weight itself. For them
the derivative of the loss of each text along the change and along the weight is measured (`Sensitivity.slopes`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeft import machine
from edgeft.errors import InputError, ProofError
from edgeft.merge.view import Merged
from edgeft.progress import Progress
from edgeft.runtimes.reference import ReferenceRuntime
from edgeft.weights.checkpoint import Array

MAX_SEQUENCE_TOKENS = 512
"""tokens of a text that are read together"""
LOGIT_COPIES = 5
"""logits, their softmax and gradients that a backward pass holds at once"""


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
    slopes: Array
    """(2, texts): derivative of each text's loss along the adapter's change of the weight, and along the weight.
    Where weights w get errors of a_w times the change and b_w times the weight, the square of the sum over w
    of a_w slopes_w[0] + b_w slopes_w[1], summed over the texts, is their cost in nats a token"""


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
    adapted = sum(math.prod(s) for name, s in merged.shapes.items() if merged.adapted(name))
    machine.preflight(
        folder, "measuring which weights need bits", 0,
        merged.bytes_as(32) + 2 * adapted + 4 * MAX_SEQUENCE_TOKENS * saved,
        "take a --quant of one type",
    )  # fmt: skip
    weights = ((name, merged.tensor(name)) for name in merged.shapes)
    with ReferenceRuntime(
        merged.base, threads, weights=weights, config=merged.config, tokenizer=merged.tokenizer,
        vocabulary=merged.vocabulary,
    ) as runtime:  # fmt: skip
        squares = _Squares(runtime.model, merged)
        with Progress("gradients, tokens", sum(map(len, sequences))) as bar:
            for number, ids in enumerate(filter(len, sequences)):
                squares.read(ids, seed + number)
                bar.update(len(ids))
        uses = {name: [use] for name, use in squares.layers()}
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

    def __init__(self, model: Any, merged: Merged) -> None:
        import torch

        self._model, self._tokens = model.requires_grad_(False), 0
        self._inputs: dict[str, Any] = {}
        self._gradients: dict[str, Any] = {}
        self._slopes: list[dict[str, list[float]]] = []
        """of each sequence: weight -> derivatives of its loss along the adapter's change, and along the weight"""
        self._embedding = model.get_input_embeddings()
        self._embedding.register_forward_hook(self._begin)
        for module_name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear):
                name = merged.card.in_checkpoint(f"{module_name}.weight")
                change = merged.addends(name, slice(None))[1] if merged.adapted(name) else None
                self._watch(module, name, change)

    def _watch(self, module: Any, name: str, change: Any) -> None:
        """`change`: (rows, columns) of the adapter or None; it is held in bfloat16."""
        import torch

        held = None if change is None else torch.from_numpy(change).bfloat16()
        inputs: list[Any] = []

        def keep(module: Any, args: Any) -> None:
            self._add(self._inputs, name, args[0])
            inputs.append(args[0].detach())

        def derive(module: Any, into: Any, out: Any) -> None:
            self._add(self._gradients, name, out[0])
            read = inputs.pop()
            slopes = self._slopes[-1].setdefault(name, [0.0, 0.0])
            if held is not None:
                slopes[0] += float((out[0] * (read @ held.float().t())).sum())
            slopes[1] += float((into[0] * read).sum())

        module.register_forward_pre_hook(keep)
        module.register_full_backward_hook(derive)

    def _begin(self, module: Any, args: Any, output: Any) -> None:
        """The frozen model computes gradients from the embedding's output on."""
        output.requires_grad_()
        states = output.detach()

        def derive(gradient: Any) -> None:
            self._add(self._gradients, "", gradient)
            self._slopes[-1][""] = [0.0, float((gradient * states).sum())]

        output.register_hook(derive)

    def _add(self, sums: dict[str, Any], name: str, values: Any) -> None:
        squares = values.detach().reshape(-1, values.shape[-1]).square().sum(0)
        sums[name] = sums[name].add_(squares) if name in sums else squares

    def read(self, ids: Sequence[int], seed: int) -> None:
        """One forward and backward pass."""
        import torch

        self._slopes.append({})
        logits = self._model(torch.tensor([list(ids)]), use_cache=False).logits[0]
        drawn = torch.multinomial(
            logits.detach().softmax(-1), 1, generator=torch.Generator().manual_seed(seed)
        )
        torch.nn.functional.cross_entropy(logits, drawn[:, 0], reduction="sum").backward()
        self._tokens += len(ids)

    def layers(self) -> Iterator[tuple[str, Sensitivity]]:
        """(checkpoint's name of the weight, its sensitivity)"""
        for name in self._inputs:
            squares = self._mean(self._inputs[name]), self._mean(self._gradients[name])
            yield name, Sensitivity(*squares, self._slopes_of(name))

    def lookup(self) -> Sensitivity:
        rows = self._embedding.weight.shape[0]
        scale = float(getattr(self._embedding, "embed_scale", 1.0))  # Gemma's, after the lookup
        columns = self._mean(self._gradients[""]) * np.float32(scale**2)
        return Sensitivity(columns, np.full(rows, 1 / rows, np.float32), self._slopes_of(""))

    def _slopes_of(self, name: str) -> Array:
        """Half of the mean square of a sum of derivatives is its cost, so each is over sqrt(2 tokens)."""
        slopes = [of.get(name, (0.0, 0.0)) for of in self._slopes]
        return np.array(slopes, np.float32).T / np.float32(math.sqrt(2 * self._tokens))

    def _mean(self, sums: Any) -> Array:
        return np.asarray((sums / self._tokens).numpy(), np.float32)
