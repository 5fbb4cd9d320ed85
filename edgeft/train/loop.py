"""Method x objective -> trained weights: transformers' training loop and its progress."""

# Imported only when a run starts, after the check for the extra.
# ruff: noqa: TID253

from __future__ import annotations

import contextlib
import dataclasses
import gc
import math
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.utils.memory import should_reduce_batch_size

from edgeft import machine
from edgeft.data.splits import fingerprint
from edgeft.errors import InputError, ResourceError
from edgeft.progress import Progress, say
from edgeft.train import lora_function, zero
from edgeft.train.answers import Answering
from edgeft.train.checkpoints import flush
from edgeft.train.continued import load_adapter
from edgeft.train.offload import OffloadedActivations
from edgeft.train.optimizers import (
    Settings,
    Weights,
    create,
    optimizer_row,
    parse_arguments,
)
from edgeft.train.options import TrainOptions
from edgeft.train.protocol import Evaluation, Method, Objective, Watch, without_peft
from edgeft.train.reporters import event_files_in
from edgeft.train.sharded import gather_trained
from edgeft.train.ship import check_file, text_windows
from edgeft.train.ship.callback import DIVERGENCE, ShipCallback
from edgeft.train.ship.distillation import Distillation
from edgeft.train.ship.text_divergence import TextDivergence
from edgeft.train.ship.weights import ShipWeights
from edgeft.train.threads import ThreadsCallback
from edgeft.weights.text_base import open_base

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
    answering: Answering | None = None,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Train `bar.total` steps, write the result into `output`, return the facts for its manifest.

    `work_folder` receives the checkpoints. `checkpoint`: one of them to go on from. `answering`: items
    that are answered at every evaluation. `watch` is called with each evaluation, also with those
    before `checkpoint`.
    """
    transformers.utils.logging.disable_progress_bar()
    machine.hold_memory()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    several = options.world_size > 1
    if options.threads.isdecimal():
        torch.set_num_threads(int(options.threads))
    if zero.is_zero(options):
        zero.start()
    model = method.prepare(device)
    if options.adapter:
        load_adapter(model, options.adapter, options.base)
    if options.attention != "auto":
        without_peft(model).set_attn_implementation(options.attention)
    lora_layers, why_not = 0, ""
    if options.parallel == "zero3":  # it fetches the weights of a layer that is called
        why_not = "zero3" if hasattr(model, "peft_config") else ""
    else:
        lora_layers, why_not = lora_function.install(model)
    if why_not and device == "cpu":
        say(f"{lora_layers} LoRA layers compute as one function, the others as in peft: {why_not}")
    ship = ship_weights(options, model, why_not, device) if options.ship else None
    text = None
    evaluates = len(objective.validation)
    arguments = training_arguments(options, bar.total, work_folder, device, evaluates)
    with event_files_in(options.output.with_name(f"{options.output.name}.logs")):
        trainer = objective.trainer(model, arguments)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    trained_parameters = sum(weight.numel() for weight in trained)
    if several:
        _prepare_rank(options, model, trainer.args.process_index)
    if options.parallel == "fsdp2":
        trainer.create_sharded_optimizer = lambda: _optimizer(options, method, model, trainer)
    else:
        trainer.optimizer = _optimizer(options, method, model, trainer)
    if zero.is_zero(options):
        zero.use_optimizer(trainer, trainer.optimizer)
    trainer.add_callback(ProgressCallback(bar))
    trainer.add_callback(FlushCallback)
    if device == "cpu" and not several:
        trainer.add_callback(ThreadsCallback(changes=options.threads == "auto"))
    if ship:
        trainer.distillation = Distillation(ship, options.ship_distill)
        first = options.first_ship_step(bar.total)
        if options.ship_text:
            windows = text_windows(options.ship_text, options.base, bar.total - first)
            text = TextDivergence(ship, without_peft(model), windows)
        trainer.add_callback(ShipCallback(ship, first, text))
    if options.early_stopping:
        trainer.add_callback(transformers.EarlyStoppingCallback(options.early_stopping))
    if answering:
        trainer.add_callback(AnswerCallback(answering, trainer))
    if watch:
        trainer.add_callback(WatchCallback(watch))
    trainer.remove_callback(transformers.PrinterCallback)
    started = time.perf_counter()
    with bar, offloaded(options, model, work_folder):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    seconds = time.perf_counter() - started
    for weight in trained:  # an optimizer of blocks freezes the others
        weight.requires_grad_(True)
    getattr(trainer.optimizer, "eval", lambda: None)()  # schedule-free: the averaged weights
    if options.parallel == "fsdp2":
        gather_trained(model)
    with zero.gathered(options, trained):
        if trainer.is_world_process_zero():
            method.save(model, output)
    facts = method.facts()
    if ship:
        base_precision = facts.get("nf4", {}).get("kind", "stored")
        facts["ship"] = {"from_step": first + 1, "base_precision": base_precision, **ship.facts()}
        if text:
            facts["ship"]["text_divergence"] = loss_curve(trainer.state.log_history, DIVERGENCE)
        if ship.file_facts:
            facts["ship"] |= {"base_precision": "file", "file": ship.file_facts}
    curves = objective.curves(trainer.state.log_history)
    tokens = curves.pop("tokens", None)
    return {
        "steps": trainer.state.global_step,
        "seconds": round(seconds, 1),
        "tokens": int(trainer.state.num_input_tokens_seen) if tokens is None else tokens,
        "tokens_per_second": round((bar.units if tokens is None else tokens) / seconds, 1),
        "device": device,
        "trained_parameters": trained_parameters,
        "lora_function": lora_layers,
        **facts,
        "loss": loss_curve(trainer.state.log_history, "loss"),
        "validation_loss": loss_curve(trainer.state.log_history, "eval_loss"),
        **curves,
        "learning_rate": learning_rates(trainer.state.log_history),
        **_chosen_facts(options, trainer.state, answering),
        **objective.facts(),
    }


def _prepare_rank(options: TrainOptions, model: Any, rank: int) -> None:
    """What each of several processes does before DistributedDataParallel wraps its model.

    All read the same base, so that its frozen weights need not be sent to the others. They may be mapped
    from a file that cannot be written.
    """
    frozen = [name for name, weight in model.named_parameters() if not weight.requires_grad]
    frozen += [name for name, _ in model.named_buffers()]
    torch.nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
        model, frozen
    )
    if options.lora_dropout or options.neftune_alpha:  # noise of its own for each
        torch.manual_seed(options.seed + rank)


def ship_weights(options: TrainOptions, model: Any, why_not: str, device: str) -> ShipWeights:
    """The layers that --ship gives their values; InputError where one does not compute in one function."""
    assert options.ship
    if device != "cpu":
        raise InputError("--ship computes on a CPU", "CUDA_VISIBLE_DEVICES= hides the GPU")
    if why_not:
        raise InputError(f"--ship is for plain LoRA layers: {why_not}", "--target-modules")
    base, path = open_base(options.base), options.ship_from
    kept = check_file(path, base, options.ship) if path else None
    return ShipWeights(
        model, base, options.ship, kept, teaches=bool(options.ship_distill or options.ship_text)
    )


def offloaded(options: TrainOptions, model: Any, folder: Path) -> AbstractContextManager[Any]:
    """The context of `--offload-activations`; one that does nothing without it."""
    if not options.offload_activations:
        return contextlib.nullcontext()
    return OffloadedActivations(model, folder)


def _chosen_facts(options: TrainOptions, state: Any, answering: Answering | None) -> dict[str, Any]:
    """What the options add to the facts of a run."""
    facts: dict[str, Any] = {}
    if options.keep_best:
        facts["kept_step"] = state.best_global_step
    if answering:
        facts["accuracy"] = {
            "scorer": answering.items.scorer,
            "items": fingerprint(answering.items.examples),
            "curve": loss_curve(state.log_history, "eval_accuracy"),
        }
    return facts


def fit_in_memory(
    options: TrainOptions,
    method: Method,
    objective: Objective,
    bar: Progress,
    work_folder: Path,
    checkpoint: Path | None,
    output: Path,
    answering: Answering | None,
    halve: bool,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """`fit`; with `halve` a run that is out of memory starts over with micro-batches of half the size.

    Gradients are accumulated to the same batch. ResourceError where single examples do not fit.
    """
    while True:
        try:
            facts = fit(
                options, method, objective, bar, work_folder, checkpoint, output, answering, watch
            )
            return facts | ({"micro_batch_size": options.micro_batch_size} if halve else {})
        except (MemoryError, RuntimeError) as error:
            if not halve or not (isinstance(error, MemoryError) or should_reduce_batch_size(error)):
                raise
        smaller = smaller_micro_batch(options)  # outside of `except`, which holds the tensors
        if not smaller:
            raise ResourceError(
                "out of memory with a single example",
                "--checkpoint-activations, --keep-4bit, --offload-activations, --offload-weights",
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
) -> dict[str, Any]:
    """What `transformers.TrainingArguments` of a run are made of; `evaluates`: number of validation examples."""
    between_evaluations = evaluation_steps(options, steps, evaluates) if evaluates else None
    # The best weights can only be those of a checkpoint.
    between_checkpoints = between_evaluations if options.keep_best else options.save_every
    return dict(
        output_dir=str(work_folder),
        max_steps=steps,
        per_device_train_batch_size=int(options.micro_batch_size),
        per_device_eval_batch_size=int(options.micro_batch_size),
        gradient_accumulation_steps=options.accumulation_steps,
        gradient_checkpointing=options.checkpoint_activations,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        learning_rate=options.learning_rate,
        lr_scheduler_type=options.scheduler,
        lr_scheduler_kwargs=parse_arguments(options.scheduler_args),
        warmup_steps=math.ceil(options.warmup * steps),
        # The Trainer hands the learning rate to a backward pass that steps where it reads this name.
        **({"optim": options.optimizer} if optimizer_row(options.optimizer).fused_backward else {}),
        weight_decay=options.weight_decay,
        max_grad_norm=options.max_grad_norm,
        neftune_noise_alpha=options.neftune_alpha or None,
        logging_steps=1,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=between_evaluations,
        save_strategy="steps" if between_checkpoints else "no",
        save_steps=between_checkpoints or 500,
        load_best_model_at_end=options.keep_best,
        metric_for_best_model="eval_loss" if evaluates else None,
        greater_is_better=False,
        restore_callback_states_from_checkpoint=bool(options.early_stopping),
        save_total_limit=2,
        seed=options.seed,
        use_cpu=device == "cpu",
        deepspeed=zero.zero_config(options) if zero.is_zero(options) else None,
        average_tokens_across_devices=True,
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,
        disable_tqdm=True,
        report_to=list(options.report_to) or "none",
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


def _optimizer(options: TrainOptions, method: Method, model: Any, trainer: Any) -> Any:
    """The optimizer of `--optimizer`. Biases and norms have no weight decay, as in the Trainer."""
    groups = method.parameter_groups(model, options.learning_rate)
    if groups is None:
        decayed = set(trainer.get_decay_parameter_names(model))
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        groups = [
            {
                "params": [p for name, p in trained if (name in decayed) is decays],
                "weight_decay": options.weight_decay if decays else 0.0,
            }
            for decays in (True, False)
        ]
    arguments = trainer.args
    settings = Settings(
        options.learning_rate,
        options.weight_decay,
        arguments.max_steps,
        arguments.warmup_steps,
        parse_arguments(options.optimizer_args),
    )
    return create(options.optimizer, Weights.of(model, groups), settings)


def loss_curve(log_history: list[dict[str, Any]], key: str) -> list[list[float]]:
    """[[step, loss], …] of one key of the trainer's log, "loss" or "eval_loss"."""
    return [[row["step"], round(row[key], 4)] for row in log_history if key in row]


