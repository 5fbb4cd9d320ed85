"""What an export measures on the fine-tune's own chats: the base's precision, the importance matrix.

    choices = choose(plan_export(options, view, data, parents))
    choices.view                                # the view on the chosen base

Both run the merged model as a temporary f16 GGUF, under the template that it was trained with.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeft import files, machine, store
from edgeft.adapter.config import adapter_manifest
from edgeft.adapter.read import Weighted
from edgeft.benchmarks.quality import evaluate
from edgeft.converters.gguf.convert import convert
from edgeft.converters.gguf.plan import make_plan
from edgeft.converters.options import ConvertOptions
from edgeft.data.splits import fingerprint
from edgeft.export.collect_imatrix import collect
from edgeft.export.own_chats import LONGEST, Chats, sample
from edgeft.export.plan import ExportPlan
from edgeft.merge.base_weights import BasePrecision
from edgeft.merge.landing import LandingProof
from edgeft.merge.view import Merged
from edgeft.progress import say
from edgeft.records import Example
from edgeft.runtimes.gguf import GGUFRuntime
from edgeft.weights import imatrix


@dataclass(frozen=True)
class Choices:
    """What holds for every artifact of an export."""

    view: Merged
    """on the chosen precision of the base"""
    base_facts: dict[str, Any]
    """which precision, and why; for the manifest"""
    imatrix: imatrix.Imatrix | None
    """collected for --imatrix auto"""


def choose(plan: ExportPlan) -> Choices:
    """Choose the base's precision, and collect the importance matrix where it is asked for."""
    options, view, data = plan.options, plan.view, plan.data
    if options.base_precision == "auto":
        precision, facts = choose_base(view, options.adapter, data, options.out, options.threads)
    else:
        precision, facts = (
            options.base_precision,
            {"chosen": options.base_precision, "why": "asked for"},
        )
    view = view.with_base(precision)
    importance = None
    if options.imatrix == "auto":
        path = own_imatrix(
            view, data, options.calibration_tokens, options.out, options.threads, plan.parents
        )
        importance = imatrix.read(path)
    return Choices(view, facts, importance)


def choose_base(
    view: Merged, adapters: tuple[Weighted, ...], data: Chats, out: Path, threads: int
) -> tuple[BasePrecision, dict[str, Any]]:
    """Which values the delta is added to, and why: (choice, facts for the manifest).

    The usual advice is the stored 16-bit weights. A QLoRA adapter was trained on NF4 values, and
    which of the two keeps more of it depends on the run. So both are measured on the validation
    split.
    """
    if not adapters:
        return "stored", {"chosen": "stored", "why": "no adapter"}
    losses, count, problem = _losses(view, data, out, threads)
    if len(losses) < 2:
        manifests = [adapter_manifest(adapter.path) for adapter in adapters]
        on_nf4 = all("nf4" in manifest.get("facts", {}) for manifest in manifests)
        choice: BasePrecision = "nf4" if on_nf4 else "stored"
        say(
            f"base precision {choice}, not measured: {problem} (--validation-data FILE measures it)"
        )
        return choice, {"chosen": choice, "why": f"not measured: {problem}"}
    choice = min(losses, key=lambda name: losses[name])
    say(
        f"base precision {choice}: validation loss stored {losses['stored']:.4f}, nf4 {losses['nf4']:.4f} "
        f"on {count} examples"
    )
    return choice, {"chosen": choice, "why": "smaller validation loss", "loss": losses,
                    "examples": count}  # fmt: skip


def _losses(
    view: Merged, data: Chats, out: Path, threads: int
) -> tuple[dict[BasePrecision, float], int, str]:
    """(precision -> mean negative log likelihood of the answers, examples, why it is not measured)."""
    losses: dict[BasePrecision, float] = {}
    count = 0
    for candidate in ("stored", "nf4") if data.validation else ():
        with f16_model(view.with_base(candidate), out, threads) as model:
            short = [e for e in data.validation if _tokens(model, e) <= model.context]
            if not short:
                return {}, 0, f"no validation example is within {model.context} tokens"
            losses[candidate] = round(evaluate.answer_nll(model, short), 5)
            count = len(short)
    return losses, count, data.why_no_validation


def _tokens(model: GGUFRuntime, example: Example) -> int:
    return len(model.encode(model.chat.render(example.messages, generation_prompt=False)))


def own_imatrix(
    view: Merged,
    data: Chats,
    budget: int,
    out: Path,
    threads: int,
    parents: dict[str, str],
) -> Path:
    """The importance matrix of the merged model on the chats that it learned: out/imatrix.gguf.

    `budget`: tokens at most. The file has llama.cpp's format, so llama-quantize reads it, too.
    """
    target = out / "imatrix.gguf"
    options = {
        "chats": fingerprint(data.training), "text": files.text_sha256(data.text),
        "tokens": budget, "base_precision": view.base_precision,
    }  # fmt: skip
    if store.find_complete(target, "imatrix", options, parents):
        return target
    with (
        store.writing(
            target, kind="imatrix", options=options, parents=parents, overwrite=True
        ) as work,
        f16_model(view, out, threads) as model,
    ):
        sequences = sample(view, data, budget, min(LONGEST, model.context))
        imatrix.write(collect(model.path, sequences, threads, dataset=data.name), work.path)
        tokens = sum(map(len, sequences))
        work.facts |= {"chats": len(sequences), "tokens": tokens}
    say(f"{target}  importance from {len(sequences)} chats, {tokens} tokens")
    return target


@contextlib.contextmanager
def f16_model(merged: Merged, out: Path, threads: int) -> Iterator[GGUFRuntime]:
    """The merged model, run from a temporary file in `out`."""
    machine.preflight(out, "measuring on the model's own chats", merged.bytes_as(16))
    options = ConvertOptions(threads=threads)
    with files.scratch(out) as folder:
        file, plan = folder / "f16.gguf", make_plan(merged, "f16", options)
        convert(merged, plan, file, options, LandingProof(merged))
        with GGUFRuntime(file, threads=threads) as model:
            yield model
