"""Supervised fine-tuning by QLoRA (arXiv 2305.14314): conversations + base -> LoRA adapter.

    train(TrainOptions(base=Path("model"), data=Path("chats.jsonl"), output=Path("adapter")))

The base is frozen at its NF4 values. By default they are dequantized once to the compute type that
is faster on this machine, which on a CPU trains 1.5-2.8 x faster than dequantizing in every step
and learns the same; `keep_4bit` keeps them packed by bitsandbytes where memory is short. The head
runs on answer tokens only, batches are grouped by length.

The adapter is peft's own format, with the tokenizer's template fingerprint and everything that a
merge has to know in its manifest.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

from edgeft import files, machine, models, store
from edgeft.data.encoding import Encoded, encode_all
from edgeft.data.splits import fingerprint, load_splits
from edgeft.errors import InputError, StaleError, require
from edgeft.files import read_json
from edgeft.progress import Progress, quiet_libraries, say
from edgeft.quantization import nf4
from edgeft.records import Manifest
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.tokenizer.hf_files import encoder
from edgeft.train.methods.qlora import compute_type, frozen_base, target_modules
from edgeft.train.options import TrainOptions
from edgeft.weights.checkpoint import GPTQ, Checkpoint


def train(options: TrainOptions, resume: bool = False, overwrite: bool = False) -> Manifest:
    """Train, and return the adapter's manifest. A finished adapter is returned as it is."""
    if not options.base.is_dir():
        raise InputError(f"no such base model folder: {options.base}")
    train_examples, held = load_splits(
        options.data, options.validation_data, options.validation_size, options.seed
    )
    parents = {
        "base": store.identity(options.base),
        "data": files.sha256(options.data),
    }
    if options.validation_data:
        parents["validation_data"] = files.sha256(options.validation_data)
    if not options.output.name:
        raise InputError(f"{options.output} is no name for an adapter", "--output adapter")
    done = store.find_complete(options.output, "adapter", options.to_json(), parents)
    if done:
        say(f"{options.output} is complete, nothing to do")
        return done
    work_folder = options.output.with_name(options.output.name + ".work")
    asked = {"options": options.to_json(), "parents": parents}
    checkpoint = _resumable(work_folder, asked, resume, overwrite)
    card = models.card_for(read_json(options.base / "config.json"))
    chat, tokens = ChatTemplate.from_folder(options.base), encoder(options.base)
    encoded, cut = encode_all(
        train_examples, chat, tokens, options.cutoff_length, options.train_on_inputs
    )
    validation, _ = encode_all(held, chat, tokens, options.cutoff_length)
    if cut.longer:
        say(
            f"{cut.longer} of {len(train_examples)} examples are longer than the cutoff of "
            f"{options.cutoff_length} tokens (longest {cut.longest}) and were left out"
        )
    if not encoded:
        raise InputError(
            f"every example is longer than the cutoff of {options.cutoff_length} tokens",
            f"--cutoff-length {cut.longest}",
        )
    weights = Checkpoint(options.base)
    if any(info.dtype == GPTQ for info in weights.tensors.values()):
        raise InputError(
            f"{options.base} is quantized by GPTQ",
            "train on the unquantized model, or on what merge-export --format hf makes of it",
        )
    parameters = sum(math.prod(info.shape) for info in weights.tensors.values())
    _preflight(options, parameters, work_folder)
    with store.writing(
        options.output,
        kind="adapter",
        options=options.to_json(),
        parents=parents,
        overwrite=overwrite,
    ) as work:
        if checkpoint is None and (work_folder / "asked.json").is_file():
            shutil.rmtree(work_folder)
        work_folder.mkdir(parents=True, exist_ok=True)
        files.write_text(work_folder / "asked.json", json.dumps(asked, indent=1))
        facts = _run(options, card, encoded, validation, work_folder, checkpoint, work.path)
        work.facts |= facts | {
            "parameters": parameters,
            "template": chat.fingerprint,
            "chat": chat.to_json(),
            "examples": {"train": len(encoded), "validation": len(validation)},
            "left_out": dataclasses.asdict(cut),
            "validation_items": fingerprint(held) if held else None,
        }
    shutil.rmtree(work_folder)
    manifest = store.read_manifest(options.output)
    assert manifest is not None
    return manifest


