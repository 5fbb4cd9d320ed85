"""`edgeft verify`: every hash of a result and of its parents again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgeft.cli._config import configurable
from edgeft.cli._options import json_option, print_json
from edgeft.errors import InputError
from edgeft.records import EXIT_CODES


@click.command("verify")
@click.argument("results", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--look-in", type=click.Path(path_type=Path), multiple=True,
              help="A parent that lies neither beside the result nor where it was; repeatable.")  # fmt: skip
@click.option("--key", type=click.Path(path_type=Path),
              help="Public key (PEM): each result must have a signature by it.")  # fmt: skip
@click.option("--complete", is_flag=True, help="A parent that is not found is no success: exit code 4.")  # fmt: skip
@json_option
@configurable
@click.pass_context
def command(
    ctx: click.Context,
    results: tuple[Path, ...],
    look_in: tuple[Path, ...],
    key: Path | None,
    complete: bool,
    as_json: bool,
) -> None:
    """Compute every hash again: of an artifact, an adapter, a base or data, and of what it was made from.

    Exit code 0 = all files are as they were written, 3 = some are not.

    \b
    edgeft verify out/q4_k_m.gguf
    edgeft verify out/*.gguf --look-in ../adapter --complete
    edgeft verify out/q4_k_m.gguf --key signer.pub
    """
    from edgeft.report.lineage import verify

    for path in look_in:
        if not path.exists():
            raise InputError(f"no such file or folder: {path}", "check --look-in")
    checks = {path: verify(path, look_in, key) for path in results}
    if as_json:
        rows = {str(path): list(map(_to_json, of_path)) for path, of_path in checks.items()}
        print_json({"results": rows})
    else:
        for of_path in checks.values():
            for check in of_path:
                click.echo(_line(check))
    states = {check.state for of_path in checks.values() for check in of_path}
    if "damaged" in states:
        ctx.exit(EXIT_CODES["FAIL"])
    if complete and "not found" in states:
        ctx.exit(EXIT_CODES["INCONCLUSIVE"])


def _to_json(check: Any) -> dict[str, Any]:
    return {**vars(check), "path": check.path and str(check.path)}


def _line(check: Any) -> str:
    name = check.path or f"sha256 {check.identity[:16]} (--look-in PATH)"
    lines = [f"{'  ' * check.depth}{check.state:9}  {check.role}: {name}"]
    return "\n".join([*lines, *(f"{'  ' * (check.depth + 1)}{text}" for text in check.problems)])
