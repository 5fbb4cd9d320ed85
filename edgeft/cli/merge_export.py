"""`edgeft merge-export`: adapter (+ base) -> artifacts that run, each proved on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgeft.cli._options import comma_list, configurable, json_option, print_json


@click.command("merge-export", short_help="Merge and quantize: adapter -> GGUF, proved to be it.")
@click.option(
    "--adapter",
    type=click.Path(path_type=Path),
    help="Adapter in peft's format; without one the base is exported as it is.",
)
@click.option("--base", help="Base model.  [default: the one that the adapter was trained on]")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Folder of the artifacts."
)
@click.option(
    "--format",
    "formats",
    multiple=True,
    default=("gguf",),
    show_default=True,
    callback=comma_list,
    help="gguf or hf (a merged folder); repeatable.",
)
@click.option(
    "--quant",
    "quants",
    multiple=True,
    callback=comma_list,
    help="Such as q4_k_m,q8_0,f16; repeatable.  [default: q4_k_m]",
)
@click.option(
    "--merge-base",
    type=click.Choice(["auto", "w16", "nf4"]),
    default="auto",
    show_default=True,
    help="Add the delta to the stored weights or to the NF4 values that it was trained "
    "on; auto measures both on the validation split.",
)
@click.option(
    "--validation",
    type=click.Path(path_type=Path),
    help="Examples for --merge-base auto.  [default: what training held out]",
)
@click.option("--threads", type=click.IntRange(min=1), help="[default: all cores]")
@click.option("--overwrite", is_flag=True, help="Replace artifacts of another run.")
@json_option
@configurable
def command(threads: int | None, as_json: bool, **options: Any) -> None:
    """Merge in float32 and write each artifact in one pass, then prove that it is the model.

    \b
    edgeft merge-export --adapter adapter --out out --format gguf --quant q4_k_m,q8_0,f16
    """
    from edgeft.export import ExportOptions, export

    if threads:
        options["threads"] = threads
    artifacts = export(ExportOptions(**options))
    if as_json:
        print_json({"artifacts": [
            {"path": str(a.path), "format": a.format, "quant": a.quant, **a.manifest.facts}
            for a in artifacts
        ]})  # fmt: skip
        return
    for artifact in artifacts:
        click.echo(str(artifact.path))
