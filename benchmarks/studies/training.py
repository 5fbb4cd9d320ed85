"""One model and data set -> speed, memory and loss curve of edgeft's training and of its peers.

    python -m edgeft.benchmarks.studies.training --steps 6 --rounds 3

Arms, each in a process of its own, the rounds alternating:

- edgeft        `edgeft train-qlora` as it comes
- edgeft-plain  the same in float32, without shared beginnings and with peft's own LoRA layers: edgeft before both
- trl           trl's SFTTrainer as it comes: bfloat16 autocast and gradient checkpointing
- trl-fp32      the same with bf16=False and gradient_checkpointing=False
- peft          transformers' Trainer with peft's model as they come: float32, the head for every token

All of them train the same LoRA matrices from the same start on the same frozen float32 values of NF4, with
the same batches, learning rate and schedule, on the same labels (trl gets token ids and labels). So their
losses may be compared step by step. trl with a packed 4-bit base would be slower.

Per arm: tokens of the examples, without padding, per second of the steps after the first (wall time, or
CPU time with --cpu-time for a busy machine); the largest anonymous memory; the loss of every step. trl is
not a dependency: `pip install trl==1.16.0`, or leave its arms out. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from edgeft.base.resolve import resolve_base
from edgeft.benchmarks.studies.measured_process import run
from edgeft.benchmarks.suites import load_suite
from edgeft.data.encoded_rows import Encoded
from edgeft.train.options import TrainOptions

TRL = "trl"
"""a package that edgeft does not depend on"""
ARMS = ("edgeft", "edgeft-plain", "trl", "trl-fp32", "peft")
WORKER = (
    "import sys; from edgeft.benchmarks.studies.training import train_arm as t; "
    "t(sys.argv[1], *map(int, sys.argv[2:6]), *sys.argv[6:])"
)


def train_arm(
    arm: str, steps: int, batch_size: int, threads: int, cpu_time: int, base: str, data: str,
    out: str,
) -> None:  # fmt: skip
    """Train `steps` steps; `out` becomes JSON with step seconds, step tokens and losses."""
    import torch
    import transformers

    torch.set_num_threads(threads)
    clock = time.process_time if cpu_time else time.perf_counter
    options = TrainOptions(
        base=Path(base), data=Path(data), output=Path(out), steps=steps, batch_size=batch_size,
        micro_batch_size=batch_size, validation_size=0, save_every=0,
        compute_type="auto" if arm == "edgeft" else "fp32", shared_prefix=arm == "edgeft",
    )  # fmt: skip

    starts: list[float] = []
    ends: list[float] = []

    class Clock(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            starts.append(clock())

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            ends.append(clock())

    trainer, tokens = _trainer(arm, options, Path(out).with_suffix(".work"))
    trainer.add_callback(Clock())
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    seconds = [end - start for start, end in zip(starts, ends, strict=True)]
    Path(out).write_text(json.dumps({"seconds": seconds, "tokens": tokens, "losses": losses}))


def _trainer(arm: str, options: TrainOptions, work: Path) -> tuple[Any, list[int]]:
    """The arm's trainer, and the tokens of each of its steps without padding."""
    from edgeft.tokenizer.chat_template import ChatTemplate
    from edgeft.tokenizer.hf_files import encoder
    from edgeft.train import lora_function
    from edgeft.train.batches import GroupedSampler
    from edgeft.train.examples import read_splits
    from edgeft.train.loop import training_arguments
    from edgeft.train.objectives.sft import SFT
    from edgeft.train.registry import load_method
    from edgeft.weights.text_base import open_base

    options, splits = read_splits(options)
    chat, tokenize = ChatTemplate.from_folder(options.base), encoder(options.base)
    objective = SFT(options, splits.train, [], chat, tokenize)
    model = load_method("qlora")(options, open_base(options.base).card).prepare("cpu")
    steps, size = options.total_steps(0), options.batch_size
    lengths = [len(item.ids) for item in objective.train]
    order = list(GroupedSampler(lengths, size, options.seed))[: steps * size]
    examples = [objective.train[i] for i in order]
    tokens = [sum(len(e.ids) for e in examples[i : i + size]) for i in range(0, len(order), size)]
    ours = training_arguments(options, steps, work, "cpu", evaluates=False)
    if arm.startswith("edgeft"):
        if arm == "edgeft":
            lora_function.install(model)
        return objective.trainer(model, ours), tokens
    names = ("max_steps", "per_device_train_batch_size", "learning_rate", "lr_scheduler_type",
             "warmup_steps", "weight_decay", "seed", "logging_steps")  # fmt: skip
    arguments = {name: ours[name] for name in names} | {
        "output_dir": str(work), "use_cpu": True, "report_to": "none", "save_strategy": "no",
        "disable_tqdm": True, "train_sampling_strategy": "sequential",
    }  # fmt: skip
    make = _peft_trainer if arm == "peft" else _trl_trainer
    if arm == "trl-fp32":
        arguments |= {"bf16": False, "gradient_checkpointing": False}
    return make(model, arguments, examples, options.base), tokens


