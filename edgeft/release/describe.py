"""What the gate measured and decided -> the Release that reports show."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edgeft import __version__, machine, store
from edgeft.benchmarks.quality import evaluate
from edgeft.export.ship import describe as describe_ship
from edgeft.records import Arm, Example, Release, Score
from edgeft.release import wording
from edgeft.release.forgetting import forgetting_json, judge_forgetting
from edgeft.release.judge import Decision, JudgedCandidate
from edgeft.release.measure import Fidelities, MeasuredBase, Timings
from edgeft.release.prepare import GateRun
from edgeft.release.refusals import count_refusals
from edgeft.release.scores import score_interval, slices

MAX_LOSSES = 20
"""lost items that a report shows"""


@dataclass(frozen=True)
class Measurements:
    """All that one run of the gate measured and judged."""

    base: Sequence[MeasuredBase]
    baseline: Score
    judged: Sequence[JudgedCandidate]
    """from large to small, up to the first that did not pass"""
    untested: Sequence[Path]
    """candidates behind that one"""
    timings: Timings
    fidelities: Fidelities
    floor: dict[str, Any] | None


def describe(
    run: GateRun, measured: Measurements, decision: Decision, commands: Sequence[str]
) -> Release:
    """Arms in the order of the report: base, baseline, candidates from large to small."""
    options = run.options
    base_arms = [
        _arm(base.name, base.kind, options.base, base.score)
        for base in measured.base
        if options.base
    ]
    baseline_name = run.names[options.baseline]
    baseline = _arm(baseline_name, "baseline", options.baseline, measured.baseline)
    tested = [_tested_arm(run, candidate, measured) for candidate in measured.judged]
    untested = [_arm(run.names[path], "candidate", path, None) for path in measured.untested]
    arms = [_with_timing(arm, measured.timings) for arm in (baseline, *tested, *untested)]
    return Release(
        outcome=decision.outcome,
        ship=decision.ship,
        reason=decision.reason,
        task=_task(run, measured.baseline),
        arms=_with_pareto([*base_arms, *arms]),
        machine=machine.describe_machine() | {"threads": run.eval_options.threads or "all cores"},
        safety=_safety(run, measured.judged),
        forgetting=_forgetting(run, measured),
        floor=measured.floor,
        commands=tuple(commands),
        notes=_notes(run, measured, baseline, tested),
        edgeft=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _arm(name: str, kind: str, path: Path, score: Score | None) -> Arm:
    return Arm(
        name=name, kind=kind, path=str(path), size=evaluate.size_of(path),
        identity=store.identity(path),
        accuracy=score.accuracy if score else None,
        interval=score_interval(score.values) if score else None,
        stopped=sum(score.stopped) / len(score.stopped) if score else None,
        lineage=_lineage(path),
    )  # fmt: skip


def _tested_arm(run: GateRun, candidate: JudgedCandidate, measured: Measurements) -> Arm:
    before, after = candidate.measured.baseline, candidate.measured.score
    path, retention = candidate.measured.path, candidate.retention
    examples = run.items.examples[: len(after.values)]
    best_base = max((b.score for b in measured.base), key=lambda s: s.accuracy, default=None)
    return dataclasses.replace(
        _arm(candidate.name, "candidate", path, after),
        verdict=wording.verdict_json(candidate.verdict, candidate.reason),
        retention=wording.retention_json(retention) if retention else None,
        slices=slices(examples, before, after, best_base),
        losses=_losses(examples, before, after),
        fidelity=measured.fidelities.get(path),
    )


def _with_timing(arm: Arm, timings: Timings) -> Arm:
    if Path(arm.path) not in timings:
        return arm
    speed, memory = (dataclasses.asdict(part) for part in timings[Path(arm.path)])
    return dataclasses.replace(arm, speed=speed, memory=memory)


def _task(run: GateRun, baseline: Score) -> dict[str, Any]:
    return {
        "name": Path(run.eval_options.items or "").stem, "items": len(baseline.values),
        "identity": baseline.items, "scorer": baseline.scorer, "margin": run.margin,
    }  # fmt: skip


def _safety(run: GateRun, judged: Sequence[JudgedCandidate]) -> dict[str, Any] | None:
    """Counts of the baseline and of each tested candidate, and the candidates' verdicts."""
    if not run.options.refusals:
        return None
    arms: dict[str, Any] = {}
    for candidate in judged:
        scores, verdict = candidate.measured.refusals, candidate.refusals
        assert scores and verdict
        baseline = run.names[run.options.baseline]
        arms.setdefault(baseline, count_refusals(scores.baseline, scores.labels))
        counts = count_refusals(scores.candidate, scores.labels)
        arms[candidate.name] = counts | dataclasses.asdict(verdict)
    return {"name": run.options.refusals.name, "arms": arms}


