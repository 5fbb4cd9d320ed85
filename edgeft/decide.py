"""What an export finds out on the fine-tune's own chats: the merge base and the importance matrix.

    chats = own_chats(adapters, None, None)
    choice, facts = merge_base(base, adapters, chats, out, threads=2)
    path = own_imatrix(base, adapters, choice, chats, out / "imatrix.gguf", 2, parents)

Both run the merged model as a temporary f16 GGUF, under the template that it was trained with.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeft import stage
from edgeft.activations import collect
from edgeft.adapter import Weighted
from edgeft.benchmarks import quality
from edgeft.dataset import calibration, fingerprint, load_examples
from edgeft.errors import EdgeftError
from edgeft.formats import format_named, load
from edgeft.imatrix import write
from edgeft.merge import MergeBase, adapter_manifest, open_merged
from edgeft.progress import say
from edgeft.records import Example
from edgeft.template import ChatTemplate, encoder
from edgeft.train.sft import training_examples, validation_examples

LONGEST = 4096
"""tokens of a chat that is measured on"""


@dataclass(frozen=True)
class Chats:
    """The fine-tune's own data, as far as it can be found."""

    validation: list[Example]
    why_no_validation: str
    training: list[Example]
    why_no_training: str
    name: str
    """of the training data"""


def own_chats(
    adapters: tuple[Weighted, ...], validation: Path | None, calibration_data: Path | None
) -> Chats:
    """From the files that were given, else from what the adapter's training recorded."""
    held, why_not_held = _recorded(adapters, "validation")
    seen, why_not_seen = _recorded(adapters, "training")
    name = "the training data"
    if validation:
        held, why_not_held = load_examples(validation), ""
    if calibration_data:
        seen, why_not_seen = load_examples(calibration_data), ""
        name = calibration_data.name
    return Chats(held, why_not_held, seen, why_not_seen, name)


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
    try:
        if split == "training":
            manifest = stage.read_manifest(adapters[0].path)
            learned, data = (
                manifest.parents.get("data") if manifest else None,
                Path(options["data"]),
            )
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
    base: Path, adapters: tuple[Weighted, ...], chats: Chats, out: Path, threads: int
) -> tuple[MergeBase, dict[str, Any]]:
    """Which weights the delta is added to, and why: (choice, facts for the manifest).

    The usual advice is the 16-bit base; a QLoRA adapter was trained on NF4 values, and which of the
    two keeps more of it depends on the run, so both are measured on the validation split.
    """
    if not adapters:
        return "w16", {"chosen": "w16", "why": "no adapter"}
    examples, problem = chats.validation, chats.why_no_validation
    chat, encode = ChatTemplate.from_folder(base), encoder(base)
    short = [e for e in examples if len(encode(chat.render(e.messages, False))) <= LONGEST]
    if examples and not short:
        problem = f"every validation example is longer than {LONGEST} tokens"
    if not short:
        manifests = [adapter_manifest(adapter.path) for adapter in adapters]
        on_nf4 = all("nf4" in manifest.get("facts", {}) for manifest in manifests)
        choice: MergeBase = "nf4" if on_nf4 else "w16"
        say(f"merge base {choice}, not measured: {problem} (--validation FILE measures it)")
        return choice, {"chosen": choice, "why": f"not measured: {problem}"}
    losses: dict[MergeBase, float] = {}
    for candidate in ("w16", "nf4"):
        with (
            f16_model(base, adapters, candidate, out, threads) as file,
            load(format_named("gguf").runtime)(file, threads=threads) as model,
        ):
            losses[candidate] = round(quality.answer_nll(model, short), 5)
    choice = min(losses, key=lambda name: losses[name])
    say(
        f"merge base {choice}: validation loss w16 {losses['w16']:.4f}, nf4 {losses['nf4']:.4f} "
        f"on {len(short)} examples"
    )
    return choice, {"chosen": choice, "why": "smaller validation loss", "loss": losses,
                    "examples": len(short)}  # fmt: skip


def own_imatrix(
    base: Path,
    adapters: tuple[Weighted, ...],
    merged_into: MergeBase,
    chats: Chats,
    target: Path,
    threads: int,
    parents: dict[str, str],
) -> Path:
    """The importance matrix of the merged model on the chats that it learned, at `target`.

    The file is llama.cpp's, so llama-quantize reads it, too.
    """
    options = {"chats": fingerprint(chats.training), "merge_base": merged_into}
    if stage.finished(target, "imatrix", options, parents):
        return target
    folder = open_merged(base, adapters, merged_into).tokenizer
    sequences = calibration(chats.training, ChatTemplate.from_folder(folder), encoder(folder))
    with (
        stage.writing(
            target, kind="imatrix", options=options, parents=parents, overwrite=True
        ) as work,
        f16_model(base, adapters, merged_into, target.parent, threads) as file,
    ):
        write(collect(file, sequences, threads, dataset=chats.name), work.path)
        work.facts |= {"chats": len(sequences), "tokens": sum(map(len, sequences))}
    tokens = sum(map(len, sequences))
    say(f"{target}  importance from {len(sequences)} chats, {tokens} tokens")
    return target


@contextlib.contextmanager
def f16_model(
    base: Path, adapters: tuple[Weighted, ...], merged_into: MergeBase, out: Path, threads: int
) -> Iterator[Path]:
    """The merged model as a file that is gone afterwards."""
    merged = open_merged(base, adapters, merged_into)
    out.mkdir(parents=True, exist_ok=True)
    stage.preflight(out, "measuring on the model's own chats", merged.bytes_as(16))
    with stage.scratch(out) as folder:
        file = folder / "f16.gguf"
        load(format_named("gguf").converter)(merged, file, "f16", threads)
        yield file
