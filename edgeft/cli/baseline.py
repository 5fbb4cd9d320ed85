"""`edgeft baseline`: prompts and worked examples before any training -> is a fine-tune needed?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgeft.benchmarks.options import EvalOptions
from edgeft.cli._config import configurable
from edgeft.cli._items import items_options
from edgeft.cli._options import build, json_option, options_of, print_json
from edgeft.release.options import BaselineOptions


def _counts(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
    """Numbers of examples, by commas."""
    parts = [part.strip() for part in value.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() for part in parts):
        raise click.BadParameter(f"{value!r} is no list of numbers; such as 0,4,8")
    return tuple(dict.fromkeys(int(part) for part in parts))


@click.command("baseline")
@options_of(
    BaselineOptions,
    validation_data=click.Path(path_type=Path, dir_okay=False),
    instructions=click.Path(path_type=Path, dir_okay=False),
    shots={"type": str, "multiple": False, "default": "0,4,8", "callback": _counts},
    target=click.FloatRange(0, 1, min_open=True),
    base={"required": True},
)
@items_options()
@json_option
@configurable
def command(as_json: bool, **options: Any) -> None:
    """Is a fine-tune needed? Asks bases the validation split: instructions, then worked examples.

    Ends in one word with reasons: prompt, few-shot or fine-tune, and which base.

    \b
    edgeft baseline --base smollm2-135m --items smart_home
    edgeft baseline --base a.gguf --base b.gguf --validation-data validation.jsonl --scorer json \\
      --instructions prompt.txt --few-shot-data chats.jsonl --target 0.8
    """
    from edgeft.release.baseline import baseline_text, run_baseline

    eval_options = build(EvalOptions, options)
    result = run_baseline(build(BaselineOptions, options), eval_options)
    if as_json:
        print_json(result.to_json())
    else:
        click.echo(baseline_text(result))
