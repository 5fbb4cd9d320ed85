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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from edgeft import models, nf4, stage
from edgeft.adapter_tensors import in_checkpoint
from edgeft.checkpoint import GPTQ, Checkpoint
from edgeft.dataset import Encoded, encode_all, fingerprint, load_examples, split
from edgeft.errors import InputError, StaleError, require
from edgeft.progress import Progress, quiet_libraries, say
from edgeft.records import Manifest
from edgeft.template import ChatTemplate, encoder, read_json


@dataclass(frozen=True)
class TrainOptions:
    base: Path
    """Hugging Face folder of the base model"""
    data: Path
    """alpaca, messages or sharegpt; JSON or JSONL"""
    output: Path
    """folder of the adapter"""
    validation_data: Path | None = None
    """a file of its own; otherwise validation_size is split off data"""
    validation_size: float = 0.05
    """share of the examples below 1, a count from 1, 0 for none"""
    epochs: float = 1.0
    """passes over the training examples, unless steps is given"""
    steps: int | None = None
    """optimizer steps"""
    batch_size: int = 8
    """examples per optimizer step"""
    micro_batch_size: int = 8
    """examples per forward pass; gradients are accumulated up to batch_size"""
    learning_rate: float = 1e-3
    """peak, after the warm-up and before the cosine decay"""
    warmup: float = 0.05
    """share of the steps"""
    cutoff_length: int = 512
    """tokens; longer examples are left out and counted"""
    lora_r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    target_modules: tuple[str, ...] = ()
    """module names; empty = the model card's (every linear layer of a block)"""
    train_on_inputs: bool = False
    """learn the prompt's tokens too, not only the answer's"""
    group_by_length: bool = True
    """batches of similar length, less padding"""
    compute_type: Literal["auto", "fp32", "bf16"] = "auto"
    """auto measures which is faster"""
    keep_4bit: bool = False
    """keep the base packed in 4 bits (bitsandbytes): least memory, slower"""
    seed: int = 0
    eval_every: int = 0
    """steps between points of the validation curve; 0 = five points"""
    save_every: int = 50
    """steps between checkpoints; 0 = none"""

    def __post_init__(self) -> None:
        if self.batch_size % self.micro_batch_size:
            raise InputError(
                f"--batch-size {self.batch_size} is no multiple of "
                f"--micro-batch-size {self.micro_batch_size}"
            )
        if self.steps is not None and self.steps < 1 or not 0 < self.epochs < math.inf:
            raise InputError("--steps and --epochs must be positive")
        if not 0 <= self.validation_size < math.inf:
            raise InputError(f"--validation-size {self.validation_size} is no share and no count")

    def to_json(self) -> dict[str, Any]:
        raw = {k: str(v) if isinstance(v, Path) else v for k, v in vars(self).items()}
        return cast(dict[str, Any], json.loads(json.dumps(raw)))


def train(options: TrainOptions, resume: bool = False, overwrite: bool = False) -> Manifest:
    """Train, and return the adapter's manifest. A finished adapter is returned as it is."""
    if not options.base.is_dir():
        raise InputError(f"no such base model folder: {options.base}")
    train_examples, held = _splits(options)
    parents = {
        "base": stage.identity(options.base),
        "data": stage.sha256(options.data),
    }
    if options.validation_data:
        parents["validation_data"] = stage.sha256(options.validation_data)
    if not options.output.name:
        raise InputError(f"{options.output} is no name for an adapter", "--output adapter")
    done = stage.finished(options.output, "adapter", options.to_json(), parents)
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
    with stage.writing(
        options.output,
        kind="adapter",
        options=options.to_json(),
        parents=parents,
        overwrite=overwrite,
    ) as work:
        if checkpoint is None and (work_folder / "asked.json").is_file():
            shutil.rmtree(work_folder)
        work_folder.mkdir(parents=True, exist_ok=True)
        stage.write_text(work_folder / "asked.json", json.dumps(asked, indent=1))
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
    manifest = stage.read_manifest(options.output)
    assert manifest is not None
    return manifest


def training_examples(options: dict[str, Any]) -> list[Any]:
    """The training split of a finished adapter again, from its manifest's options."""
    examples = load_examples(Path(options["data"]))
    if options.get("validation_data"):
        return examples
    return split(examples, options["validation_size"], options["seed"])[0]


def validation_examples(options: dict[str, Any]) -> list[Any]:
    """The validation split of a finished adapter again, from its manifest's options."""
    data, own = Path(options["data"]), options.get("validation_data")
    if own:
        return load_examples(Path(own))
    return split(load_examples(data), options["validation_size"], options["seed"])[1]