def _trl_trainer(model: Any, arguments: dict[str, Any], examples: list[Encoded], base: Path) -> Any:
    import datasets
    import transformers

    trl = importlib.import_module(TRL)

    rows = {"input_ids": [e.ids for e in examples], "labels": [e.labels for e in examples]}
    return trl.SFTTrainer(
        model=model,
        args=trl.SFTConfig(**arguments),
        train_dataset=datasets.Dataset.from_dict(rows),
        processing_class=transformers.AutoTokenizer.from_pretrained(base),
    )


def _peft_trainer(
    model: Any, arguments: dict[str, Any], examples: list[Encoded], base: Path
) -> Any:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    return transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(**arguments),
        train_dataset=[{"input_ids": e.ids, "labels": e.labels} for e in examples],
        data_collator=transformers.DataCollatorForSeq2Seq(tokenizer),
    )


def measure(arms: list[str], options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Every round of every arm: {arm: {tokens_per_second, spread, memory, losses}}."""
    base, data = resolve_base(options.base), Path(options.data or load_suite("smart_home").train)
    raw: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
    with tempfile.TemporaryDirectory(prefix="training-") as folder:
        for number in range(options.rounds):
            for arm in arms:
                out = Path(folder) / f"{arm}-{number}.json"
                numbers = (options.steps, options.batch_size, options.threads, options.cpu_time)
                step = run(
                    [sys.executable, "-P", "-c", WORKER, arm, *(str(int(n)) for n in numbers),
                     str(base), str(data), str(out)]
                )  # fmt: skip
                raw[arm].append(json.loads(out.read_text()) | {"memory": step.anonymous})
                print(
                    f"round {number + 1}, {arm}: {rate(raw[arm][-1]):.1f} tokens/s", file=sys.stderr
                )
    return {arm: summary(results) for arm, results in raw.items()}


def rate(result: dict[str, Any]) -> float:
    """Tokens per second of the steps after the first."""
    return float(sum(result["tokens"][1:]) / sum(result["seconds"][1:]))


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of the rounds, their range, the largest memory and the first round's losses."""
    rates = [rate(result) for result in results]
    return {
        "tokens_per_second": round(statistics.median(rates), 1),
        "range": [round(min(rates), 1), round(max(rates), 1)],
        "memory": max(result["memory"] for result in results),
        "losses": [round(loss, 4) for loss in results[0]["losses"]],
    }


def main() -> None:
    from edgeft import files, machine
    from edgeft.report import tables

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="smollm2-135m", help="as for edgeft train-qlora")
    parser.add_argument("--data", help="chats; default: the embedded task smart_home")
    parser.add_argument("--arms", default=",".join(ARMS), help="comma-separated")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=4, help="examples per step")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu-time", action="store_true", help="CPU seconds, for a busy machine")
    options = parser.parse_args()
    arms = options.arms.split(",")
    if options.steps < 2 or set(arms) - set(ARMS):
        parser.error(f"--steps must be 2 or more, --arms of {', '.join(ARMS)}")
    results = measure(arms, options)
    rates = {arm: result["tokens_per_second"] for arm, result in results.items()}
    ratios = {arm: round(rates["edgeft"] / rates[arm], 2) for arm in arms if "edgeft" in arms}
    rows = [
        [arm, f"{r['tokens_per_second']:.1f}", "{:.1f} to {:.1f}".format(*r["range"]),
         f"{ratios[arm]:.2f}" if ratios else "", files.format_bytes(r["memory"]),
         f"{r['losses'][0]:.4f}", f"{r['losses'][-1]:.4f}"]
        for arm, r in results.items()
    ]  # fmt: skip
    head = ["arm", "tokens/s", "range", "edgeft is", "peak memory", "first loss", "last loss"]
    print(tables.table(head, rows))
    told = {key: getattr(options, key) for key in ("steps", "rounds", "batch_size", "threads")}
    clock = "cpu" if options.cpu_time else "wall"
    print(json.dumps({"machine": machine.describe_machine(), **told, "clock": clock,
                      "arms": results, "edgeft_is_times": ratios}))  # fmt: skip


if __name__ == "__main__":
    main()
