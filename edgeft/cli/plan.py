"""`edgeft plan`: memory, disk and time of every stage for a base model, before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgeft.cli._config import configurable
from edgeft.cli._options import (
    Bytes,
    build,
    columns,
    comma_list,
    json_option,
    options_of,
    print_json,
)
from edgeft.train.options import TrainOptions

LEARNED_SHARE = 0.5
"""share of an example's tokens that is learned, where --data does not say it"""


@click.command("plan")
@click.option("--method", "methods", multiple=True, callback=comma_list,
              help="Training methods, comma-separated. Default: all.")  # fmt: skip
@options_of(
    TrainOptions,
    only=("base", "data", "batch_size", "micro_batch_size", "cutoff_length", "lora_r", "target_modules",
          "compute_type", "keep_4bit", "checkpoint_activations", "offload_activations",
          "offload_weights", "attention", "epochs", "ship"),
    base={"type": click.STRING, "help": "Base model: as for training, or a config.json alone."},
    data={"required": False, "default": None,
          "help": "Chats to learn: their longest examples and their number are used. Without them, "
                  "examples as long as the cutoff, of which half is learned."},
    batch_size=click.IntRange(min=1),
    micro_batch_size={"type": click.IntRange(min=1), "default": None,
                      "show_default": "the batch size", "help": "Examples per forward pass."},
    cutoff_length=click.IntRange(min=8),
    lora_r=click.IntRange(min=1),
)  # fmt: skip
@click.option("--context", type=click.IntRange(min=1), default=2048, show_default=True,
              help="Tokens of a chat, for its cache of keys and values.")  # fmt: skip
@click.option("--quant", "quants", multiple=True, callback=comma_list,
              default=("f16", "q8_0", "q4_k_m", "q4_0"),
              help="Quantizations of the export, comma-separated.")  # fmt: skip
@click.option("--memory", type=Bytes(),
              help="Plan for so much free memory, such as 8G, and not for this machine's.")  # fmt: skip
