"""ExportOptions -> verified Artifacts: the work of `edgeft merge-export`.

    export(ExportOptions(adapter=(Weighted(Path("adapter")),), out=Path("out"), quants=("f16",)))

Four steps: plan the artifacts (`plan.py`), choose the base precision and collect the importance
matrix (`choices.py`), write every artifact in one pass over the merged weights, and verify the
finished file against tokenizer and live model (`verify.py`). A file that fails a check never gets
its final name.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from edgeft import machine, store
from edgeft.adapter.config import adapter_manifest
from edgeft.adapter.folder import is_reward_model, recorded_base
from edgeft.adapter.read import Weighted
from edgeft.base.resolve import resolve_base
from edgeft.converters.options import ConvertOptions
from edgeft.errors import AdapterError, FormatError, InputError, ProofError, StaleError
from edgeft.export.choices import Choices, choose
from edgeft.export.fine_tune_data import FineTuneData, fine_tune_data
from edgeft.export.materials import REWARD
from edgeft.export.model_card import Origin, write_cards
from edgeft.export.modelfile import modelfile
from edgeft.export.options import ExportOptions
from edgeft.export.plan import (
    UNQUANTIZED_BITS,
    ExportPlan,
    Item,
    check_files,
    check_gptq_memory,
    gptq_footprint,
    parents_of,
    plan_export,
    requested,
)
from edgeft.export.ship import ShipProof, describe, ship_target
from edgeft.export.verify import ArtifactVerifier
from edgeft.export.verify_reward import RewardVerifier
from edgeft.files import claimed, format_bytes, remove, write_text
from edgeft.formats import load
from edgeft.gptq.quantize import Calibration
from edgeft.merge.landing import LandingProof, Proof
from edgeft.merge.view import Merged, open_merged
from edgeft.progress import say
from edgeft.records import Artifact, Manifest
from edgeft.runtimes import trial
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.tokenizer.hf_files import template_source
from edgeft.tokenizer.stops import ending_text
from edgeft.tokenizer.template_diff import template_diff

MAX_QUANTIZED_BITS = 9
"""bits of a quantized weight at most, for the check of free disk space"""
EXPORT_MEMORY_BYTES = 300_000_000
"""memory of an export beside the model, for the check of free memory"""


def export(options: ExportOptions) -> list[Artifact]:
    """Write every requested artifact that is not complete yet; return all of them.

    InputError, FormatError, AdapterError, StaleError or ResourceError before any work. ProofError
    where an artifact does not hold the merged model.
    """
    options = _with_trained_type(_with_reward_format(options))
    requested(options)  # reports an unknown format before a missing file
    check_files(options)
    base = base_of(options)
    view = open_merged(base, options.adapter, double_quant=options.double_quant)
    if view.is_reward_model:
        _check_reward_model(options, view)
    parents = parents_of(options, base)
    data = data_of(options, base).renderable(ChatTemplate.from_folder(view.tokenizer))
    plan = plan_export(options, view, data, parents)
    file_plans = [_file_plan(plan, item) for item in plan.items]
    if todo := [item for item in plan.items if not item.complete]:
        _check_resources(plan, todo)
    for note in view.notes:
        say(note)
    _report_template(view)
    _report_ending_text(view)
    choices: Choices | None = None
    artifacts = []
    with contextlib.ExitStack() as resources:
        for item in todo:
            resources.enter_context(claimed(item.target))
        verifier = _verifier(options, view, data)
        resources.enter_context(verifier)
        for item, file_plan in zip(plan.items, file_plans, strict=True):
            if item.complete:
                artifacts.append(_complete_artifact(item, view))
                continue
            _check_resources(plan, [item])
            choices = choices or choose(plan)
            artifacts.append(_write(plan, item, file_plan, choices, verifier))
    name = options.base or _recorded_base(options.adapter)
    write_cards(artifacts, Origin.of(name, base, view.card.family, options.adapter, parents))
    return artifacts


def _with_trained_type(options: ExportOptions) -> ExportOptions:
    """Without --quant the type that the adapter was trained for, and without --format its format."""
    target = ship_target(options.adapter)
    trained = target.format if target else None
    if not target or not trained or options.quants or options.formats not in ((), (trained.name,)):
        return options
    say(f"{target.quant}: the type that the adapter was trained for")
    return dataclasses.replace(options, formats=(trained.name,), quants=(target.quant,))


def _with_reward_format(options: ExportOptions) -> ExportOptions:
    """The format of a reward model is a Hugging Face folder, where the options name none."""
    if options.formats or not any(is_reward_model(one.path) for one in options.adapter):
        return options
    return dataclasses.replace(options, formats=("hf",))


def _check_reward_model(options: ExportOptions, view: Merged) -> None:
    """AdapterError for a sum of adapters, FormatError for a format from which no program reads the head of a
    reward model."""
    if len(options.adapter) > 1:
        raise AdapterError("a reward model is exported alone, not summed with other adapters")
    if options.imatrix == "auto":
        raise FormatError(
            "--imatrix auto runs a language model, and this is a reward model", "--imatrix FILE"
        )
    possible = ("hf", "gguf") if view.card.reward_head else ("hf",)
    for fmt, quant in requested(options):
        if fmt.name not in possible or quant in (*fmt.solved, fmt.sized):
            raise FormatError(
                f"{options.adapter[0].path} is a reward model, which cannot be exported as {fmt.name} {quant}",
                "--format hf: transformers, vLLM and edgeft score read its head from there",
            )


def _verifier(
    options: ExportOptions, view: Merged, data: FineTuneData
) -> ArtifactVerifier | RewardVerifier:
    if view.is_reward_model:
        return RewardVerifier(
            options.adapter, data.validation, options.threads, options.compare_live
        )
    return ArtifactVerifier(
        options.adapter, data.validation, options.threads, options.compare_live,
        answers=data.validation or data.training,
    )  # fmt: skip


def _report_template(view: Merged) -> None:
    """Show how the adapter's chat template differs from the base's: who wrote it decides what is asked."""
    base, own = template_source(view.base), template_source(view.tokenizer)
    if base and own and (lines := template_diff(base, own)):
        say("the chat template of the adapter replaces the base's:")
        for line in lines:
            say(f"  {line}")


def _report_ending_text(view: Merged) -> None:
    if text := ending_text(ChatTemplate.from_folder(view.tokenizer)):
        say(
            f"the chat template ends an answer with the text {text!r} and no token: only programs "
            "that take stop texts can stop there. Train with a template that writes eos_token instead"
        )


def _file_plan(plan: ExportPlan, item: Item) -> Any:
    """The converter's plan of an artifact, or what may be chosen for it; None for a complete one."""
    if item.complete:
        return None
    file_plan = load(item.format.plan)(plan.view, item.quant, plan.convert)
    check_gptq_memory(plan, item)
    if not item.sized:
        return file_plan
    from edgeft.export.type_budget import type_budget

    assert plan.options.max_size
    return type_budget(plan, file_plan, plan.options.max_size)


