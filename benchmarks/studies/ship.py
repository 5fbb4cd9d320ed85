"""A base and chats -> what a step with --ship costs over a step of LoRA, for each type.

    python -m edgeft.benchmarks.studies.ship --types q4_0,q8_0,q4_k_m --batch-size 8 --rounds 5

One process holds one model. In each round every arm takes one step on the same batch: plain LoRA, and LoRA
whose layers have the values of a file, with their update after the step. Slow types have two kinds of
steps: those with ggml's quantizer, one in 32 or 64, and those between. A step's mean counts both. `TYPE from` is
a training from a file (--ship-from), whose scales stay.
--cpu-time counts CPU seconds, for a busy machine. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeft.base.resolve import resolve_base
from edgeft.benchmarks.studies.forgetting import edgeft
from edgeft.benchmarks.studies.random_model import SHAPES, make_model
from edgeft.benchmarks.suites import load_suite
from edgeft.formats import nearest_format
from edgeft.quantization.ggml import UNQUANTIZED
from edgeft.train.options import TrainOptions


def step_seconds(
    options: TrainOptions, types: list[str], rounds: int, clock: Any
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """({arm: seconds of each round}, {slow type: steps between two runs of ggml's quantizer}).

    The arms of a type are TYPE, "TYPE exact" with ggml's quantizer and "TYPE from".
    """
    from edgeft.quantization.kept_scales import KeptScales
    from edgeft.train.ship.weights import ShipWeights
    from edgeft.weights.text_base import open_base

    base = open_base(options.base)
    shapes = {name: info.shape for name, info in base.weights.tensors.items()}
    model, loss_of, batches, optimizer = _model(options, base, rounds)
    arms: dict[str, tuple[ShipWeights | None, bool]] = {"lora": (None, True)}
    for quant in types:
        weights = ShipWeights(model, base, quant)
        arms[quant] = weights, False
        if weights.exact_steps > 1:
            arms[f"{quant} exact"] = weights, True
        if not evenly_spaced(base, quant):
            continue
        file = options.output.with_name(f"{quant}.gguf")
        edgeft("merge-export", "--base", options.base, "--quant", quant, "--out", file.parent,
               "--no-compare-live")  # fmt: skip
        kept = KeptScales(file, base.card, base.config, shapes)
        arms[f"{quant} from"] = ShipWeights(model, base, quant, kept), False
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    for number, batch in enumerate(batches):
        for arm, (ship, exact) in arms.items():
            if ship:
                ship.start()
            started = clock()
            loss_of(model, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
            if ship:
                ship.update(exact)
            if number:  # the first round warms up
                seconds[arm].append(clock() - started)
            for module in model.modules():  # the next arm is plain LoRA again
                module.__dict__.pop("ship_weight", None)
    slow = {ship.quant: ship.exact_steps for ship, exact in arms.values() if ship and exact}
    return seconds, slow


def evenly_spaced(base: Any, quant: str) -> bool:
    """Whether a training from a file of this type is possible."""
    from gguf import GGMLQuantizationType

    from edgeft.quantization.ggml_blocks import supports
    from edgeft.train.ship import file_tensors

    row = nearest_format(quant)
    types = {file.rounding.name for file in file_tensors(base, quant).values()}
    if row is None or row.name != "gguf":
        return False
    return all(n in UNQUANTIZED or supports(GGMLQuantizationType[n]) for n in types)


def _model(
    options: TrainOptions, base: Any, rounds: int
) -> tuple[Any, Callable[..., Any], list[Any], Any]:
    """(peft's model, its loss of a batch, batches, optimizer)."""
    import torch

    from edgeft.tokenizer.chat_template import ChatTemplate
    from edgeft.tokenizer.hf_files import encoder
    from edgeft.train import lora_function
    from edgeft.train.examples import read_splits
    from edgeft.train.loop import training_arguments
    from edgeft.train.objectives.sft import SFT
    from edgeft.train.registry import load_method

    options, splits = read_splits(options)
    chat = ChatTemplate.from_folder(options.base)
    objective = SFT(options, splits.train, [], chat, encoder(options.base))
    model = load_method("qlora")(options, base.card).prepare("cpu")
    lora_function.install(model)
    arguments = training_arguments(options, rounds + 1, options.output, "cpu", evaluates=0)
    trainer = objective.trainer(model, arguments)
    batches = [batch for batch, _ in zip(trainer.get_train_dataloader(), range(rounds + 1))]  # noqa: B905
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
    return model, trainer.compute_loss, batches, optimizer


def summary(seconds: dict[str, list[float]], slow: dict[str, int]) -> dict[str, dict[str, float]]:
    """{arm: median seconds, median of the rounds' ratios to LoRA}, and for slow types the mean step."""
    rows = {}
    for arm, times in seconds.items():
        ratios = [ours / plain for ours, plain in zip(times, seconds["lora"], strict=True)]
        rows[arm] = {"seconds": statistics.median(times), "ratio": statistics.median(ratios)}
    for arm, steps in slow.items():
        between, exact = rows[arm], rows[f"{arm} exact"]
        rows[f"{arm} mean"] = {
            key: (between[key] * (steps - 1) + exact[key]) / steps for key in between
        }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--shape", choices=SHAPES, help="a random base of this shape instead")
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--types", default="q4_0,q8_0,q4_k_m")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--cpu-time", action="store_true")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        if options.shape:
            make_model(Path(folder) / options.shape, SHAPES[options.shape])
            base = Path(folder) / options.shape / "base"
        else:
            base = resolve_base(options.base)
        run = TrainOptions(
            base=base, data=options.data or load_suite("smart_home").train,
            output=Path(folder, "adapter"), steps=options.rounds + 1, save_every=0, validation_size=0,
            batch_size=options.batch_size, micro_batch_size=options.batch_size, ship="q4_0",
        )  # fmt: skip
        clock = time.process_time if options.cpu_time else time.perf_counter
        rows = summary(*step_seconds(run, options.types.split(","), options.rounds, clock))
    print(f"{'step':<16} {'seconds':>8} {'of LoRA':>8}")
    for arm, row in rows.items():
        print(f"{arm:<16} {row['seconds']:>8.2f} {row['ratio']:>8.3f}")
    print(
        json.dumps(
            {
                "batch_size": options.batch_size,
                "threads": options.threads,
                "base": options.shape or options.base,
                "steps": rows,
            }
        )
    )


if __name__ == "__main__":
    main()
