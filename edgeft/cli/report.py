"""`edgeft report`: report.json of a release -> report.html and report.md again."""

from __future__ import annotations

from pathlib import Path

import click

from edgeft.cli._config import configurable
from edgeft.cli._options import json_option, print_json


@click.command("report")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the three files.  [default: the folder of FILE, if it is a report.json]",
)
@json_option
@configurable
def command(file: Path, out: Path | None, as_json: bool) -> None:
    """Make report.html and report.md of what `edgeft ab` or `edgeft search` wrote with --report.

    \b
    edgeft report report/report.json --out page
    """
    from edgeft.report import storage

    if out is None and file.name != storage.JSON:
        # The folder may hold the report of another release.
        raise click.UsageError(f"--out FOLDER: {file.name} is no {storage.JSON}")
    release = storage.read(file)
    page = storage.write(release, out or file.parent)
    if as_json:
        print_json({"page": str(page), "outcome": release.outcome, "ship": release.ship})
    else:
        click.echo(page)