def _complete_artifact(item: Item, view: Merged) -> Artifact:
    """The artifact of a complete item; writes its Modelfile where that is missing."""
    assert item.complete is not None
    if item.gptq_blocks.is_dir():  # left over where a run was killed after its last step
        with contextlib.suppress(StaleError), claimed(item.target):
            remove(item.gptq_blocks)
    say(f"{item.target} is complete, nothing to do")
    _write_modelfile(item, view, item.complete)
    return Artifact(item.target, item.format.name, item.quant, item.complete)


def _check_resources(plan: ExportPlan, items: Sequence[Item]) -> None:
    """ResourceError where disk or memory is too small for the artifacts and what they are made from."""
    disk = sum(
        plan.view.bytes_as(UNQUANTIZED_BITS.get(item.quant, MAX_QUANTIZED_BITS)) for item in items
    )
    blocks = [gptq_footprint(plan)[0]] if any(item.uses_gptq for item in items) else []
    scratch = [plan.view.bytes_as(16)] if plan.convert.imatrix_pending else []
    disk += max(blocks + scratch, default=0)
    names = ", ".join(item.quant for item in items)
    machine.preflight(plan.options.out, f"exporting {names}", disk, EXPORT_MEMORY_BYTES)


def _write(
    plan: ExportPlan,
    item: Item,
    file_plan: Any,
    choices: Choices,
    verifier: ArtifactVerifier | RewardVerifier,
) -> Artifact:
    """Convert, prove and verify one artifact; it gets its final name after the last check."""
    started = time.perf_counter()
    target = ship_target(plan.options.adapter)
    landing = ShipProof(choices.view, target) if target else LandingProof(choices.view)
    with store.writing(
        item.target, kind="artifact", options=item.manifest_options, parents=plan.parents,
        overwrite=plan.options.overwrite,
    ) as work:  # fmt: skip
        options = dataclasses.replace(plan.convert, imatrix=choices.imatrix or plan.convert.imatrix)
        if item.sized:
            from edgeft.export.type_budget import choose_types

            file_plan, work.facts["budget"] = choose_types(file_plan, plan, choices.view)
        if item.uses_gptq:
            calibration = _calibration(plan, item)
            options = dataclasses.replace(options, calibration=calibration)
            work.facts["calibration"] = _calibration_facts(calibration, plan.data)
        with _summed_as_trained() if target else contextlib.nullcontext():
            work.facts |= _convert(item, file_plan, choices.view, work.path, options, landing)
        _check_size(work.path, plan.options.max_size if item.sized else None)
        if isinstance(landing, ShipProof):
            work.facts["ship"] = landing.compare(work.path, item.format)
        proof = landing.result()
        convert_seconds = time.perf_counter() - started
        work.facts |= {
            "seconds": round(convert_seconds, 2), "proof": proof.to_json(),
            "base_precision": choices.base_facts,
            "parity": verifier.verify(item.format, item.quant, work.path, choices.view),
        } | ({REWARD: True} if choices.view.is_reward_model else {})  # fmt: skip
    if item.format.trial:
        trial.remember(item.target)
    remove(item.gptq_blocks)
    manifest = store.read_manifest(item.target)
    assert manifest is not None
    _write_modelfile(item, choices.view, manifest)
    _report(item, manifest, proof, convert_seconds, time.perf_counter() - started)
    return Artifact(item.target, item.format.name, item.quant, manifest)


