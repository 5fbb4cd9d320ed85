"""Data + base model -> a trained adapter or model: a run of a method and an objective, whole or absent.

    train(TrainOptions(base=Path("model"), data=Path("chats.jsonl"), output=Path("adapter")))

This module owns what all runs share: splits, the check of disk and memory, resuming, the manifest.
It knows no method and no objective; `registry.py` names them and `loop.py` trains.

The manifest holds the base's and the data's identity, the chat template's fingerprint and the facts
of method and objective, so that a merge finds the base as it was during training.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from pathlib import Path
from typing import Any

from edgeft import files, machine, models, store
from edgeft.data.layouts import LAYOUTS
from edgeft.data.preview import first_marked, shortened
from edgeft.data.sources import training_identity
from edgeft.data.splits import Splits, fingerprint
from edgeft.errors import InputError, StaleError
from edgeft.progress import Progress, quiet_libraries, say
from edgeft.records import Manifest
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.tokenizer.hf_files import encoder
from edgeft.train import checkpoints, memory
from edgeft.train.answers import Answering, AnswerItems
from edgeft.train.continued import check_adapter, check_ship_from
from edgeft.train.examples import largest_batch, read_splits
from edgeft.train.new_tokens import save_tokenizer, tokenizer_folder
from edgeft.train.optimizers import check_optimizer
from edgeft.train.options import TrainOptions
from edgeft.train.parallel import check_parallel, checkpoint_layout
from edgeft.train.processes import Together, train_together
from edgeft.train.protocol import Watch
from edgeft.train.registry import (
    MethodRow,
    check_objective,
    check_options,
    load_method,
    load_objective,
    method_row,
)
from edgeft.train.reporters import check_reporters
from edgeft.train.rewards import code_sha256
from edgeft.train.ship import check_ship, plain_text
from edgeft.weights.text_base import TextBase, open_base

FIRST = {"method": "qlora", "objective": "sft"}
"""the pair of `edgeft train-qlora`"""
CHECKPOINTS = 3
"""on the disk at once: two that are kept and one that is written"""


def train(
    options: TrainOptions,
    resume: bool = False,
    overwrite: bool = False,
    method: str = FIRST["method"],
    objective: str = FIRST["objective"],
    items: AnswerItems | None = None,
    watch: Watch | None = None,
) -> Manifest:
    """Train, and return the manifest of the result. A complete result is returned as it is.

    `resume` goes on from the last checkpoint of an interrupted run, `overwrite` starts over. `items` are
    answered whenever the validation loss is computed. `watch` is called with every evaluation.
    Raises InputError for data, options or a base that cannot be trained, ResourceError for too
    little disk or memory, StaleError where the output holds something else or another run writes it.
    """
    row = _check(options, method, objective, watched=bool(watch), answers=bool(items))
    options, splits = read_splits(options, LAYOUTS[objective])
    request = _request(options, method, objective)
    if not options.output.name:
        raise InputError(f"{options.output} is no name for a result", "--output adapter")
    complete = store.find_complete(options.output, row.result, **request)
    if complete:
        say(f"{options.output} is complete, nothing to do")
        if options.work_folder.is_dir():
            with contextlib.suppress(StaleError), files.claimed(options.output):
                checkpoints.remove_finished(options.work_folder, request)
        return complete
    with files.claimed(options.output):
        work_folder = options.work_folder
        layout = checkpoint_layout(options)
        checkpoint = checkpoints.resumable(work_folder, request, resume, overwrite, layout)
        base, tokenizer = open_base(options.base), tokenizer_folder(options)
        chat = ChatTemplate.from_folder(tokenizer)
        for note in base.notes:
            say(note)
        _check_start(options, base)
        if items and not splits.validation:
            raise InputError(
                "items are answered with the validation loss, and there is no validation",
                "--validation-size 0.05",
            )
        parameters = sum(math.prod(info.shape) for info in base.weights.tensors.values())
        options = _preflight(options, row, splits, chat, work_folder, checkpoint)
        store.check_free(options.output, row.result, overwrite=overwrite, **request)
        with quiet_libraries():
            encoded = load_objective(objective)(
                options, splits.train, splits.validation, chat, encoder(tokenizer)
            )
            place, text = first_marked(splits.train, chat, options.train_on_inputs)
            say(f"the first example, line {place}, with what is learned in ⟦ ⟧:\n{shortened(text)}")
            data_facts = _data_facts(splits)
            del splits  # its texts take more memory than the token ids
            trained = load_method(method)(options, base.card)
            models.transformers_class(base.config)  # FormatError where transformers has none
            answering = (
                Answering(items, tokenizer, int(options.micro_batch_size)) if items else None
            )
            from edgeft.train.loop import fit_in_memory

            with store.writing(
                options.output, kind=row.result, overwrite=overwrite, **request
            ) as work:
                checkpoints.open_work_folder(work_folder, request, checkpoint, layout)
                steps = options.total_steps(len(encoded.train) * encoded.answers_per_row)
                bar = Progress(f"train-{method}", steps)
                if options.world_size > 1:
                    facts = train_together(
                        Together(
                            options, trained, encoded, bar.title, steps, work_folder, checkpoint,
                            work.path, answering, request,
                        )
                    )  # fmt: skip
                else:
                    facts = fit_in_memory(
                        options, trained, encoded, bar, work_folder, checkpoint, work.path,
                        answering,
                        halve=request["options"]["micro_batch_size"] == "auto", watch=watch,
                    )  # fmt: skip
                if options.add_tokens:
                    save_tokenizer(options, work.path)
                work.facts |= facts | {
                    "parameters": parameters,
                    "template": chat.fingerprint,
                    "chat": chat.to_json(),
                    "examples": {
                        "train": len(encoded.train),
                        "validation": len(encoded.validation),
                    },
                    **data_facts,
                }
        checkpoints.remove_work_folder(work_folder)
        manifest = store.read_manifest(options.output)
        assert manifest is not None
        return manifest


def _check(
    options: TrainOptions, method: str, objective: str, watched: bool = False, answers: bool = False
) -> MethodRow:
    """The method's row. Raises for what no run could train, before anything is read."""
    row = method_row(method)
    check_options(method, options)
    check_objective(objective, options, method)
    check_optimizer(options)
    check_parallel(options, method, objective, watched, answers)
    check_reporters(options.report_to)
    return row


