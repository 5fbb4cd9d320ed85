"""`edgeft train`: conversations + base model -> adapter or model, by any method and objective."""

from __future__ import annotations

from typing import Any

import click

from edgeft.cli._options import columns, print_json
from edgeft.cli._training import run_training, training_options


def _list(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    """Print the methods and optimizers and end: --base, --data and --output are not needed for it."""
    if not value:
        return
    from edgeft.train.optimizers import optimizer_rows
    from edgeft.train.registry import OBJECTIVES, method_table

    rows, optimizers = method_table(), optimizer_rows()
    if ctx.params.get("as_json"):
        print_json({"methods": rows, "objectives": list(OBJECTIVES), "optimizers": optimizers})
        ctx.exit()
    here = [row for row in rows if "unavailable" not in row]
    heads = ("method", *OBJECTIVES, "result", "exported as", "device", "rate", "trains")
    lines = [
        (
            row["method"],
            *("yes" if name in row["objectives"] else "-" for name in OBJECTIVES),
            row["result"], " ".join(row["formats"]), " ".join(row["devices"]),
            f"{row['learning_rate']:g}", row["trains"],
        )
        for row in here
    ]  # fmt: skip
    click.echo("\n".join(columns([heads, *lines])))
    for name, objective in OBJECTIVES.items():
        click.echo(f"objective {name}: learns {objective.about}")
    click.echo("A GPU that torch finds is used. The tests prove the methods on a CPU.")
    for row in rows:
        if "unavailable" in row:
            click.echo(f"{row['method']}: not available: {row['unavailable']}")
    click.echo()
    heads = ("optimizer", "bytes a weight", "package", "device", "rule")
    lines = [
        (
            row["name"],
            f"{row['state_bytes']:g}",
            row["package"],
            " ".join(row["devices"]),
            row["about"],
        )
        for row in optimizers
    ]
    click.echo("\n".join(columns([heads, *lines])))
    ctx.exit()


@click.command("train")
@click.option(
    "--method",
    default="qlora",
    show_default=True,
    metavar="NAME",
    help="Which weights train, and how the others are held: a name that --list shows.",
)
@click.option(
    "--objective",
    default="sft",
    show_default=True,
    metavar="NAME",
    help="What is learned: a name that --list shows.",
)
@click.option(
    "--list",
    is_flag=True,
    expose_value=False,
    callback=_list,
    help="List the methods with what they train, what they write and where it can be exported, and the "
    "optimizers; then end.",
)
@training_options(learning_rate={"default": None, "show_default": "the method's, see --list"})
def command(method: str, objective: str, **options: Any) -> None:
    """Fine-tune a base model by a method and an objective; the result is an adapter or a model.

    \b
    edgeft train --list
    edgeft train --method dora --base smollm2-135m --data chats.jsonl --output adapter
    edgeft train --method full --base smollm2-135m --data chats.jsonl --output model
    edgeft train --objective pretrain --base smollm2-135m --data texts --output adapter
    """
    run_training(method, objective, **options)
