"""`edgeft train-qlora`: conversations + base model -> LoRA adapter."""

from __future__ import annotations

from typing import Any

import click

from edgeft.cli._config import configurable
from edgeft.cli._options import build, json_option, options_of, print_json
from edgeft.progress import say
from edgeft.train.options import TrainOptions


@click.command("train-qlora")
@options_of(
    TrainOptions,
    base=click.STRING,
    validation_size=click.FloatRange(min=0),
    steps=click.IntRange(min=1),
    batch_size=click.IntRange(min=1),
    micro_batch_size={
        "type": click.IntRange(min=1),
        "default": None,
        "show_default": "the batch size",
    },
    learning_rate=click.FloatRange(min=0, min_open=True),
    warmup={"name": "--warmup-ratio", "type": click.FloatRange(0, 1)},
    cutoff_length=click.IntRange(min=8),
    lora_r=click.IntRange(min=1),
    lora_alpha=click.IntRange(min=1),
    lora_dropout=click.FloatRange(0, 1, max_open=True),
    eval_every=click.IntRange(min=0),
    save_every=click.IntRange(min=0),
)
@click.option(
    "--preview",
    is_flag=True,
    help="Train nothing: print the first three examples as the chat template writes them, with the learned "
    "part marked, and what of the data is left out.",
)
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint of a stopped run.")
@click.option("--overwrite", is_flag=True, help="Replace what --output holds.")
@json_option
@configurable
def command(preview: bool, resume: bool, overwrite: bool, as_json: bool, **options: Any) -> None:
    """Fine-tune a base model by QLoRA: NF4 base, LoRA on every linear layer, loss on the answers.

    \b
    edgeft train-qlora --base smollm2-135m --data chats.jsonl --output adapter
    edgeft train-qlora --base smollm2-135m --data chats.jsonl --output adapter --preview
    """
    from edgeft.base.resolve import resolve_base
    from edgeft.train.run import train

    options["base"] = resolve_base(options["base"]).resolve()
    options["micro_batch_size"] = options["micro_batch_size"] or options["batch_size"]
    for name in ("data", "validation_data", "output"):  # absolute: true in any current folder
        options[name] = options[name] and options[name].expanduser().resolve()
    run = build(TrainOptions, options)
    if preview:
        _preview(run, as_json)
        return
    try:
        manifest = train(run, resume=resume, overwrite=overwrite)
    except KeyboardInterrupt:
        say("stopped; the same command with --resume goes on from the last checkpoint")
        raise
    facts = manifest.facts
    if as_json:
        print_json({"adapter": str(run.output), **facts})
        return
    curve = ", ".join(f"{loss:.3f} at {step}" for step, loss in facts["validation_loss"])
    say(f"{facts['steps']} steps, {facts['tokens']} tokens in {facts['seconds']:.0f} s "
        f"({facts['tokens_per_second']:.0f} tokens/s)")  # fmt: skip
    if curve:
        say(f"validation loss {curve}")
    click.echo(str(run.output))


def _preview(run: TrainOptions, as_json: bool) -> None:
    """Print the first examples and what is left out, to stdout."""
    import sys

    from edgeft.data.preview import BRACKETS, GREEN
    from edgeft.progress import dumb_terminal
    from edgeft.train.preview import preview

    colour = sys.stdout.isatty() and not dumb_terminal() and not as_json
    shown = preview(run, GREEN if colour else BRACKETS)
    if as_json:
        print_json(shown.to_json())
    else:
        click.echo(shown.text())
