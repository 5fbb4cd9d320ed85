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
from pathlib import Path
from typing import Any

from edgeft import files, machine, store
from edgeft.adapter.config import adapter_manifest
from edgeft.adapter.read import Weighted
from edgeft.benchmarks.quality import evaluate
from edgeft.converters.gguf.convert import convert
from edgeft.data.splits import fingerprint
from edgeft.export.collect_imatrix import collect
from edgeft.export.own_chats import LONGEST, Chats, sample
from edgeft.merge.base_weights import MergeBase
from edgeft.merge.view import Merged
from edgeft.progress import say
from edgeft.records import Example
from edgeft.runtimes.gguf import GGUFRuntime
from edgeft.weights.imatrix import write


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
            losses[candidate] = round(evaluate.answer_nll(model, short), 5)
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
    if store.find_complete(target, "imatrix", options, parents):
        return target
    with (
        store.writing(
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
    machine.preflight(out, "measuring on the model's own chats", merged.bytes_as(16))
    with files.scratch(out) as folder:
        convert(merged, folder / "f16.gguf", "f16", threads)
        with GGUFRuntime(folder / "f16.gguf", threads=threads) as model:
            yield model
