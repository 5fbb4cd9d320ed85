"""ExportPlan -> Choices: the base's precision and the importance matrix, measured on chats.

    choices = choose(plan_export(options, view, data, parents))
    choices.view                                # the view with the chosen base precision

Both measurements run the merged model as a temporary f16 GGUF. Its chat template is the one that the
adapter was trained with.
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
from edgeft.export.fine_tune_data import MAX_CHAT_TOKENS, FineTuneData, calibration_ids
from edgeft.export.plan import ExportPlan
from edgeft.export.ship import ship_target
from edgeft.merge.base_weights import BasePrecision
from edgeft.merge.landing import LandingProof
from edgeft.merge.view import Merged
from edgeft.progress import say
from edgeft.records import Example
from edgeft.runtimes.gguf import GGUFRuntime
from edgeft.weights import imatrix


@dataclass(frozen=True)
class Choices:
    """Settings that all artifacts of an export share."""

    view: Merged
    """with the chosen base precision"""
    base_facts: dict[str, Any]
    """the chosen base precision and the reason, for the manifest"""
    imatrix: imatrix.Imatrix | None
    """of --imatrix auto, else None"""


def choose(plan: ExportPlan) -> Choices:
    """Choose the base precision; collect the importance matrix for --imatrix auto."""
    options, view, data = plan.options, plan.view, plan.data
    if options.base_precision == "auto":
        precision, facts = choose_base_precision(
            view, options.adapter, data, options.out, options.threads
        )
    else:
        precision, facts = (
            options.base_precision,
            {"chosen": options.base_precision, "why": "asked for"},
        )
    view = view.with_base(precision)
    importance = None
    if options.imatrix == "auto":
        imatrix_path = auto_imatrix(
            view, data, plan.calibration_tokens, options.out, options.threads, plan.parents
        )
        importance = imatrix.read(imatrix_path)
    return Choices(view, facts, importance)


def choose_base_precision(
    view: Merged, adapters: tuple[Weighted, ...], data: FineTuneData, out: Path, threads: int
) -> tuple[BasePrecision, dict[str, Any]]:
    """The base precision with the smaller validation loss, and facts for the manifest.

    The usual advice is to merge into the stored 16-bit weights. A QLoRA adapter was trained on NF4
    (or FP4, int8) values. Which of the two gives the smaller loss depends on the run, so both are
    measured. Other methods of edgeft train on the stored weights.
    """
    if ship := ship_target(adapters):
        why = f"trained for {ship.quant} on it"
        return ship.base_precision, {"chosen": ship.base_precision, "why": why}
    if not adapters:
        return "stored", {"chosen": "stored", "why": "no adapter"}
    trained_on = [_trained_on(adapter.path) for adapter in adapters]
    if set(trained_on) == {"stored"}:
        return "stored", {"chosen": "stored", "why": "trained on the stored weights"}
    quantized: BasePrecision = next(
        (kind for kind in trained_on if kind and kind != "stored"), "nf4"
    )
    as_trained: BasePrecision = quantized if set(trained_on) == {quantized} else "stored"
    if view.is_reward_model:
        return as_trained, {"chosen": as_trained, "why": "a reward model rates as in its training"}
    losses, count, problem = _losses(view, data, ("stored", quantized), out, threads)
    if len(losses) < 2:
        choice = as_trained
        say(
            f"base precision {choice}, not measured: {problem} (--validation-data FILE measures it)"
        )
        return choice, {"chosen": choice, "why": f"not measured: {problem}"}
    choice = min(losses, key=lambda name: losses[name])
    say(
        f"base precision {choice}: validation loss stored {losses['stored']:.4f}, {quantized} "
        f"{losses[quantized]:.4f} on {count} examples"
    )
    return choice, {"chosen": choice, "why": "smaller validation loss", "loss": losses,
                    "examples": count}  # fmt: skip


def _trained_on(adapter: Path) -> BasePrecision | None:
    """Values of the base that the adapter was trained on; None where its manifest does not say it."""
    facts = adapter_manifest(adapter).get("facts", {})
    if "nf4" in facts:
        kind: BasePrecision = facts["nf4"].get("kind") or "nf4"
        return kind
    return "stored" if "compute_type" in facts else None


def _losses(
    view: Merged,
    data: FineTuneData,
    candidates: tuple[BasePrecision, ...],
    out: Path,
    threads: int,
) -> tuple[dict[BasePrecision, float], int, str]:
    """(precision -> mean NLL of the answers in nats per token, examples, reason for no losses)."""
    losses: dict[BasePrecision, float] = {}
    count = 0
    for candidate in candidates if data.validation else ():
        with f16_model(view.with_base(candidate), out, threads) as model:
            fitting = [e for e in data.validation if _token_count(model, e) <= model.context]
            if not fitting:
                return {}, 0, f"no validation example is within {model.context} tokens"
            losses[candidate] = round(evaluate.answer_nll(model, fitting), 5)
            count = len(fitting)
    return losses, count, data.why_no_validation


def _token_count(model: GGUFRuntime, example: Example) -> int:
    text = model.chat.render(example.messages, generation_prompt=False, tools=example.tools)
    return len(model.encode(text))


def auto_imatrix(
    view: Merged,
    data: FineTuneData,
    max_tokens: int,
    out: Path,
    threads: int,
    parents: dict[str, str],
) -> Path:
    """Collect the merged model's importance matrix on the calibration data: out/imatrix.gguf.

    `max_tokens`: calibration tokens at most. llama-quantize can read the file, too.
    """
    target = out / "imatrix.gguf"
    options = {
        "chats": fingerprint(data.training), "text": files.text_sha256(data.text),
        "tokens": max_tokens, "base_precision": view.base_precision,
    }  # fmt: skip
    with store.writing_shared(target, kind="imatrix", options=options, parents=parents) as work:
        if work is None:
            return target
        with f16_model(view, out, threads) as model:
            sequences = calibration_ids(view, data, max_tokens, min(MAX_CHAT_TOKENS, model.context))
            imatrix.write(collect(model.path, sequences, threads, dataset=data.name), work.path)
        tokens = sum(map(len, sequences))
        work.facts |= {"chats": len(sequences), "tokens": tokens}
    say(f"{target}  importance from {len(sequences)} chats, {tokens} tokens")
    return target


@contextlib.contextmanager
def f16_model(merged: Merged, out: Path, threads: int) -> Iterator[GGUFRuntime]:
    """The merged model as an f16 GGUF in a temporary folder below `out`."""
    machine.preflight(out, "measuring the merged model", merged.bytes_as(16))
    options = ConvertOptions(threads=threads)
    with files.scratch(out) as folder:
        path, plan = folder / "f16.gguf", make_plan(merged, "f16", options)
        convert(merged, plan, path, options, LandingProof(merged))
        with GGUFRuntime(path, threads=threads) as model:
            yield model
