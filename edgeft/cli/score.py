"""`edgeft score`: a reward model + answers -> their scores."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click

from edgeft.cli._config import configurable
from edgeft.cli._options import build, json_option, options_of, print_json


@dataclass(frozen=True)
class ScoreOptions:
    """What `edgeft score` rates."""

    model: Path
    """Reward model: the folder that edgeft train --objective reward or its merge-export wrote, another's of
    transformers with a head of one score, or a .gguf with such a head."""
    data: Path
    """Answers to rate: chats, or pairs of a better and a worse answer, in a file that training reads, too."""
    bad_rows: Literal["stop", "skip"] = "stop"
    """What a row that cannot be read does: stop = an error, skip = it is left out and counted."""
    columns: tuple[str, ...] = ()
    """Columns of the data file to read, comma-separated, as prompt=question,answer=reply."""


@click.command("score")
@options_of(ScoreOptions)
@json_option
@configurable
def command(as_json: bool, **options: Any) -> None:
    """Rate answers by a reward model, one line each; of pairs also how often the better one wins.

    \b
    edgeft score --model reward --data chats.jsonl
    edgeft score --model reward --data pairs.jsonl --json
    """
    from edgeft.release.rate import rate

    rated = rate(**vars(build(ScoreOptions, options)))
    if as_json:
        print_json(rated.to_json())
        return
    for place, *scores in rated.rows:
        click.echo("\t".join([place, *(f"{score:.4f}" for score in scores)]))
    if rated.accuracy is not None:
        low, high = rated.interval
        click.echo(
            f"the better answer has the larger score in {rated.accuracy:.3f} of {len(rated.rows)} pairs "
            f"(95% {low:.3f} to {high:.3f})",
            err=True,
        )
