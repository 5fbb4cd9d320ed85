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
    from edgeft.train.parallel import parallel_table
    from edgeft.train.registry import UNAVAILABLE, method_table, objective_table

    rows, objectives, optimizers = method_table(), objective_table(), optimizer_rows()
    parallel = parallel_table()
    if ctx.params.get("as_json"):
        print_json(
            {
                "methods": rows,
                "objectives": objectives,
                "parallel": parallel,
                "optimizers": optimizers,
            }
        )
        ctx.exit()
    _print_table(
        ("method", "result", "exported as", "device", "rate", "trains"),
        [
            (
                row["method"], row["result"], " ".join(row["formats"]), " ".join(row["devices"]),
                f"{row['learning_rate']:g}", row["trains"],
            )
            for row in rows if "unavailable" not in row
        ],
    )  # fmt: skip
    click.echo("A GPU that torch finds is used. The tests prove the methods on a CPU.")
    for row in rows:
        if "unavailable" in row:
            click.echo(f"{row['method']}: not available: {row['unavailable']}")
    click.echo(
        "\nEvery method trains every objective but reward, which those with LoRA matrices train:"
    )
    _print_table(
        ("objective", "extra", "rate", "processes", "rows", "learns"),
        [
            (
                row["objective"], row["extra"], f"x {row['learning_rate_factor']:g}",
                "several" if row["processes"] else "1", row["data"], row["learns"],
            )
            for row in objectives
        ],
    )  # fmt: skip
    for row in objectives:
        if row["loss_types"]:
            click.echo(f"--loss-type of {row['objective']}: {', '.join(row['loss_types'])}")
    click.echo("\nSeveral processes (--processes), each with a share of the batch:")
    _print_table(
        ("parallel", "extra", "each process holds", "optimizers", "not with"),
        [
            (
                row["parallel"], row["extra"], row["holds"], ", ".join(row["optimizers"]),
                " ".join([
                    *row["not_with"],
                    *(one["method"] for one in rows if one["method"] not in [*row["methods"], *UNAVAILABLE]),
                ]),
            )
            for row in parallel
        ],
    )  # fmt: skip
    click.echo()
    _print_table(
        ("optimizer", "bytes a weight", "package", "device", "rule"),
        [
            (
                row["name"], f"{row['state_bytes']:g}", row["package"], " ".join(row["devices"]),
                row["about"],
            )
            for row in optimizers
        ],
    )  # fmt: skip
    ctx.exit()


def _print_table(heads: tuple[str, ...], lines: list[tuple[str, ...]]) -> None:
    click.echo("\n".join(columns([heads, *lines])))


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
    help="List the methods with what they train, what they write and where it can be exported, the "
    "objectives with the rows that they need, what several processes divide, and the optimizers; then end.",
)
@training_options(
    learning_rate={
        "default": None,
        "show_default": "the method's, see --list; with --ship-from 0.6 times",
    }
)
def command(method: str, objective: str, **options: Any) -> None:
    """Fine-tune a base model by a method and an objective; the result is an adapter or a model.

    \b
    edgeft train --list
    edgeft train --method dora --base smollm2-135m --data chats.jsonl --output adapter
    edgeft train --method full --base smollm2-135m --data chats.jsonl --output model
    edgeft train --objective pretrain --base smollm2-135m --data texts --output adapter
    edgeft train --objective dpo --base smollm2-135m --data pairs.jsonl --output adapter
    """
    run_training(method, objective, **options)
