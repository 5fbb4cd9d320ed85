"""`edgeft studio`: a workspace folder -> a page for the whole way, in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgeft.cli._config import configurable
from edgeft.cli._options import Bytes, build, options_of
from edgeft.studio.options import StudioOptions


@click.command("studio")
@options_of(
    StudioOptions,
    workspace=click.Path(file_okay=False, path_type=Path),
    port=click.IntRange(0, 65535),
    max_upload={"type": Bytes(), "show_default": "2G"},
)
@configurable
def command(**options: Any) -> None:
    """The whole way from data to a release on a local page. Every button is a command of edgeft.

    \b
    edgeft studio
    edgeft studio --workspace ~/models --port 8600
    """
    from edgeft.cli._forms import commands
    from edgeft.studio.run import studio

    studio(build(StudioOptions, options), commands())
