"""The options of `edgeft train` as parsed, by field -> a `TrainRun`: method, objective and checked options.

run = resolve_run({"method": "lora", "base": "smollm2-135m", "data": Path("chats.jsonl"), …})
train(run.options, method=run.method, objective=run.objective)
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from edgeft.base.resolve import resolve_base
from edgeft.data.hub import hub_id
from edgeft.errors import InputError
from edgeft.train.new_tokens import read_tokens
from edgeft.train.options import AUTO, TrainOptions
from edgeft.train.parallel import check_parallel
from edgeft.train.registry import OBJECTIVES, check_objective, check_options, method_row
from edgeft.train.rewards import absolute

DATA = ("data", "validation_data")
PATHS = (*DATA, "output", "adapter", "ship_from", "ship_text")
OPTION_NAMES = {"warmup": "--warmup-ratio"}
"""field -> its option, where the name differs"""
FROM_FILE_SHARE = 0.6
"""of the method's learning rate that --ship-from has: 6e-4 for QLoRA (docs/results/2026-11-30-four-bits.md)"""
OWN_DEFAULTS = ("learning_rate", "micro_batch_size")
"""fields whose default on the command line is another than the field's"""


@dataclass(frozen=True)
class TrainRun:
    """What one call of `edgeft train` trains."""

    method: str
    objective: str
    options: TrainOptions

    def command(self, *more: str) -> str:
        """The command line that trains this; `more`: further words."""
        words = ["edgeft", "train", "--method", self.method, "--objective", self.objective]
        return shlex.join([*words, *_words(self.options), *more])


def resolve_run(values: Mapping[str, Any]) -> TrainRun:
    """Paths become absolute, a base's name its folder, and what is absent gets the method's default, times
    the objective's `rate` for the learning rate.

    InputError for an unknown method or objective, for an option that the method does not read, and as
    `resolve_base` and `TrainOptions`.
    """
    chosen = dict(values)
    method, objective = chosen.pop("method"), chosen.pop("objective")
    row = method_row(method)
    check_objective(objective)
    chosen["base"] = resolve_base(str(chosen["base"])).resolve()
    chosen["micro_batch_size"] = chosen.get("micro_batch_size") or max(
        1, chosen["batch_size"] // (chosen.get("processes", 1) * chosen.get("nodes", 1))
    )
    rate = float(f"{row.learning_rate * OBJECTIVES[objective].rate:.3g}")
    if chosen.get("ship_from"):
        rate = float(f"{rate * FROM_FILE_SHARE:.3g}")
    chosen["learning_rate"] = chosen.get("learning_rate") or rate
    if chosen.get("ship_text") == AUTO:
        raise InputError("only `edgeft train` writes the text of --ship-text auto", "a file")
    for name in PATHS:  # true in any current folder
        path = chosen.get(name)
        is_hub_id = path and name in DATA and hub_id(path)
        chosen[name] = path if is_hub_id else path and path.expanduser().resolve()
    chosen["reward"] = tuple(map(absolute, chosen.get("reward", ())))
    chosen["add_tokens"] = read_tokens(chosen.get("add_tokens", ()))
    options = TrainOptions(**chosen)
    check_options(method, options)
    check_objective(objective, options, method)
    check_parallel(options, method, objective)
    return TrainRun(method, objective, options)


def _words(options: TrainOptions) -> Iterator[str]:
    """Options that are not at their default, as words of a command line."""
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        name = OPTION_NAMES.get(field.name, "--" + field.name.replace("_", "-"))
        if value == field.default and field.name not in OWN_DEFAULTS:
            continue
        if isinstance(value, bool):
            yield name if value else f"--no-{name[2:]}"
        elif isinstance(value, tuple):
            yield from (name, ",".join(value))
        else:
            text = str(value)
            yield from (name, text.removesuffix(".0") if isinstance(value, float) else text)
