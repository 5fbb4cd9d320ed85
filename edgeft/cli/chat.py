"""`edgeft chat`: talk to an artifact on the CPU, on a terminal or through a pipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgeft.chat.commands import SETTINGS
from edgeft.chat.options import ChatOptions
from edgeft.chat.terminal import run_chat
from edgeft.cli._options import configurable, finite


@click.command("chat", short_help="Talk to an artifact on the CPU; reads a pipe too.")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--system", default="", help="System message.  [default: the template's]")
@click.option(
    "--temperature",
    type=SETTINGS["temperature"],
    default=0,
    callback=finite,
    help="How freely words are chosen.  [default: 0, always the likeliest]",
)
@click.option(
    "--top-p",
    type=SETTINGS["top_p"],
    default=1,
    show_default=True,
    callback=finite,
    help="Choose among the likeliest words that have this share together.",
)
@click.option(
    "--top-k",
    type=SETTINGS["top_k"],
    default=0,
    help="Choose among so many words.  [default: 0, among all]",
)
@click.option(
    "--min-p",
    type=SETTINGS["min_p"],
    default=0,
    callback=finite,
    help="Leave out words that are less likely than this share of the likeliest.  [default: 0]",
)
@click.option(
    "--max-tokens", type=SETTINGS["max_tokens"], default=512, help="Of a reply.  [default: 512]"
)
@click.option("--seed", type=SETTINGS["seed"], default=0, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="[default: all cores]")
@click.option(
    "--context",
    type=click.IntRange(min=16),
    help="Tokens that the conversation may have.  [default: up to 4096]",
)
@click.option("--exact", is_flag=True, help="Compute a folder in float32 by torch, slowly.")
@click.option(
    "--isolate/--no-isolate",
    default=True,
    show_default=True,
    help="Compute as `edgeft serve` does, whose answers are then the same; without, llama.cpp may use "
    "kernels that read long prompts faster.",
)
@click.option("--stats", is_flag=True, help="Tokens/s after every reply, on stderr.")
@configurable
def command(artifact: Path, **given: Any) -> None:
    """Stream replies. On a terminal /help lists the commands; from a pipe each line is one turn
    and only the replies go to stdout.

    \b
    edgeft chat out/q4_k_m.gguf
    echo "turn off the bedroom lamp" | edgeft chat out/q4_k_m.gguf
    """
    run_chat(ChatOptions(artifact, **given))
