"""`edgeft report`: report.json of a release, or a trained adapter -> its page again."""

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
    help="Folder for the files.  [default: the folder that holds FILE, if it is a report.json or an adapter]",
)
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also draw the loss curves of an adapter, as .svg or, with matplotlib, as .png.",
)
@json_option
@configurable
def command(file: Path, out: Path | None, plot: Path | None, as_json: bool) -> None:
    """Make report.html and report.md of what `edgeft ab` or `edgeft search` wrote with --report.

    Of the folder of a trained adapter, make ADAPTER.html with its loss curves.

    \b
    edgeft report report/report.json --out page
    edgeft report adapter --plot loss.png
    """
    if file.is_dir():
        _training(file, out, plot, as_json)
        return
    if plot:
        raise click.UsageError("--plot draws the losses of an adapter's folder")
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


def _training(folder: Path, out: Path | None, plot: Path | None, as_json: bool) -> None:
    """The page of a training, beside the adapter and never in it: its files are its identity."""
    from edgeft.report import training

    if plot:
        training.check_plot(plot)
    run = training.read(folder)
    page = (out or folder.resolve().parent) / f"{run.name}.html"
    training.write_page(run, page)
    if plot:
        training.write_plot(run, plot)
    if as_json:
        print_json({"page": str(page), "plot": str(plot) if plot else None, **run.summary()})
    else:
        click.echo("\n".join(str(path) for path in (page, plot) if path))
