"""`edgeft chat`: talk to an artifact on the CPU, on a terminal or through a pipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgeft.chat.commands import SETTINGS
from edgeft.chat.options import ChatOptions
from edgeft.chat.terminal import run_chat
from edgeft.cli._config import configurable
from edgeft.cli._options import build, options_of
from edgeft.kv_cache import KV_TYPES

RANGES: dict[str, Any] = {**SETTINGS}
"""field of the sampling -> click type, as for /set"""


@click.command("chat")
@click.argument("artifact", type=click.Path(path_type=Path))
@options_of(
    ChatOptions,
    skip=("artifact",),
    **RANGES,
    threads=click.IntRange(min=1),
    context=click.IntRange(min=16),
    kv_type=click.Choice(list(KV_TYPES)),
    batch_invariant={"name": "--batch-invariant/--no-batch-invariant"},
)
@configurable
def command(artifact: Path, **options: Any) -> None:
    """Stream replies. On a terminal /help lists the commands; from a pipe each line is one turn
    and only the replies go to stdout.

    \b
    edgeft chat out/q4_k_m.gguf
    echo "turn off the bedroom lamp" | edgeft chat out/q4_k_m.gguf
    """
    run_chat(build(ChatOptions, options, artifact=artifact))
