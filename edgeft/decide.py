"""What an export finds out on the fine-tune's own chats: the merge base and the importance matrix.

    chats = own_chats(adapters, None, None)
    choice, facts = merge_base(view, adapters, chats, out, threads=2)
    path = own_imatrix(view.on(choice), chats, out, 2, parents)

Both run the merged model as a temporary f16 GGUF, under the template that it was trained with.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeft import stage
from edgeft.activations import collect
from edgeft.adapter import Weighted
from edgeft.benchmarks import quality
from edgeft.benchmarks.suites import load_suite, suite_names
from edgeft.dataset import (
    calibration,
    fingerprint,
    load_examples,
    read_text,
    text_calibration,
)
from edgeft.errors import EdgeftError, InputError
from edgeft.formats import format_named, load
from edgeft.imatrix import write
from edgeft.merge import Merged, adapter_manifest
from edgeft.merge_base import MergeBase
from edgeft.progress import say
from edgeft.records import Example
from edgeft.runtimes.gguf import GGUFRuntime
from edgeft.template import ChatTemplate, encoder
from edgeft.train.sft import training_examples, validation_examples

LONGEST = 4096
"""tokens of a chat that is measured on"""
CHUNK = 512
"""tokens of a piece of plain text"""


@dataclass(frozen=True)
class Chats:
    """The fine-tune's own data, as far as it can be found."""

    validation: list[Example]
    why_no_validation: str
    training: list[Example]
    """to calibrate on"""
    why_no_training: str
    name: str
    """of what is calibrated on"""
    text: str = ""
    """to calibrate on, in place of chats"""

    @property
    def calibrates(self) -> bool:
        return bool(self.training or self.text)


def own_chats(
    adapters: tuple[Weighted, ...], validation: Path | None, calibration_data: Path | None
) -> Chats:
    """From the files that were given, else from what the adapter's training recorded."""
    held, why_not_held = _recorded(adapters, "validation")
    if validation:
        held, why_not_held = load_examples(validation), ""
    if calibration_data is None:
        seen, why_not_seen = _recorded(adapters, "training")
        return Chats(held, why_not_held, seen, why_not_seen, "the training data")
    name = calibration_data.name
    if calibration_data.suffix not in (".json", ".jsonl"):
        text = read_text(calibration_data)
        return Chats(held, why_not_held, [], f"{name} is empty", name, text.strip() and text)
    seen = _unseen(load_examples(calibration_data), held, calibration_data)
    return Chats(held, why_not_held, seen, "", name)


def _unseen(examples: list[Example], held: list[Example], path: Path) -> list[Example]:
    """Chats that nothing is measured on: InputError for those of a suite's test split; what training
    held out is left out."""
    for name in suite_names():
        tests = {example.messages for example in load_examples(load_suite(name).test)}
        if found := sum(example.messages in tests for example in examples):
            raise InputError(
                f"{path}: {found} of {len(examples)} chats are of the test split of {name}",
                "what is measured on must not be calibrated on: take training data",
            )
    measured = {example.messages for example in held}
    kept = [example for example in examples if example.messages not in measured]
    if len(kept) < len(examples):
        say(f"{path}: {len(examples) - len(kept)} chats of the validation split are left out")
    if not kept:
        raise InputError(f"{path} holds nothing but the validation split", "take training data")
    return kept


def sample(view: Merged, chats: Chats, budget: int, longest: int = LONGEST) -> list[list[int]]:
    """Token ids to calibrate on, `budget` of them or all there are; always the same."""
    chat, tokens = ChatTemplate.from_folder(view.tokenizer), encoder(view.tokenizer)
    context = view.card.value(view.config, view.card.hparams["context_length"])
    longest = min(longest, context or longest)
    if not chats.text:
        return calibration(chats.training, chat, tokens, budget, longest)
    begin = tokens(chat.bos_token) if "bos_token" in chat.source else []
    return text_calibration(tokens(chats.text), begin, budget, min(longest, CHUNK))