def _resumable(
    work_folder: Path, asked: dict[str, Any], resume: bool, overwrite: bool
) -> Path | None:
    """The newest checkpoint to go on from, None to start from the beginning; deletes nothing.

    StaleError when an interrupted run lies there and nobody said what to do with it.
    """
    found = [
        path
        for path in work_folder.glob("checkpoint-*")
        if (path / "trainer_state.json").is_file()  # the trainer writes it last
    ]
    if not found:
        if resume:
            say(f"no checkpoint in {work_folder}, starting from the beginning")
        return None
    newest = max(found, key=lambda path: int(path.name.rpartition("-")[2]))
    if not resume:
        if overwrite:
            return None
        raise StaleError(
            f"{newest} is left from an interrupted run",
            "--resume goes on from it, --overwrite starts over",
        )
    before = read_json(work_folder / "asked.json")
    changed = [
        key
        for part in ("options", "parents")
        for key, value in asked[part].items()
        if before.get(part, {}).get(key) != value
    ]
    if changed:
        raise StaleError(
            f"cannot resume: {', '.join(changed)} changed since the interrupted run",
            "run with the same options, or start over with --overwrite",
        )
    return newest


def _preflight(options: TrainOptions, parameters: int, folder: Path) -> None:
    """Weights, activations of one micro-batch and the optimizer, roughly but never far below."""
    per_weight = 1 if options.keep_4bit else 4
    activations = options.micro_batch_size * options.cutoff_length * 4 * 60_000
    machine.preflight(
        folder,
        "training",
        disk=3 * 12 * parameters // 50,
        memory=int(per_weight * parameters * 1.3) + min(activations, 2 * 1024**3) + 400_000_000,
    )


def _run(
    options: TrainOptions,
    card: models.Card,
    encoded: list[Encoded],
    validation: list[Encoded],
    work_folder: Path,
    checkpoint: Path | None,
    output: Path,
) -> dict[str, Any]:
    """The part that needs torch: returns the facts, leaves the adapter's files in `output`."""
    # Threads that spin at OpenMP's barriers make a shared machine up to 7 x slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with quiet_libraries():
        torch = require("torch", "train")
        peft = require("peft", "train")
        transformers = require("transformers", "train")
        transformers.utils.logging.disable_progress_bar()
        models.transformers_class(read_json(options.base / "config.json"))
        from edgeft.train.batches import as_dataset, collate
        from edgeft.train.objectives.sft import AnswerTrainer, ProgressCallback

        device = "cuda" if torch.cuda.is_available() else "cpu"
        compute = compute_type(torch, options, device)
        say(f"base in NF4, {'kept in 4 bits' if options.keep_4bit else 'dequantized once'}, "
            f"computing in {str(compute).removeprefix('torch.')} on {device}")  # fmt: skip
        model = frozen_base(torch, transformers, options, card, compute, device)
        targets = target_modules(model, options.target_modules, card)
        transformers.set_seed(options.seed)  # here, so that loading cannot change the start
        model = peft.get_peft_model(
            model,
            peft.LoraConfig(
                r=options.lora_r,
                lora_alpha=options.lora_alpha,
                lora_dropout=options.lora_dropout,
                target_modules=targets,
                task_type="CAUSAL_LM",
            ),
        )
        total = options.steps or math.ceil(
            options.epochs * math.ceil(len(encoded) / options.batch_size)
        )
        curve_step = options.eval_every or max(1, total // 5)
        trainer_options = transformers.TrainingArguments(
            output_dir=str(work_folder),
            max_steps=total,
            per_device_train_batch_size=options.micro_batch_size,
            per_device_eval_batch_size=options.micro_batch_size,
            gradient_accumulation_steps=options.batch_size // options.micro_batch_size,
            learning_rate=options.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=math.ceil(options.warmup * total),
            weight_decay=0.0,
            logging_steps=1,
            eval_strategy="steps" if validation else "no",
            eval_steps=curve_step if validation else None,
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
        bar = Progress("train-qlora", total)
        pad = model.config.pad_token_id or 0
        trainer = AnswerTrainer(
            model=model,
            args=trainer_options,
            train_dataset=as_dataset(encoded),
            eval_dataset=as_dataset(validation) if validation else None,
            data_collator=lambda batch: collate(batch, pad),
            callbacks=[ProgressCallback(bar)],
        )
        trainer.grouped = options.group_by_length
        trainer.remove_callback(transformers.PrinterCallback)
        started = time.perf_counter()
        with bar:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        seconds = time.perf_counter() - started
        model.save_pretrained(str(output), save_embedding_layers=False)
    (output / "README.md").unlink(missing_ok=True)
    history = trainer.state.log_history
    return {
        "steps": total,
        "seconds": round(seconds, 1),
        "tokens": bar.units,
        "tokens_per_second": round(bar.units / seconds, 1),
        "compute_type": str(compute).removeprefix("torch."),
        "device": device,
        "nf4": {
            "kind": "nf4",
            "block": nf4.BLOCK,
            "double_quant": True,
            "compute_type": str(compute).removeprefix("torch."),
            "threads": torch.get_num_threads() if options.keep_4bit else 1,
        },
        "loss": [[row["step"], round(row["loss"], 4)] for row in history if "loss" in row],
        "validation_loss": [
            [row["step"], round(row["eval_loss"], 4)] for row in history if "eval_loss" in row
        ],
    }
