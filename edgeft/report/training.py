"""The manifest of a training run -> a page with its curves, and the losses as a picture.

    run = read(Path("adapter"))
    write_page(run, Path("adapter.html"))
    write_plot(run, Path("loss.png"))

The page is self-contained as that of a release. The manifest may come from elsewhere: what is no number is
left out, and every text is escaped.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeft import store
from edgeft.errors import InputError, StaleError, require
from edgeft.files import whole_file, write_text
from edgeft.report import plots

MAX_DRAWN_POINTS = 400
"""points of a curve that are drawn: of more, the means of as many steps in a row"""
GENERATOR = "edgeft training"
"""names a page as one that may be written again"""
SUFFIXES = (".png", ".svg")
CURVES = {"loss": "training loss", "validation_loss": "validation loss"}
"""fact of the manifest -> name of its curve"""

MEASURES = {
    "reward_accuracy": "share of pairs whose better answer has the larger reward",
    "reward_margin": "reward of the better answer minus that of the worse one",
    "reward_chosen": "reward of the better answer",
    "reward_rejected": "reward of the worse answer",
    "reward_desirable": "reward of good answers",
    "reward_undesirable": "reward of bad answers",
    "kl": "KL divergence to the reference, nats",
    "reward_mean": "mean score",
    "reward": "mean reward of the written answers",
    "reward_std": "spread of the rewards of one prompt",
    "policy_loss": "loss of the policy",
    "value_loss": "loss of the value head",
    "clipped": "share of tokens beyond --cliprange",
    "answer_tokens": "tokens of an answer",
    "cut_off": "share of answers without an end",
    "equal_rewards": "share of prompts whose answers all have one reward",
}
"""fact of an alignment's manifest -> what it is, in the order of the page; a single reward is `reward_` and its
name"""
SPLITS = {"train": "training", "validation": "validation"}

Curve = tuple[tuple[float, float], ...]
"""(step, value), in the order of the steps"""


@dataclass(frozen=True)
class TrainingRun:
    """What the manifest of a result of training says about the run."""

    name: str
    kind: str
    losses: dict[str, Curve]
    """name of CURVES -> its points; those without points are left out"""
    measures: dict[str, dict[str, Curve]]
    """fact of MEASURES, or reward_NAME -> training or validation -> its points"""
    learning_rate: Curve
    """() in a manifest from before it was recorded"""
    facts: dict[str, Any]
    options: dict[str, Any]
    parents: dict[str, str]
    edgeft: str
    created: str

    @property
    def loss_unit(self) -> str:
        """Of the losses: nats a token, where text was learned and not preferred or rewarded."""
        return "nats per token" if self.learns_text else "of the objective"

    @property
    def learns_text(self) -> bool:
        """Whether the loss is that of text, and not of preferences or rewards."""
        return self.options.get("objective", "sft") in ("sft", "pretrain")

    def summary(self) -> dict[str, Any]:
        """Steps, last training loss, lowest validation loss and its step; what is known of them."""
        found: dict[str, Any] = {"steps": self.facts.get("steps")}
        if train := self.losses.get("training loss"):
            found["loss"] = train[-1][1]
        if validation := self.losses.get("validation loss"):
            step, lowest = min(validation, key=lambda point: point[1])
            found |= {"validation_loss": validation[-1][1], "lowest_validation_loss": lowest,
                      "lowest_at_step": step}  # fmt: skip
        return found


def read(folder: Path) -> TrainingRun:
    """The run whose result is in `folder`; InputError where it holds no result of a training."""
    manifest = store.read_manifest(folder)
    hint = "the folder that edgeft train-qlora wrote"
    if manifest is None:
        raise InputError(f"{folder} holds no manifest", hint)
    losses = {name: _curve(manifest.facts.get(key)) for key, name in CURVES.items()}
    losses = {name: curve for name, curve in losses.items() if curve}
    if not losses:
        raise InputError(f"{folder} is no result of a training: its manifest has no losses", hint)
    return TrainingRun(
        name=folder.resolve().name,
        kind=manifest.kind,
        losses=losses,
        measures=_measures(manifest.facts),
        learning_rate=_curve(manifest.facts.get("learning_rate")),
        facts=manifest.facts,
        options=manifest.options,
        parents=manifest.parents,
        edgeft=manifest.edgeft,
        created=manifest.created,
    )


def write_page(run: TrainingRun, path: Path) -> None:
    """Write the HTML page, whole or absent; StaleError where `path` holds something else."""
    if path.exists() and not (path.is_file() and GENERATOR in path.read_text("utf-8", "replace")):
        raise StaleError(f"{path} is no page of a training", "choose another --out")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, html(run))


def html(run: TrainingRun) -> str:
    """The page: the curves, what came out, and the options."""
    from edgeft.report.page import environment

    return environment().get_template("training.html.j2").render(
        run=run, generator=GENERATOR, summary=run.summary(), loss_plot=loss_plot(run),
        learning_rate_plot=learning_rate_plot(run), measure_plots=measure_plots(run),
        rows=_validation_rows(run),
    )  # fmt: skip


def loss_plot(run: TrainingRun) -> Any:
    """Training and validation loss against the step, as inline SVG."""
    lines = [
        plots.Line(name, name.split()[0], _thinned(curve)) for name, curve in run.losses.items()
    ]
    return plots.curves("training-loss", "Loss", lines, "step", run.loss_unit)


def measure_plots(run: TrainingRun) -> list[tuple[str, str, Any]]:
    """(fact, what it is, its curves as inline SVG) of everything that an alignment measured."""
    return [
        (fact, MEASURES.get(fact, ""), plots.curves(
            f"measure-{number}", fact,
            [plots.Line(split, split, _thinned(curve)) for split, curve in curves.items()], "step", fact,
        ))
        for number, (fact, curves) in enumerate(run.measures.items())
    ]  # fmt: skip


def learning_rate_plot(run: TrainingRun) -> Any:
    """The learning rate against the step, as inline SVG; None where the manifest has none."""
    if not run.learning_rate:
        return None
    line = plots.Line("learning rate", "training", _thinned(run.learning_rate))
    return plots.curves(
        "learning-rate", "Learning rate", [line], "step", "learning rate", from_zero=True
    )


def check_plot(path: Path) -> None:
    """InputError for a suffix that is not of SUFFIXES, MissingExtra where .png needs a package."""
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path} ends in none of {', '.join(SUFFIXES)}", "such as loss.png")
    if path.suffix.lower() == ".png":
        require("matplotlib", "plot")


def write_plot(run: TrainingRun, path: Path) -> None:
    """Write the loss curves as .svg, or by matplotlib as .png. Raises as `check_plot`."""
    check_plot(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".svg":
        write_text(path, plots.standalone(loss_plot(run)))
        return
    with whole_file(path) as temp:
        _draw(run, temp)


def _draw(run: TrainingRun, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for name, curve in run.losses.items():
        steps, values = zip(*_thinned(curve), strict=True)
        marker = "o" if name == "validation loss" else None
        axes.plot(steps, values, label=name, marker=marker, markersize=4)
    axes.set(title=run.name, xlabel="step", ylabel=f"loss, {run.loss_unit}")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, format="png", dpi=150)


def _measures(facts: dict[str, Any]) -> dict[str, dict[str, Curve]]:
    """The curves of an alignment: those of MEASURES in its order, then the rewards by their names."""
    names = [*MEASURES, *sorted(name for name in facts if re.fullmatch(r"reward_.{1,200}", name))]
    measures = {}
    for name in dict.fromkeys(names):
        stored = facts.get(name)
        splits = stored if isinstance(stored, dict) else {}
        curves = {look: _curve(splits.get(split)) for split, look in SPLITS.items()}
        if curves := {look: curve for look, curve in curves.items() if curve}:
            measures[name] = curves
    return measures


def _curve(value: Any) -> Curve:
    """[[step, value], …] of a manifest; pairs that are not two finite numbers are left out."""
    pairs = value if isinstance(value, list) else []
    return tuple((float(pair[0]), float(pair[1])) for pair in pairs if _is_point(pair))


def _is_point(pair: Any) -> bool:
    return (
        isinstance(pair, list)
        and len(pair) == 2
        and all(isinstance(n, int | float) and not isinstance(n, bool) for n in pair)
        and all(abs(n) < 1e30 and math.isfinite(n) for n in pair)
    )


def _thinned(curve: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MAX_DRAWN_POINTS points, each the mean of as many in a row."""
    size = math.ceil(len(curve) / MAX_DRAWN_POINTS)
    groups = [curve[start : start + size] for start in range(0, len(curve), size)]
    return [
        (sum(step for step, _ in group) / len(group), sum(y for _, y in group) / len(group))
        for group in groups
    ]


def _validation_rows(run: TrainingRun) -> list[dict[str, Any]]:
    """Validation points with the training loss of the same step, for the page's table."""
    train = dict(run.losses.get("training loss", ()))
    rates = dict(run.learning_rate)
    return [
        {
            "step": int(step),
            "validation": loss,
            "training": train.get(step),
            "rate": rates.get(step),
        }
        for step, loss in run.losses.get("validation loss", ())
    ]
