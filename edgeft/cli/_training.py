"""The options of the commands that train, and what they print."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar

import click

from edgeft.cli._config import configurable
from edgeft.cli._items import answer_items, eval_items_options
from edgeft.cli._options import CountOrAuto, budget_options, json_option, options_of, print_json
from edgeft.cli._ship_inputs import ShipInputs
from edgeft.data.layouts import LAYOUTS, Layout
from edgeft.progress import say
from edgeft.train.options import TrainOptions

F = TypeVar("F", bound=Callable[..., Any])
OF_ADAPTER = (
    "base", "data", "validation_data", "validation_size", "columns", "seed", "method", "objective",
    "lora_r", "lora_alpha", "target_modules", "use_rslora", "quantization", "double_quant",
)  # fmt: skip
"""options of a training that `--adapter` takes over: what the adapter is of, and which rows are held out"""


def training_options(skip: Collection[str] = (), **changes: Any) -> Callable[[F], F]:
    """All options of a training run but `skip`; `changes` as those of `options_of`."""
    settings: dict[str, Any] = {
        "base": click.STRING,
        "validation_size": click.FloatRange(min=0),
        "steps": click.IntRange(min=1),
        "batch_size": click.IntRange(min=1),
        "micro_batch_size": {
            "type": CountOrAuto(),
            "default": None,
            "show_default": "the batch size / --processes",
        },
        "processes": click.IntRange(min=1),
        "nodes": click.IntRange(min=1),
        "node_rank": click.IntRange(min=0),
        "learning_rate": click.FloatRange(min=0, min_open=True),
        "warmup": {"name": "--warmup-ratio", "type": click.FloatRange(0, 1)},
        "cutoff_length": click.IntRange(min=8),
        "lora_r": click.IntRange(min=1),
        "lora_alpha": click.IntRange(min=1),
        "lora_dropout": click.FloatRange(0, 1, max_open=True),
        "lora_plus_ratio": click.FloatRange(min=0, min_open=True),
        "eval_every": click.IntRange(min=0),
        "save_every": click.IntRange(min=0),
        "early_stopping": click.IntRange(min=0),
        "ship_text": {"metavar": "auto|FILE"},
        "adapter": {"is_eager": True, "callback": _defaults_of_adapter},
    }
    for name, change in changes.items():
        known = settings.get(name, {})
        settings[name] = {**(known if isinstance(known, dict) else {"type": known}), **change}

    def decorate(function: F) -> F:
        shown = {name: change for name, change in settings.items() if name not in skip}
        for option in reversed((
            options_of(TrainOptions, skip=skip, **shown),
            eval_items_options,
            click.option(
                "--preview",
                is_flag=True,
                help="Train nothing: print the first three examples as the chat template writes them, "
                "with the learned part marked, and what of the data is left out.",
            ),
            click.option(
                "--show-config",
                is_flag=True,
                help="Train nothing: check the options and print what the processes get, as JSON, with "
                "DeepSpeed's configuration where it is used.",
            ),
            click.option(
                "--resume", is_flag=True, help="Go on from the last checkpoint of a stopped run."
            ),
            click.option("--overwrite", is_flag=True, help="Replace what --output holds."),
            budget_options,
            json_option,
            configurable,
        )):  # fmt: skip
            function = option(function)
        return function

    return decorate


def _defaults_of_adapter(
    ctx: click.Context, param: click.Parameter, path: Path | None
) -> Path | None:
    """Callback of --adapter: the options of its training become defaults, below those of --config."""
    if path is not None:
        from edgeft.adapter.config import adapter_manifest, lora_shape

        options = adapter_manifest(path).get("options", {})
        taken = {name: options[name] for name in OF_ADAPTER if options.get(name) is not None}
        taken |= lora_shape(path)
        ctx.default_map = {**taken, **(ctx.default_map or {})}
    return path


def run_training(
    method: str,
    objective: str,
    *,
    preview: bool,
    show_config: bool,
    resume: bool,
    overwrite: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Train, or show what would be learned, and print the result."""
    from edgeft.train.registry import method_row
    from edgeft.train.resolve import resolve_run
    from edgeft.train.run import train, train_beside

    items = answer_items(options)
    inputs = ShipInputs.of(options)
    options |= inputs.paths(options)
    run = resolve_run({"method": method, "objective": objective, **options}).options
    if show_config:
        from edgeft.train.zero import processes_config

        print_json(processes_config(run))
        return
    if preview:
        _preview(run, LAYOUTS[objective], as_json)
        return
    try:
        inputs.make(run, method, objective, overwrite)
        if run.node_rank:
            train_beside(run, method, objective, items)
            say(f"node {run.node_rank} of {run.nodes} is done; node 0 writes the result")
            return
        manifest = train(run, resume, overwrite, method, objective, items)
    except KeyboardInterrupt:
        say("stopped; the same command with --resume goes on from the last checkpoint")
        raise
    facts = manifest.facts
    if as_json:
        print_json({method_row(method).result: str(run.output), **facts})
        return
    curve = ", ".join(f"{loss:.3f} at {step}" for step, loss in facts["validation_loss"])
    say(f"{facts['steps']} steps, {facts['tokens']} tokens in {facts['seconds']:.0f} s "
        f"({facts['tokens_per_second']:.0f} tokens/s)")  # fmt: skip
    if "reward" in facts:
        (first, reward), (last, now) = (facts["reward"]["train"][i] for i in (0, -1))
        say(f"mean reward {reward:.3f} at step {first}, {now:.3f} at step {last}")
    elif curve:
        say(f"validation loss {curve}")
    if items:
        points = facts["accuracy"]["curve"]
        say("accuracy " + ", ".join(f"{share:.3f} at {step}" for step, share in points))
    click.echo(str(run.output))


def _preview(run: TrainOptions, layout: Layout, as_json: bool) -> None:
    """Print the first examples and what is left out, to stdout."""
    import sys

    from edgeft.data.preview import BRACKETS, GREEN
    from edgeft.progress import dumb_terminal
    from edgeft.train.preview import preview

    colour = sys.stdout.isatty() and not dumb_terminal() and not as_json
    shown = preview(run, layout, GREEN if colour else BRACKETS)
    if as_json:
        print_json(shown.to_json())
    else:
        click.echo(shown.text())