def _forgetting(run: GateRun, measured: Measurements) -> dict[str, Any] | None:
    """The base, the baseline and each tested candidate on the general items."""
    first = measured.judged[0].measured.forgetting
    if not (first and run.general_items):
        return None
    known = max(base.score.accuracy for base in measured.base)
    fine_tune = judge_forgetting(
        dataclasses.replace(first, candidate=first.baseline), measured.baseline.accuracy - known
    )
    arms = {
        "base": {"accuracy": first.base.accuracy, "interval": score_interval(first.base.values)},
        run.names[run.options.baseline]: forgetting_json(fine_tune),
    }
    for candidate in measured.judged:
        assert candidate.forgetting
        arms[candidate.name] = forgetting_json(candidate.forgetting)
    return {
        "name": Path(run.options.general or "").stem, "items": len(first.base.values),
        "identity": first.base.items, "scorer": run.general_items.scorer,
        "bound": run.options.max_forgotten, "arms": arms,
    }  # fmt: skip


def _notes(
    run: GateRun, measured: Measurements, baseline: Arm, tested: Sequence[Arm]
) -> tuple[str, ...]:
    shots = run.options.shots
    notes = []
    if run.options.base and shots and len(run.items.fewshot_pool) < shots:
        notes.append(f"there are no {shots} examples for the base: --few-shot-data FILE")
    notes += [
        f"{run.names[path]} was not tested: the sequence ended before it"
        for path in measured.untested
    ]
    notes += [
        f"{arm.name} is the baseline, byte for byte"
        for arm in tested
        if arm.identity == baseline.identity
    ]
    return tuple(notes)


def _losses(examples: Sequence[Example], before: Score, after: Score) -> tuple[dict[str, Any], ...]:
    """Lost items, the worst first: by the fall of the score, then by how unlike the replies are."""

    def badness(i: int) -> tuple[float, float]:
        alike = difflib.SequenceMatcher(None, before.replies[i], after.replies[i])
        return after.values[i] - before.values[i], alike.ratio()

    lost = [i for i, (a, b) in enumerate(zip(before.values, after.values, strict=True)) if b < a]
    return tuple(
        {
            "prompt": "\n".join(turn.content for turn in examples[i].prompt),
            "wanted": examples[i].answer, "baseline": before.replies[i],
            "answer": after.replies[i], "tags": list(examples[i].tags),
        }
        for i in sorted(lost, key=badness)[:MAX_LOSSES]
    )  # fmt: skip


def _lineage(path: Path) -> tuple[dict[str, Any], ...]:
    """The artifact and its parents, as far as the manifest names them."""
    manifest = store.read_manifest(path)
    artifact = {
        "role": "artifact", "name": path.name, "identity": store.identity(path), "options": {}
    }  # fmt: skip
    if manifest is None:
        return (artifact,)
    options = {key: value for key, value in manifest.options.items() if value is not None}
    if ship := manifest.facts.get("ship"):
        options["weights"] = describe_ship(ship, options.get("quant", ""))
    parents = (
        {"role": role, "name": "", "identity": identity, "options": {}}
        for role, identity in manifest.parents.items()
    )
    return (artifact | {"options": options}, *parents)


def _with_pareto(arms: Sequence[Arm]) -> tuple[Arm, ...]:
    """Mark the fine-tuned arms that no other one beats in both size and accuracy."""
    scored = [
        arm for arm in arms if arm.kind in ("baseline", "candidate") and arm.accuracy is not None
    ]

    def beaten(arm: Arm) -> bool:
        assert arm.accuracy is not None
        return any(
            other.size <= arm.size and (other.accuracy or 0) >= arm.accuracy
            and (other.size, -(other.accuracy or 0)) != (arm.size, -arm.accuracy)
            for other in scored
        )  # fmt: skip

    return tuple(dataclasses.replace(arm, pareto=arm in scored and not beaten(arm)) for arm in arms)