def _recorded(adapters: tuple[Weighted, ...], split: str) -> tuple[list[Example], str]:
    """A split of the adapter's training again, or none and the reason."""
    if len(adapters) != 1:
        return [], "several adapters" if adapters else "no adapter"
    recorded = adapter_manifest(adapters[0].path)
    if not recorded:
        return [], "the adapter has no manifest"
    if split == "validation" and not recorded["facts"].get("validation_items"):
        return [], "training held out no validation split"
    options = recorded["options"]
    if "data" not in options:
        return [], "the adapter's manifest does not name its data"
    try:
        if split == "training":
            data, manifest = Path(options["data"]), stage.read_manifest(adapters[0].path)
            learned = manifest.parents.get("data") if manifest else None
            if learned and data.is_file() and stage.sha256(data) != learned:
                return [], "the training data changed since"
            return training_examples(options), ""
        examples = validation_examples(options)
    except EdgeftError as error:
        return [], str(error)
    if fingerprint(examples) != recorded["facts"]["validation_items"]:
        return [], "the training data changed since"
    return examples, ""


def merge_base(
    view: Merged, adapters: tuple[Weighted, ...], chats: Chats, out: Path, threads: int
) -> tuple[MergeBase, dict[str, Any]]:
    """Which weights the delta is added to, and why: (choice, facts for the manifest).

    The usual advice is the 16-bit base; a QLoRA adapter was trained on NF4 values, and which of the
    two keeps more of it depends on the run, so both are measured on the validation split.
    """
    if not adapters:
        return "w16", {"chosen": "w16", "why": "no adapter"}
    problem = chats.why_no_validation
    losses: dict[MergeBase, float] = {}
    count = 0
    for candidate in ("w16", "nf4") if chats.validation else ():
        with f16_model(view.on(candidate), out, threads) as model:
            short = [e for e in chats.validation if _length(model, e) <= model.context]
            if not short:
                problem = f"no validation example is within {model.context} tokens"
                break
            losses[candidate] = round(quality.answer_nll(model, short), 5)
            count = len(short)
    if len(losses) < 2:
        manifests = [adapter_manifest(adapter.path) for adapter in adapters]
        on_nf4 = all("nf4" in manifest.get("facts", {}) for manifest in manifests)
        choice: MergeBase = "nf4" if on_nf4 else "w16"
        say(f"merge base {choice}, not measured: {problem} (--validation FILE measures it)")
        return choice, {"chosen": choice, "why": f"not measured: {problem}"}
    choice = min(losses, key=lambda name: losses[name])
    say(
        f"merge base {choice}: validation loss w16 {losses['w16']:.4f}, nf4 {losses['nf4']:.4f} "
        f"on {count} examples"
    )
    return choice, {"chosen": choice, "why": "smaller validation loss", "loss": losses,
                    "examples": count}  # fmt: skip


def _length(model: GGUFRuntime, example: Example) -> int:
    return len(model.encode(model.chat.render(example.messages, generation_prompt=False)))


def own_imatrix(
    view: Merged,
    chats: Chats,
    budget: int,
    out: Path,
    threads: int,
    parents: dict[str, str],
) -> Path:
    """The importance matrix of the merged model on the chats that it learned: out/imatrix.gguf.

    The file is llama.cpp's, so llama-quantize reads it, too.
    """
    target = out / "imatrix.gguf"
    options = {
        "chats": fingerprint(chats.training), "text": hashlib.sha256(chats.text.encode()).hexdigest(),
        "tokens": budget, "merge_base": view.merge_base,
    }  # fmt: skip
    if stage.finished(target, "imatrix", options, parents):
        return target
    with (
        stage.writing(
            target, kind="imatrix", options=options, parents=parents, overwrite=True
        ) as work,
        f16_model(view, out, threads) as model,
    ):
        sequences = sample(view, chats, budget, min(LONGEST, model.context))
        write(collect(model.path, sequences, threads, dataset=chats.name), work.path)
        tokens = sum(map(len, sequences))
        work.facts |= {"chats": len(sequences), "tokens": tokens}
    say(f"{target}  importance from {len(sequences)} chats, {tokens} tokens")
    return target


@contextlib.contextmanager
def f16_model(merged: Merged, out: Path, threads: int) -> Iterator[GGUFRuntime]:
    """The merged model running from a file that is gone afterwards."""
    stage.preflight(out, "measuring on the model's own chats", merged.bytes_as(16))
    gguf = format_named("gguf")
    with stage.scratch(out) as folder:
        load(gguf.converter)(merged, folder / "f16.gguf", "f16", threads)
        with load(gguf.runtime)(folder / "f16.gguf", threads=threads) as model:
            yield model
