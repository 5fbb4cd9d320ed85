"""Adapter and data files -> FineTuneData: examples for calibration and for validation.

    data = fine_tune_data(adapters, validation_file, calibration_file)
    sequences = calibration_ids(view, data, max_tokens=32_768)

Each split comes from the user's file. Without a file it comes from the data that the adapter's
manifest names.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from edgeft import store
from edgeft.adapter.config import adapter_manifest
from edgeft.adapter.read import Weighted
from edgeft.benchmarks.suites import load_suite, suite_names
from edgeft.data.encoding import calibration, renderable, text_calibration
from edgeft.data.layouts import layout_of
from edgeft.data.reading import holds_rows, read_text
from edgeft.data.rows import BadRows, load_examples
from edgeft.data.sources import training_identity
from edgeft.data.splits import fingerprint, training_examples, validation_examples
from edgeft.errors import EdgeftError, InputError
from edgeft.merge.view import Merged
from edgeft.progress import say
from edgeft.records import Example
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.tokenizer.hf_files import encoder

MAX_CHAT_TOKENS = 4096
"""tokens of a calibration chat at most"""
MAX_TEXT_CHARS = 10_000_000
"""of the plain texts that an adapter learned, to calibrate on"""
TEXT_SEQUENCE_TOKENS = 512
"""tokens of a sequence that is cut from plain calibration text"""
TEXT_SHARE = 0.25
"""of the calibration tokens that come from the text beside chats"""


@dataclass(frozen=True)
class FineTuneData:
    """The validation split and the calibration data; both may be empty."""

    validation: list[Example]
    why_no_validation: str
    """reason for an empty `validation`"""
    training: list[Example]
    """calibration chats"""
    why_no_training: str
    """reason for an empty `training`"""
    name: str
    """name of the calibration data"""
    text: str = ""
    """calibration text, in place of chats"""
    text_beside: str = ""
    """calibration text, beside chats"""
    bad_rows: BadRows = "stop"
    """what a row does that the chat template refuses"""

    def renderable(self, chat: ChatTemplate) -> FineTuneData:
        """The data without the rows that the chat template refuses, where bad rows are skipped."""
        if self.bad_rows == "stop":
            return self
        path = Path(self.name)
        return dataclasses.replace(
            self,
            training=renderable(self.training, chat, path, "skip"),
            validation=renderable(self.validation, chat, path, "skip"),
        )

    @property
    def has_calibration_data(self) -> bool:
        return bool(self.training or self.text)


def fine_tune_data(
    adapters: tuple[Weighted, ...],
    validation_file: Path | None,
    calibration_file: Path | None,
    bad_rows: BadRows = "stop",
    calibration_text: Path | None = None,
) -> FineTuneData:
    """Read the user's files; replace a missing one by a split of the adapter's training data.

    InputError where the calibration file holds a suite's test split, or only validation examples, and
    for a calibration text beside what is no chat.
    """
    data = _chats_or_text(adapters, validation_file, calibration_file, bad_rows)
    if calibration_text is None:
        return data
    if not data.training:
        why = f"{data.name} is plain text" if data.text else data.why_no_training
        raise InputError(
            f"--calibration-text is read beside chats, and there are none: {why}",
            f"--calibration {calibration_text}",
        )
    if holds_rows(calibration_text):
        raise InputError(f"{calibration_text} holds rows, not plain text", "--calibration")
    text = read_text(calibration_text)
    if not text.strip():
        raise InputError(f"{calibration_text} is empty", "a file with plain text")
    return dataclasses.replace(data, text_beside=text)


def _chats_or_text(
    adapters: tuple[Weighted, ...],
    validation_file: Path | None,
    calibration_file: Path | None,
    bad_rows: BadRows,
) -> FineTuneData:
    recorded = [adapter_manifest(adapter.path) or {} for adapter in adapters]
    if any(manifest.get("options", {}).get("bad_rows") == "skip" for manifest in recorded):
        bad_rows = "skip"
    validation, why_no_validation = _recorded_split(adapters, "validation")
    if validation_file:
        validation, why_no_validation = load_examples(validation_file, bad_rows), ""
    if calibration_file is None:
        training, why_no_training = _recorded_split(adapters, "training")
        texts = [example.answer for example in training if example.is_document]
        return FineTuneData(
            validation, why_no_validation, [] if texts else training, why_no_training,
            "the training data", "\n\n".join(texts)[:MAX_TEXT_CHARS], bad_rows=bad_rows,
        )  # fmt: skip
    name = calibration_file.name
    if not holds_rows(calibration_file):
        text = read_text(calibration_file)
        return FineTuneData(
            validation, why_no_validation, [], f"{name} is empty", name, text.strip() and text,
            bad_rows=bad_rows,
        )  # fmt: skip
    training = _without_test_and_validation(
        load_examples(calibration_file, bad_rows), validation, calibration_file
    )
    return FineTuneData(validation, why_no_validation, training, "", name, bad_rows=bad_rows)


def _without_test_and_validation(
    examples: list[Example], validation: list[Example], path: Path
) -> list[Example]:
    """The examples without the validation split; InputError for those of a suite's test split."""
    for name in suite_names():
        tests = {example.messages for example in load_examples(load_suite(name).test)}
        if count := sum(example.messages in tests for example in examples):
            raise InputError(
                f"{path}: {count} of {len(examples)} chats are of the test split of {name}",
                "calibrate on training data, not on data that a benchmark measures",
            )
    validation_messages = {example.messages for example in validation}
    remaining = [example for example in examples if example.messages not in validation_messages]
    if len(remaining) < len(examples):
        count = len(examples) - len(remaining)
        say(f"{path}: {count} chats of the validation split are left out")
    if not remaining:
        raise InputError(f"{path} holds nothing but the validation split", "take training data")
    return remaining


