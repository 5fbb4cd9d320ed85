"""`edgeft inspect`: a .gguf, a model folder or an adapter -> its metadata and its lineage."""

from __future__ import annotations

from pathlib import Path

import click

from edgeft.cli._config import configurable
from edgeft.cli._options import json_option, print_json
from edgeft.errors import InputError


@click.command("inspect")
@click.argument("artifact", type=click.Path(path_type=Path))
@json_option
@configurable
def command(artifact: Path, as_json: bool) -> None:
    """Show what an artifact, a model folder or an adapter is. Reads headers only.

    \b
    edgeft inspect out/q4_k_m.gguf
    """
    from edgeft.report.describe import PROBLEMS, as_text, describe

    facts = describe(artifact)
    if as_json:
        print_json(facts)
    else:
        click.echo(as_text(facts))
    for problem in facts.get(PROBLEMS, {}).values():
        raise InputError(f"{artifact} cannot be loaded: {problem}", "export or download it again")