def _splits(options: TrainOptions) -> tuple[list[Any], list[Any]]:
    examples = load_examples(options.data)
    if options.validation_data:
        return examples, load_examples(options.validation_data)
    return split(examples, options.validation_size, options.seed)


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
    stage.preflight(
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
        from edgeft.train.trainer import AnswerTrainer, ProgressCallback, as_dataset, collate

        device = "cuda" if torch.cuda.is_available() else "cpu"
        compute = _compute_type(torch, options, device)
        say(f"base in NF4, {'kept in 4 bits' if options.keep_4bit else 'dequantized once'}, "
            f"computing in {str(compute).removeprefix('torch.')} on {device}")  # fmt: skip
        model = _frozen_base(torch, transformers, options, card, compute, device)
        targets = _targets(model, options.target_modules, card)
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


def _frozen_base(
    torch: Any,
    transformers: Any,
    options: TrainOptions,
    card: models.Card,
    compute: Any,
    device: str,
) -> Any:
    """The base model in the compute type, with what the card names at its NF4 values.

    `edgeft.merge_base` finds the same values again. The model is loaded in the compute type, not cast to
    it: a cast would round what transformers holds in float32, as the frequencies of the rotation.
    """
    if options.keep_4bit:
        require("bitsandbytes", "train")
        narrow = [
            f"{name} ({info.shape[1]} wide)"
            for name, info in Checkpoint(options.base).tensors.items()
            if card.in_4bit(name, info.shape) and info.shape[1] % nf4.BLOCK
        ]
        if narrow and device == "cpu":
            # bitsandbytes 0.50.2 gives wrong values there: its CPU kernel starts a block per row.
            raise InputError(
                f"--keep-4bit on a CPU needs widths that are multiples of {nf4.BLOCK}: {narrow[0]}",
                "leave --keep-4bit out",
            )
        with torch.device("meta"):
            outline = transformers.AutoModelForCausalLM.from_config(
                transformers.AutoConfig.from_pretrained(options.base)
            )
        packed = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            llm_int8_skip_modules=[
                name
                for name, module in outline.named_modules()
                if isinstance(module, torch.nn.Linear)
                and not _in_4bit(card, f"{name}.weight", module.weight)
            ],
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute,
        )
        model = transformers.AutoModelForCausalLM.from_pretrained(
            options.base,
            dtype=compute,
            use_safetensors=True,
            quantization_config=packed,
            device_map={"": device},
        )
        model.requires_grad_(False)
        for module in model.modules():
            # Without this bitsandbytes 0.50.2 repacks the weights at the first evaluation and
            # never back, and training goes on without the gradients that pass through them.
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
        return model
    model = transformers.AutoModelForCausalLM.from_pretrained(
        options.base, dtype=compute, use_safetensors=True
    )
    model.requires_grad_(False)
    for name, weight in model.named_parameters():
        if _in_4bit(card, name, weight):
            weight.copy_(torch.from_numpy(nf4.round_trip(weight.float().numpy())))
    return model.to(device)


def _in_4bit(card: models.Card, name: str, weight: Any) -> bool:
    return card.in_4bit(in_checkpoint(card, name), tuple(weight.shape))


def _targets(model: Any, asked: Sequence[str], card: models.Card) -> list[str]:
    """The modules that were asked for, or those of the card: a family may lack some in one size."""
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    missing = [target for target in asked if target.rpartition(".")[2] not in names]
    if missing:
        raise InputError(f"the model has no modules named {', '.join(missing)}", "--target-modules")
    return list(asked) or [target for target in card.lora_targets if target in names]


def _compute_type(torch: Any, options: TrainOptions, device: str) -> Any:
    """fp32, unless bf16 multiplies clearly faster here (on many CPUs it is half as fast)."""
    if options.compute_type != "auto":
        return torch.float32 if options.compute_type == "fp32" else torch.bfloat16
    if device == "cuda":
        return torch.bfloat16
    if options.keep_4bit:  # bitsandbytes is 1.4 x faster in it on a CPU
        return torch.float32
    best = {torch.float32: math.inf, torch.bfloat16: math.inf}
    for _ in range(10):  # interleaved, so that a busy moment hits both
        for dtype in tuple(best):
            a, b = torch.randn(512, 576).to(dtype), torch.randn(576, 1536).to(dtype)
            start = time.perf_counter()
            torch.mm(a, b)
            best[dtype] = min(best[dtype], time.perf_counter() - start)
        if best[torch.bfloat16] > 4 * best[torch.float32]:
            break  # no instructions for it: each try may take a second
    faster = best[torch.bfloat16] < 0.75 * best[torch.float32]
    return torch.bfloat16 if faster else torch.float32