def learning_rates(log_history: list[dict[str, Any]]) -> list[list[float]]:
    """[[step, learning rate], …] of the trainer's log, with four significant digits."""
    key = "learning_rate"
    return [[row["step"], float(f"{row[key]:.4g}")] for row in log_history if key in row]


class FlushCallback(transformers.TrainerCallback):  # type: ignore[misc]
    """Brings every checkpoint to the disk."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.world_size > 1:
            torch.distributed.barrier()  # the state of every process is in it
        if state.is_world_process_zero:
            flush(Path(args.output_dir) / f"checkpoint-{state.global_step}")


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
        elif "eval_accuracy" in logs:
            self.bar.update(0, accuracy=logs["eval_accuracy"])


class AnswerCallback(transformers.TrainerCallback):  # type: ignore[misc]
    """Answers the items at every evaluation and logs `eval_accuracy`, which reporters then have."""

    def __init__(self, answering: Answering, trainer: Any) -> None:
        self.answering, self.trainer = answering, trainer

    def on_evaluate(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.trainer.log({"eval_accuracy": self.answering.accuracy(model)})


class WatchCallback(transformers.TrainerCallback):  # type: ignore[misc]
    """Shows every evaluation to whoever watches the run, those before the checkpoint first."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for row in state.log_history:
            self._show(row["step"], row, args, state)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any
    ) -> None:
        self._show(state.global_step, logs, args, state)

    def _show(self, step: int, logs: dict[str, float], args: Any, state: Any) -> None:
        last = step + (args.eval_steps or 1) > state.max_steps
        if "eval_loss" in logs:
            self.watch(Evaluation("loss", step, logs["eval_loss"], last))
        elif "eval_accuracy" in logs:
            self.watch(Evaluation("accuracy", step, logs["eval_accuracy"], last))
