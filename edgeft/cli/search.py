"""`edgeft search`: adapter and budget -> the smallest artifact that passes the gate."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import click

from edgeft.cli._options import (
    as_typed_command,
    asking,
    comma_list,
    configurable,
    finite,
    json_option,
    print_json,
)
from edgeft.records import EXIT_CODES


class Bytes(click.ParamType[int]):
    """200M, 1.5G, 800 kB or a number of bytes; powers of 1000 as everywhere in edgeft."""

    name = "size"
    units = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}  # noqa: RUF012

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"\s*(\d+\.?\d*)\s*([kmg]?)b?\s*", str(value).lower())
        if not match or not float(match[1]):
            self.fail(f"{value!r} is no size; such as 200M or 1.5G", param, ctx)
        return round(float(match[1]) * self.units[match[2]])


@click.command("search", short_help="The smallest artifact that fits a budget and passes the gate.")
@click.option(
    "--adapter",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Adapter in peft's format; without one the base is compressed as it is.",
)
@click.option("--base", help="As for merge-export.  [default: the adapter's own]")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Folder for the artifacts."
)
@click.option("--items", required=True, help="Embedded suite (smart_home) or a JSON or JSONL file.")
@asking
@click.option(
    "--format",
    "formats",
    multiple=True,
    default=("gguf",),
    show_default=True,
    callback=comma_list,
    help="gguf, onnx or gptq; repeatable.",
)
@click.option(
    "--quant",
    "quants",
    multiple=True,
    callback=comma_list,
    help="Only these; repeatable.  [default: of gguf q8_0 to q2_k, of onnx int8 to int4]",
)
@click.option("--max-size", type=Bytes(), help="On disk, such as 200M.")
@click.option("--max-memory", type=Bytes(), help="At the peak, such as 1.5G.")
@click.option(
    "--min-tps",
    type=click.FloatRange(0, min_open=True),
    callback=finite,
    help="Tokens per second of decoding.",
)
@click.option(
    "--margin",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    callback=finite,
    help="Loss that is still acceptable, as for ab.",
)
@click.option("--early-stop", is_flag=True, help="Stop as soon as the items seen decide.")
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Candidates that answer at a time; on Ray all of them.",
)
@click.option(
    "--ray", metavar="ADDRESS", help="Let them answer on a Ray cluster; local starts one."
)
@click.option(
    "--report",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for report.html, report.json and report.md.",
)
@click.option("--overwrite", is_flag=True, help="Replace artifacts of another run.")
@json_option
@configurable
@click.pass_context
def command(ctx: click.Context, /, folder: Path | None, as_json: bool, **options: Any) -> None:
    """Export from large to small, drop what does not fit, and gate the rest against f16.

    Exit code 0 = something may be shipped, 3 = FAIL, 4 = INCONCLUSIVE, as ab's.

    \b
    edgeft search --adapter adapter --out out --items smart_home --max-memory 250M --min-tps 20
    """
    from edgeft.adapter.read import Weighted
    from edgeft.benchmarks.quality.evaluate import Asking
    from edgeft.export.options import ExportOptions
    from edgeft.release.search import Search, search
    from edgeft.report import storage, tables

    if options["early_stop"] and (options["jobs"] > 1 or options["ray"]):
        raise click.UsageError("--early-stop answers in turns, without --jobs or --ray")
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    options["adapter"] = tuple(Weighted(path) for path in options["adapter"])
    own, ask, make = (
        {name: options[name] for name in kind.__dataclass_fields__ if options.get(name) is not None}
        for kind in (Search, Asking, ExportOptions)
    )
    chosen = Search(export=ExportOptions(**make), **own)
    release = search(chosen, Asking(**ask), [as_typed_command(sys.argv)])
    if as_json:
        print_json(release.to_json())
    else:
        click.echo(tables.release_text(release))
    if folder:
        storage.write(release, folder)
    ctx.exit(EXIT_CODES[release.outcome])