def calibration_ids(
    view: Merged, data: FineTuneData, max_tokens: int, max_chat_tokens: int = MAX_CHAT_TOKENS
) -> list[list[int]]:
    """Token ids of calibration sequences, `max_tokens` in all or fewer; the choice is fixed."""
    chat, encode = ChatTemplate.from_folder(view.tokenizer), encoder(view.tokenizer)
    context = view.card.value(view.config, view.card.hparams["context_length"])
    max_chat_tokens = min(max_chat_tokens, context or max_chat_tokens)
    bos_ids = encode(chat.bos_token) if "bos_token" in chat.source else []
    sequence_tokens = min(max_chat_tokens, TEXT_SEQUENCE_TOKENS)
    if data.text:
        return text_calibration(encode(data.text), bos_ids, max_tokens, sequence_tokens)
    share = TEXT_SHARE if data.text_beside else 0
    budget = max_tokens - int(max_tokens * share)
    chats = calibration(data.training, chat, encode, budget, max_chat_tokens)
    tokens = round(sum(map(len, chats)) * share / (1 - share))
    if tokens <= len(bos_ids):
        return chats
    sequence_tokens = min(sequence_tokens, tokens)
    return chats + text_calibration(encode(data.text_beside), bos_ids, tokens, sequence_tokens)


def _recorded_split(adapters: tuple[Weighted, ...], split: str) -> tuple[list[Example], str]:
    """A split of the adapter's training data, by its manifest; else [] and the reason."""
    if len(adapters) != 1:
        return [], "several adapters" if adapters else "no adapter"
    recorded = adapter_manifest(adapters[0].path)
    if not recorded:
        return [], "the adapter has no manifest"
    if split == "validation" and not recorded["facts"].get("validation_items"):
        return [], "training held out no validation split"
    options = recorded["options"]
    if split == "validation" and layout_of(options) == "documents":
        return [], "training learned plain text"
    if split == "validation" and layout_of(options) == "prompts":
        return [], "training learned from rewards"
    if "data" not in options:
        return [], "the adapter's manifest does not name its data"
    try:
        if split == "training":
            path, manifest = Path(options["data"]), store.read_manifest(adapters[0].path)
            recorded_sha256 = manifest.parents.get("data") if manifest else None
            if recorded_sha256 and recorded_sha256 != training_identity(
                path, "train", layout_of(options)
            ):
                return [], "the training data changed since"
            return training_examples(options), ""
        examples = validation_examples(options)
    except EdgeftError as error:
        return [], str(error)
    if fingerprint(examples) != recorded["facts"]["validation_items"]:
        return [], "the training data changed since"
    return examples, ""
