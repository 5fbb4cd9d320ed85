"""Method x objective -> trained weights: transformers' training loop and its progress."""

# Imported only when a run starts, after the check for the extra.
# ruff: noqa: TID253

from __future__ import annotations

import dataclasses
import gc
import math
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.utils.memory import should_reduce_batch_size

from edgeft.errors import ResourceError
from edgeft.progress import Progress, say
from edgeft.train import lora_function
from edgeft.train.options import TrainOptions
from edgeft.train.protocol import Method, Objective
from edgeft.train.threads import ThreadsCallback

CURVE_POINTS = 5
"""points of the validation curve at most, where --eval-every does not say how many steps lie between two"""
EVALUATION_SHARE = 0.1
"""share of a training's time that these points may take"""
FORWARD_SHARE = 0.5
"""share of a training step that its forward pass takes"""


def fit(
    options: TrainOptions,
    method: Method,
    objective: Objective,
    bar: Progress,
    work_folder: Path,
    checkpoint: Path | None,
    output: Path,
) -> dict[str, Any]:
    """Train `bar.total` steps, write the result into `output`, return the facts for its manifest.

    `work_folder` receives the checkpoints. `checkpoint`: one of them to go on from.
    """
    transformers.utils.logging.disable_progress_bar()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.threads.isdecimal():
        torch.set_num_threads(int(options.threads))
    model = method.prepare(device)
    if options.attention != "auto":
        causal_lm = model.get_base_model() if hasattr(model, "get_base_model") else model
        causal_lm.set_attn_implementation(options.attention)
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    lora_layers, why_not = lora_function.install(model)
    if why_not and device == "cpu":
        say(f"{lora_layers} LoRA layers compute as one function, the others as in peft: {why_not}")
    evaluates = len(objective.validation)
    arguments = training_arguments(options, bar.total, work_folder, device, evaluates)
    trainer = objective.trainer(model, arguments)
    groups = method.parameter_groups(model, options.learning_rate)
    if groups is not None:
        optimizer, settings = trainer.get_optimizer_cls_and_kwargs(arguments, model)
        trainer.optimizer = optimizer(groups, **settings)
    trainer.add_callback(ProgressCallback(bar))
    if device == "cpu":
        trainer.add_callback(ThreadsCallback(changes=options.threads == "auto"))
    trainer.remove_callback(transformers.PrinterCallback)
    started = time.perf_counter()
    with bar:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    seconds = time.perf_counter() - started
    method.save(model, output)
    return {
        "steps": bar.total,
        "seconds": round(seconds, 1),
        "tokens": bar.units,
        "tokens_per_second": round(bar.units / seconds, 1),
        "device": device,
        "trained_parameters": trained,
        "lora_function": lora_layers,
        **method.facts(),
        "loss": loss_curve(trainer.state.log_history, "loss"),
        "validation_loss": loss_curve(trainer.state.log_history, "eval_loss"),
        "learning_rate": learning_rates(trainer.state.log_history),
    }


def fit_in_memory(
    options: TrainOptions,
    method: Method,
    objective: Objective,
    bar: Progress,
    work_folder: Path,
    checkpoint: Path | None,
    output: Path,
    halve: bool,
) -> dict[str, Any]:
    """`fit`; with `halve` a run that is out of memory starts over with micro-batches of half the size.

    Gradients are accumulated to the same batch. ResourceError where single examples do not fit.
    """
    while True:
        try:
            facts = fit(options, method, objective, bar, work_folder, checkpoint, output)
            return facts | ({"micro_batch_size": options.micro_batch_size} if halve else {})
        except (MemoryError, RuntimeError) as error:
            if not halve or not (isinstance(error, MemoryError) or should_reduce_batch_size(error)):
                raise
        smaller = smaller_micro_batch(options)  # outside of `except`, which holds the tensors
        if not smaller:
            raise ResourceError(
                "out of memory with a single example", "--checkpoint-activations, --keep-4bit"
            )
        say(
            f"out of memory with micro-batches of {options.micro_batch_size}: starting over with {smaller}"
        )
        options, checkpoint = dataclasses.replace(options, micro_batch_size=smaller), None
        bar.units = bar.done = 0
        gc.collect()


def smaller_micro_batch(options: TrainOptions) -> int:
    """The largest divisor of the batch size that is at most half of the micro-batch, 0 for none."""
    half = int(options.micro_batch_size) // 2
    return max((n for n in range(1, half + 1) if options.batch_size % n == 0), default=0)


def training_arguments(
    options: TrainOptions, steps: int, work_folder: Path, device: str, evaluates: int
) -> Any:
    """`transformers.TrainingArguments` of a run; `evaluates`: number of validation examples."""
    return transformers.TrainingArguments(
        output_dir=str(work_folder),
        max_steps=steps,
        per_device_train_batch_size=int(options.micro_batch_size),
        per_device_eval_batch_size=int(options.micro_batch_size),
        gradient_accumulation_steps=options.batch_size // int(options.micro_batch_size),
        gradient_checkpointing=options.checkpoint_activations,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(options.warmup * steps),
        weight_decay=0.0,
        logging_steps=1,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=evaluation_steps(options, steps, evaluates) if evaluates else None,
        save_strategy="steps" if options.save_every else "no",
        save_steps=options.save_every or 500,
        save_total_limit=2,
        seed=options.seed,
        use_cpu=device == "cpu",
        disable_tqdm=True,
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=device == "cuda",
        label_names=["labels"],
        include_num_input_tokens_seen="non_padding",
    )


def evaluation_steps(options: TrainOptions, steps: int, examples: int) -> int:
    """Steps between two points of the validation curve, each a forward pass of so many examples.

    Five points at most, fewer where they would take more than a tenth of the training's time, one at least.
    """
    if options.eval_every:
        return options.eval_every
    point_share = FORWARD_SHARE * examples / (steps * options.batch_size)
    points = min(CURVE_POINTS, max(1, round(EVALUATION_SHARE / point_share)))
    return max(1, steps // points)


def loss_curve(log_history: list[dict[str, Any]], key: str) -> list[list[float]]:
    """[[step, loss], …] of one key of the trainer's log, "loss" or "eval_loss"."""
    return [[row["step"], round(row[key], 4)] for row in log_history if key in row]


def learning_rates(log_history: list[dict[str, Any]]) -> list[list[float]]:
    """[[step, learning rate], …] of the trainer's log, with four significant digits."""
    key = "learning_rate"
    return [[row["step"], float(f"{row[key]:.4g}")] for row in log_history if key in row]


class ProgressCallback(transformers.TrainerCallback):  # type: ignore[misc]
    """Feeds the progress bar with steps, losses and computed tokens (without padding)."""

    def __init__(self, bar: Progress) -> None:
        self.bar = bar
        self._tokens = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.start_at(state.global_step)
        self._tokens = int(state.num_input_tokens_seen)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any
    ) -> None:
        new_tokens = int(state.num_input_tokens_seen) - self._tokens
        self._tokens += new_tokens
        if "loss" in logs:
            self.bar.update(1, units=new_tokens, loss=logs["loss"])
        elif "eval_loss" in logs:
            self.bar.update(0, validation=logs["eval_loss"])