def _summed_as_trained() -> AbstractContextManager[Any]:
    """Products of matrices have one thread each, as in a training with --ship: their last bits may differ."""
    from threadpoolctl import threadpool_limits

    limits: AbstractContextManager[Any] = threadpool_limits(1, user_api="blas")
    return limits


def _check_size(path: Path, max_size: int | None) -> None:
    if max_size and (size := path.stat().st_size) > max_size:
        raise ProofError(
            f"the file has {format_bytes(size)}, more than --max-size {format_bytes(max_size)}"
        )


def _convert(
    item: Item,
    file_plan: Any,
    view: Merged,
    out: Path,
    options: ConvertOptions,
    landing: LandingProof,
) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = load(item.format.converter)(view, file_plan, out, options, landing)
    except KeyboardInterrupt:
        if item.gptq_blocks.is_dir():
            say("stopped: run the same command again to continue at this block")
        raise
    return facts


def _calibration(plan: ExportPlan, item: Item) -> Calibration:
    options = plan.options
    return Calibration(
        plan.sequences, item.gptq_blocks, options.dampening_frac, options.offload_activations
    )


def _calibration_facts(calibration: Calibration, data: FineTuneData) -> dict[str, Any]:
    return {
        "of": data.name,
        "sequences": len(calibration.sequences),
        "tokens": sum(map(len, calibration.sequences)),
        "sha256": calibration.fingerprint(),
    }


def _write_modelfile(item: Item, view: Merged, manifest: Manifest) -> None:
    if item.modelfile and not item.modelfile.is_file() and not view.is_reward_model:
        chat = ChatTemplate.from_folder(view.tokenizer)
        adds_bos = manifest.facts["parity"].get("adds_bos", False)
        write_text(item.modelfile, modelfile(chat, item.target.name, adds_bos))


def _report(
    item: Item, manifest: Manifest, proof: Proof, convert_seconds: float, seconds: float
) -> None:
    """Print size, times and proofs of a finished artifact; `seconds`: of all steps."""
    facts = manifest.facts
    size = sum(record.size for record in manifest.files.values())
    say(
        f"{item.target}  {format_bytes(size)} in {seconds:.1f} s, {convert_seconds:.1f} s of it to write"
    )
    say(f"  {proof}")
    if ship := facts.get("ship"):
        say(f"  {describe(ship, item.quant)}")
    live = facts["parity"]["live"]
    if isinstance(live, dict):
        change = f", {live['beta']:.3f} of the adapter's change" if live["beta"] else ""
        say(
            f"  as the live model on {live['prompts']} prompts: KL {live['kl']:.2g}, same first "
            f"choice {live['same_top']:.1%}{change}"
        )
    if scores := facts["parity"].get("scores"):
        say(
            f"  as the live reward model on {scores['conversations']} conversations: scores differ by "
            f"{scores['difference']:.2g} at most, their spread is {scores['spread']:.2g}"
        )
    if rounded := facts.get("rounded"):
        say(
            f"  {rounded} of {facts['quantized']} layers saw too few tokens for GPTQ and "
            "were rounded: more --calibration-tokens, or other chats"
        )
    if missing := facts.get("without_importance"):
        say(f"  the importance matrix has nothing for {missing} of the quantized tensors")
    if not proof.faithful:
        say(
            f"  {item.quant} keeps {proof.beta:.0%} of the adapter's change: measure it, or go finer"
        )


def base_of(options: ExportOptions) -> Path:
    """The folder of the base that the options or the adapter name."""
    return resolve_base(options.base or _recorded_base(options.adapter))


def data_of(options: ExportOptions, base: Path) -> FineTuneData:
    """Examples for calibration and validation: of the options, or of the adapter's training."""
    return fine_tune_data(
        options.adapter or _trained_base(base),
        options.validation_data,
        options.calibration,
        options.bad_rows,
        options.calibration_text,
    )


def _trained_base(base: Path) -> tuple[Weighted, ...]:
    """The base where edgeft trained all of it: its manifest names the data, as an adapter's does."""
    return (Weighted(base),) if "data" in adapter_manifest(base).get("options", {}) else ()


def _recorded_base(adapters: tuple[Weighted, ...]) -> str:
    """The base of the first adapter, by its manifest or its adapter_config.json."""
    if not adapters:
        raise InputError("nothing to export", "--adapter, --base or both")
    adapter = adapters[0].path
    recorded = adapter_manifest(adapter).get("options", {}).get("base") or recorded_base(adapter)
    if not recorded:
        raise InputError(f"{adapter} does not say which base it was trained on", "--base")
    return str(recorded)
