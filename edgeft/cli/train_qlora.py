"""`edgeft train-qlora`: conversations + base model -> LoRA adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgeft.cli._options import comma_list, configurable, json_option, print_json
from edgeft.progress import say


@click.command("train-qlora", short_help="Fine-tune: chats + base model -> LoRA adapter.")
@click.option("--base", required=True, help="Embedded base, Hugging Face folder, .gguf or hub id.")
@click.option(
    "--data",
    required=True,
    type=click.Path(path_type=Path),
    help="alpaca, chat messages or sharegpt; JSON or JSONL.",
)
@click.option(
    "--output", required=True, type=click.Path(path_type=Path), help="Folder of the adapter."
)
@click.option(
    "--validation-data",
    type=click.Path(path_type=Path),
    help="A validation file of its own, in place of --validation-size.",
)
@click.option(
    "--validation-size",
    type=click.FloatRange(min=0),
    default=0.05,
    show_default=True,
    help="Held out of --data: a share below 1, a count from 1, 0 for none.",
)
@click.option(
    "--epochs",
    type=float,
    default=1.0,
    show_default=True,
    help="Passes over the data, unless --steps is given.",
)
@click.option("--steps", type=click.IntRange(min=1), help="Optimizer steps.")
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="Examples per optimizer step.",
)
@click.option(
    "--micro-batch-size",
    type=click.IntRange(min=1),
    help="Examples per forward pass.  [default: the batch size]",
)
@click.option(
    "--learning-rate",
    type=click.FloatRange(min=0, min_open=True),
    default=1e-3,
    show_default=True,
    help="Peak, after warm-up, before cosine decay.",
)
@click.option(
    "--warmup",
    type=click.FloatRange(0, 1),
    default=0.05,
    show_default=True,
    help="Share of the steps.",
)
@click.option(
    "--cutoff-length",
    type=click.IntRange(min=8),
    default=512,
    show_default=True,
    help="Tokens; longer examples are left out and counted.",
)
@click.option("--lora-r", type=click.IntRange(min=1), default=16, show_default=True)
@click.option("--lora-alpha", type=click.IntRange(min=1), default=32, show_default=True)
@click.option(
    "--lora-dropout", type=click.FloatRange(0, 1, max_open=True), default=0.0, show_default=True
)
@click.option(
    "--target-modules",
    multiple=True,
    callback=comma_list,
    help="Module names, comma-separated.  [default: every linear layer of a block]",
)
@click.option("--train-on-inputs", is_flag=True, help="Learn the prompts too.")
@click.option("--group-by-length/--no-group-by-length", default=True, show_default=True)
@click.option(
    "--compute-type",
    type=click.Choice(["auto", "fp32", "bf16"]),
    default="auto",
    show_default=True,
    help="auto measures which is faster here.",
)
@click.option(
    "--keep-4bit",
    is_flag=True,
    help="Keep the base packed in 4 bits: least memory, slower on a CPU.",
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--eval-every",
    type=click.IntRange(min=0),
    default=0,
    help="Steps between points of the validation curve.  [default: five points]",
)
@click.option(
    "--save-every",
    type=click.IntRange(min=0),
    default=50,
    show_default=True,
    help="Steps between checkpoints, 0 for none.",
)
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint of a stopped run.")
@click.option("--overwrite", is_flag=True, help="Replace what --output holds.")
@json_option
@configurable
def command(
    base: str, micro_batch_size: int | None, resume: bool, overwrite: bool, as_json: bool,
    **options: Any,
) -> None:  # fmt: skip
    """Fine-tune a base model by QLoRA: NF4 base, LoRA on every linear layer, loss on the answers.

    \b
    edgeft train-qlora --base smollm2-135m --data chats.jsonl --output adapter
    """
    from edgeft.base.resolve import resolve_base
    from edgeft.train.options import TrainOptions
    from edgeft.train.run import train

    micro = micro_batch_size or options["batch_size"]
    for name in ("data", "validation_data", "output"):  # the manifest has to be true elsewhere
        options[name] = options[name] and options[name].expanduser().resolve()
    frozen = TrainOptions(base=resolve_base(base).resolve(), micro_batch_size=micro, **options)
    try:
        manifest = train(frozen, resume=resume, overwrite=overwrite)
    except KeyboardInterrupt:
        say("stopped; the same command with --resume goes on from the last checkpoint")
        raise
    facts = manifest.facts
    if as_json:
        print_json({"adapter": str(frozen.output), **facts})
        return
    curve = ", ".join(f"{loss:.3f} at {step}" for step, loss in facts["validation_loss"])
    say(f"{facts['steps']} steps, {facts['tokens']} tokens in {facts['seconds']:.0f} s "
        f"({facts['tokens_per_second']:.0f} tokens/s)")  # fmt: skip
    if curve:
        say(f"validation loss {curve}")
    click.echo(str(frozen.output))
