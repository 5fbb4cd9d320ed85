"""`edgeft models`: the model families, with the formats that each can be exported to."""

from __future__ import annotations

import click

from edgeft.cli._config import configurable
from edgeft.cli._options import json_option, print_json
from edgeft.formats import FORMATS

COLUMNS = ("train", *FORMATS)


@click.command("models")
@json_option
@configurable
def command(as_json: bool) -> None:
    """List the model families. A test compares every "yes" with the original model."""
    from edgeft.models import cards

    rows = [
        {"family": card.family, "models": card.about, "architectures": list(card.architectures),
         "train": card.trains, **{name: name in card.formats for name in COLUMNS[1:]}}
        for card in cards()
    ]  # fmt: skip
    if as_json:
        print_json({"families": rows})
        return
    width = max(len(str(row["family"])) for row in rows)
    click.echo("  ".join(["family".ljust(width), *COLUMNS, "models"]))
    for row in rows:
        marks = [("yes" if row[name] else "-").ljust(len(name)) for name in COLUMNS]
        click.echo("  ".join([str(row["family"]).ljust(width), *marks, str(row["models"])]))
