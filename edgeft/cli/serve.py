"""`edgeft serve`: artifacts -> an OpenAI-compatible server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from edgeft.cli._options import comma_list, configurable, finite
from edgeft.errors import InputError


@click.command("serve", short_help="An OpenAI-compatible server, many answers at a time.")
@click.argument("artifacts", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Another one needs a key.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True)
@click.option(
    "--api-key-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File with the key that clients must show.  [default: $EDGEFT_API_KEY]",
)
@click.option(
    "--slots",
    type=click.IntRange(1, 64),
    default=4,
    show_default=True,
    help="Answers at a time, for each artifact; each slot has memory for a whole context.",
)
@click.option(
    "--queue",
    type=click.IntRange(0, 10_000),
    default=32,
    show_default=True,
    help="Answers that may wait; then 429.",
)
@click.option("--threads", type=click.IntRange(min=1), help="[default: all cores]")
@click.option(
    "--context",
    type=click.IntRange(min=16),
    help="Tokens that each conversation may have.  [default: up to 4096]",
)
@click.option(
    "--max-tokens", type=click.IntRange(min=1), help="Of an answer.  [default: the context]"
)
@click.option(
    "--allow-host",
    multiple=True,
    callback=comma_list,
    help="Name in the Host header, besides localhost, addresses and this machine's name; repeatable.",
)
@click.option(
    "--cors",
    multiple=True,
    callback=comma_list,
    help="Origin whose pages may ask, such as https://example.org; repeatable.",
)
@click.option(
    "--grace",
    type=click.FloatRange(0, 3600),
    default=10,
    show_default=True,
    callback=finite,
    help="Seconds that running answers have after SIGTERM.",
)
@click.option(
    "--isolate/--no-isolate",
    default=True,
    show_default=True,
    help="Compute so that an answer is the same whatever else is running; without, llama.cpp may use "
    "kernels that read long prompts faster.",
)
@click.option("--log-prompts", is_flag=True, help="Write what is asked to stderr, too.")
@click.option("--quiet", is_flag=True, help="No line per request.")
@configurable
def command(artifacts: tuple[Path, ...], api_key_file: Path | None, **given: Any) -> None:
    """Serve /v1/chat/completions and its kin; `model` in a request chooses among several artifacts.

    \b
    edgeft serve out/q4_k_m.gguf
    curl localhost:8080/v1/chat/completions -H 'content-type: application/json' \\
      -d '{"messages": [{"role": "user", "content": "turn off the lamp"}]}'
    """
    from edgeft.server.run import ServeOptions, serve

    serve(ServeOptions(artifacts, key=_key(api_key_file), **given))


def _key(file: Path | None) -> str:
    if file is None:
        return os.environ.get("EDGEFT_API_KEY", "")
    try:
        key = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"cannot read the key in {file}: {error}", "check --api-key-file"
        ) from None
    if not key:
        raise InputError(f"{file} holds no key", "one line of text")
    return key
