"""The fine-tune's own conversations, for calibration and for the choice of the base's precision."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgeft import files, store
from edgeft.adapter.config import adapter_manifest
from edgeft.adapter.read import Weighted
from edgeft.benchmarks.suites import load_suite, suite_names
from edgeft.data.encoding import calibration, text_calibration
from edgeft.data.rows import load_examples, read_text
from edgeft.data.splits import fingerprint, training_examples, validation_examples
from edgeft.errors import EdgeftError, InputError
from edgeft.merge.view import Merged
from edgeft.progress import say
from edgeft.records import Example
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.tokenizer.hf_files import encoder

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
            data, manifest = Path(options["data"]), store.read_manifest(adapters[0].path)
            learned = manifest.parents.get("data") if manifest else None
            if learned and data.is_file() and files.sha256(data) != learned:
                return [], "the training data changed since"
            return training_examples(options), ""
        examples = validation_examples(options)
    except EdgeftError as error:
        return [], str(error)
    if fingerprint(examples) != recorded["facts"]["validation_items"]:
        return [], "the training data changed since"
    return examples, ""
