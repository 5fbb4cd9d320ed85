"""`edgeft serve`: artifacts -> an OpenAI-compatible server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from edgeft.cli._config import configurable
from edgeft.cli._options import Bytes, build, options_of
from edgeft.kv_cache import KV_TYPES
from edgeft.server.options import ServeOptions


@click.command("serve")
@click.argument("artifacts", nargs=-1, required=True, type=click.Path(path_type=Path))
@options_of(
    ServeOptions,
    skip=("artifacts", "key"),
    port=click.IntRange(0, 65535),
    api_key_file=click.Path(dir_okay=False, path_type=Path),
    slots=click.IntRange(1, 64),
    queue=click.IntRange(0, 10_000),
    threads=click.IntRange(min=1),
    context=click.IntRange(min=16),
    max_tokens=click.IntRange(min=1),
    max_memory=Bytes(),
    speculate=click.Choice(["none", "ngram"]),
    draft=click.Path(path_type=Path),
    shutdown_timeout=click.FloatRange(0, 3600),
    kv_type=click.Choice(list(KV_TYPES)),
    batch_invariant={"name": "--batch-invariant/--no-batch-invariant"},
)
@configurable
def command(artifacts: tuple[Path, ...], **options: Any) -> None:
    """Serve OpenAI's API, and Anthropic's and Ollama's over it. `model` in a request chooses the artifact.

    \b
    edgeft serve out/q4_k_m.gguf
    curl localhost:8080/v1/chat/completions -H 'content-type: application/json' \\
      -d '{"messages": [{"role": "user", "content": "turn off the lamp"}]}'
    """
    from edgeft.server.run import serve

    key = "" if options["api_key_file"] else os.environ.get("EDGEFT_API_KEY", "")
    serve(build(ServeOptions, options, artifacts=artifacts, key=key))