def check_start(options: TrainOptions, method: str, objective: str) -> None:
    """Raise what `train` raises before it loads the base, while the files of --ship-from and --ship-text are
    still to be made."""
    _check(options, method, objective)
    read_splits(options, LAYOUTS[objective])
    _check_start(dataclasses.replace(options, ship_from=None), open_base(options.base))


def _check_start(options: TrainOptions, base: TextBase) -> None:
    if options.ship:
        check_ship(options.ship, base)
    if options.adapter:
        check_adapter(options, base)
        check_ship_from(options, base)


def train_beside(
    options: TrainOptions,
    method: str = FIRST["method"],
    objective: str = FIRST["objective"],
    items: AnswerItems | None = None,
) -> None:
    """The part of a machine other than the first in a training of several (`--node-rank` above 0).

    It writes checkpoints' states of its own processes, and no result. Raises as `train`.
    """
    row = _check(options, method, objective, answers=bool(items))
    options, splits = read_splits(options, LAYOUTS[objective])
    request = _request(options, method, objective)
    base, tokenizer = open_base(options.base), tokenizer_folder(options)
    chat = ChatTemplate.from_folder(tokenizer)
    options = _preflight(options, row, splits, chat, options.work_folder, None)
    with quiet_libraries():
        encoded = load_objective(objective)(
            options, splits.train, splits.validation, chat, encoder(tokenizer)
        )
        trained = load_method(method)(options, base.card)
        steps = options.total_steps(len(encoded.train) * encoded.answers_per_row)
        folder = options.work_folder
        run = Together(
            options, trained, encoded, f"train-{method}", steps, folder, None, folder, None, request
        )
        train_together(run)


def _request(options: TrainOptions, method: str, objective: str) -> dict[str, dict[str, Any]]:
    """{"options": …, "parents": …}: two runs with the same request have the same result."""
    names = {"method": method, "objective": objective}
    # Adapters from before there was a choice do not name it, and stay complete.
    chosen: dict[str, Any] = {key: name for key, name in names.items() if name != FIRST[key]}
    if options.reward and (code := code_sha256(options.reward)):
        chosen["reward_code"] = code
    return {"options": options.to_json() | chosen, "parents": identities(options, objective)}


def identities(options: TrainOptions, objective: str) -> dict[str, str]:
    """Field of the options that names an input of the training -> the input's identity."""
    layout = LAYOUTS[objective]
    parents = {
        "base": store.identity(options.base),
        "data": training_identity(options.data, "train", layout),
    }
    if options.validation_data:
        parents["validation_data"] = training_identity(
            options.validation_data, "validation", layout
        )
    if options.adapter:
        parents["adapter"] = store.identity(options.adapter)
    if options.ship_from:
        if not options.ship_from.is_file():
            raise InputError(f"no such file: {options.ship_from}", "check --ship-from")
        parents["ship_from"] = store.identity(options.ship_from)
    if options.ship_text:
        plain_text(options.ship_text)
        parents["ship_text"] = store.identity(options.ship_text)
    return parents


def _data_facts(splits: Splits) -> dict[str, Any]:
    """The fingerprint of the validation split, and what was left out of the files where that is something."""
    left_out = {role: file.to_json() for role, file in splits.files.items()}
    facts = {"validation_items": fingerprint(splits.validation) if splits.validation else None}
    return facts | ({"rows": left_out} if any(left_out.values()) else {})


def _preflight(
    options: TrainOptions,
    row: MethodRow,
    splits: Splits,
    chat: ChatTemplate,
    folder: Path,
    checkpoint: Path | None,
) -> TrainOptions:
    """The options with a number in place of `--micro-batch-size auto`.

    ResourceError where disk or memory is short; the hint names the nearest options that fit.
    """
    memory.check_attention(options)
    base = memory.read_base(options.base)
    examples = [*splits.train, *splits.validation]
    batch = largest_batch(options, examples, chat, encoder(options.base))
    request = memory.Request(base, options, row.trains, batch)
    if options.micro_batch_size == "auto":
        size = checkpoints.micro_batch_size(checkpoint) or request.largest_micro_batch()
        say(f"micro-batches of {size}")
        options = dataclasses.replace(options, micro_batch_size=size)
        request = dataclasses.replace(request, options=options, batch=batch.of(size))
    machine.preflight(
        folder,
        "training",
        disk=CHECKPOINTS * request.checkpoint_bytes
        + request.result_bytes
        + request.offloaded_bytes,
        memory=request.needed * options.processes,
        spare=request.nearest_fit() or "take a smaller base or shorter examples (edgeft plan)",
    )
    return options
