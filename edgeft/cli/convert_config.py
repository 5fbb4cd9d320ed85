"""`edgeft convert-config`: a YAML of LLaMA-Factory or Axolotl -> a TOML for `edgeft train --config`."""

from __future__ import annotations

from pathlib import Path

import click

from edgeft.cli._options import json_option, print_json
from edgeft.progress import say

TRAINING_COMMANDS = ("train", "train-qlora")
"""the first of them that exists takes the TOML"""


@click.command("convert-config")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="TOML to write. Default: it goes to stdout, with paths for a file in the current folder.",
)
@click.option(
    "--data-out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="JSONL file to write the rows into, where the YAML has several local datasets or takes their "
    "first rows; edgeft trains on one file.",
)
@click.option("--overwrite", is_flag=True, help="Replace what --out and --data-out hold.")
@json_option
def command(
    file: Path, out: Path | None, data_out: Path | None, overwrite: bool, as_json: bool
) -> None:
    """Convert a training configuration of LLaMA-Factory or Axolotl.

    The TOML has the other tool's defaults where they differ from edgeft's. Each key that could not be
    carried over is named, with the reason, on stderr and in a comment of the TOML.

    \b
    edgeft convert-config llama3_lora_sft.yaml --out run.toml
    """
    from edgeft.cli import COMMANDS, group
    from edgeft.cli._config import option_checks
    from edgeft.errors import StaleError
    from edgeft.files import write_text
    from edgeft.train.configs import convert, write_data

    name = next(name for name in TRAINING_COMMANDS if name in COMMANDS)
    training = group.get_command(click.Context(group), name)
    assert training is not None
    for path in (out, data_out):
        if path and path.exists() and not overwrite:
            raise StaleError(f"{path} exists", "--overwrite replaces it")
    target = out or Path("run.toml")
    conversion = convert(file, target, name, option_checks(training), data_out)
    for key, reason in conversion.not_carried.items():
        say(f"not carried over: {key}: {reason}")
    for key, note in conversion.notes.items():
        say(f"carried over with another meaning: {key}: {note}")
    say(f"{conversion.tool}: {len(conversion.carried)} keys carried over, "
        f"{len(conversion.not_needed)} need no option, {len(conversion.not_carried)} not carried over")  # fmt: skip
    if data_out and conversion.data_parts:
        say(f"{write_data(conversion.data_parts, data_out)} rows in {data_out}")
    elif data_out:
        say(f"{data_out} is not written: the data is one whole file, or not carried over")
    if out:
        write_text(out, conversion.text)
    if as_json:
        print_json({"out": str(out) if out else None, **conversion.to_json()})
    else:
        click.echo(str(out) if out else conversion.text, nl=bool(out))