@json_option
@configurable
def command(
    methods: tuple[str, ...],
    context: int,
    quants: tuple[str, ...],
    memory: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Plan a fine-tune: which methods fit this machine, and what every stage needs. Reads no weights.

    \b
    edgeft plan --base smollm2-135m
    edgeft plan --base config.json --memory 16G --cutoff-length 1024
    """
    from edgeft.export.needs import export_needs
    from edgeft.kv_cache import KV_TYPES, kv_bytes
    from edgeft.train.memory import read_base
    from edgeft.train.plan import Machine, plan

    path = _base(options.pop("base"))
    options["micro_batch_size"] = options["micro_batch_size"] or options["batch_size"]
    data = options.pop("data")
    run = build(TrainOptions, options, base=path, data=data or path, output=path)
    base, here = read_base(path), Machine.here(memory)
    batch, tokens = _batch(run, data)
    rows = plan(base, run, batch, methods, here)
    exports = export_needs(base.weights, quants, here.cores)
    widths = base.sizes.cache_widths
    cache = {name: kv_bytes(widths, context, kv_type) for name, kv_type in KV_TYPES.items()}
    facts = {
        "base": {"path": str(path), "family": base.card.family, "weights": base.weights,
                 "stored_bytes": base.stored_bytes},
        "machine": {"memory": here.memory, "cores": here.cores, "gflops": round(here.flops / 1e9)},
        "batch": vars(batch),
        "ship": run.ship,
        "methods": [row.to_json() | _time(row, tokens) for row in rows],
        "export": [vars(need) for need in exports],
        "cache": {"tokens": context, "bytes": cache["f16"], "types": cache},
    }  # fmt: skip
    if as_json:
        print_json(facts)
        return
    click.echo(_text(facts))


def _base(name: str) -> Path:
    """A config.json, or what `--base` of a training names."""
    from edgeft.base.resolve import resolve_base

    path = Path(name).expanduser()
    if path.suffix == ".json" and path.is_file() or (path / "config.json").is_file():
        return path.resolve()
    return resolve_base(name).resolve()


def _batch(run: TrainOptions, data: Path | None) -> tuple[Any, int]:
    """(the largest micro-batch, tokens of a whole training or 0 where there is no data)."""
    from edgeft.train.memory import Batch

    size = int(run.micro_batch_size)
    if data is None:
        return Batch(size, run.cutoff_length, int(LEARNED_SHARE * size * run.cutoff_length)), 0
    from edgeft.tokenizer.chat_template import ChatTemplate
    from edgeft.tokenizer.hf_files import encoder
    from edgeft.train.examples import largest_batch, read_splits, training_tokens

    run, splits = read_splits(run)
    chat, tokenize = ChatTemplate.from_folder(run.base), encoder(run.base)
    batch = largest_batch(run, [*splits.train, *splits.validation], chat, tokenize)
    return batch, int(run.epochs * training_tokens(run, splits.train, chat, tokenize))


def _time(row: Any, tokens: int) -> dict[str, float]:
    return {"seconds": round(tokens / row.tokens_per_second)} if tokens else {}


def _text(facts: dict[str, Any]) -> str:
    """The tables that a person reads."""
    from edgeft.files import format_bytes

    base, here, batch = facts["base"], facts["machine"], facts["batch"]
    lines = [
        (
            f"{base['path']}: {base['family']}, {base['weights'] / 1e6:,.1f} million weights, "
            f"{format_bytes(base['stored_bytes'])} stored"
        ),
        (
            f"this machine: {format_bytes(here['memory'])} of memory free, {here['cores']} cores, "
            f"{here['gflops']} GFLOP/s"
        ),
        (
            f"micro-batch: {batch['examples']} examples of {batch['length']} tokens, "
            f"{batch['learned']} of these learned"
        ),
        "",
    ]
    header = ["method", "trains", "weights", "gradients", "optimizer", "activations", "peak",
              "checkpointed", "rule of thumb", "tokens/s", "time", "verdict"]  # fmt: skip
    table = [header]
    for row in facts["methods"]:
        memory = row["memory"]
        table.append([
            row["method"], f"{row['share']:.2%}",
            format_bytes(memory["base"] + memory["trained"]), format_bytes(memory["gradients"]),
            format_bytes(memory["optimizer"]),
            format_bytes(memory["activations"] + memory["temporary"]), format_bytes(memory["peak"]),
            format_bytes(row["peak_checkpointed"]), format_bytes(row["rule_of_thumb"]),
            f"{row['tokens_per_second']:.0f}",
            f"{row['seconds'] / 60:.0f} min" if "seconds" in row else "-", _verdict(row),
        ])  # fmt: skip
    lines += columns(table)
    unable = [row["method"] for row in facts["methods"] if row["ship"] != facts["ship"]]
    if unable:
        lines += ["", f"planned without --ship, which they do not have: {', '.join(unable)}"]
    lines += ["", ("peak: with libraries and the pages of the weights' files, which the kernel drops where "
              "memory is short."), ("rule of thumb: full 5 x the weights, others 1 x. Speed and time are "
              "estimates."), ""]  # fmt: skip
    table = [["export", "size", "memory", "time"]]
    table += [
        [need["quant"], format_bytes(need["size"]), format_bytes(need["memory"]), f"{need['seconds']} s"]
        for need in facts["export"]
    ]  # fmt: skip
    lines += columns(table)
    cache = facts["cache"]
    sizes = ", ".join(f"{format_bytes(size)} in {name}" for name, size in cache["types"].items())
    lines += [
        "",
        f"a chat of {cache['tokens']} tokens: keys and values take {sizes}, beside the artifact",
    ]
    return "\n".join(lines)


def _verdict(row: dict[str, Any]) -> str:
    if row["fits"]:
        return f"fits, micro-batch up to {row['micro_batch']}"
    return f"fits with {row['nearest']}" if row["nearest"] else "does not fit"
