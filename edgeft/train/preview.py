"""Data + base model -> the first examples as text with the learned part marked, without training.

print(preview(TrainOptions(base=Path("model"), data=Path("chats.jsonl"), output=Path("none"))).text())
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from edgeft.data.encoded_rows import IGNORED
from edgeft.data.encoding import LeftOut, encode
from edgeft.data.layouts import Layout
from edgeft.data.preview import BRACKETS, marked
from edgeft.data.splits import Splits
from edgeft.records import Example
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.tokenizer.hf_files import Encode, encoder
from edgeft.train.examples import encode_splits, read_splits
from edgeft.train.new_tokens import tokenizer_folder
from edgeft.train.options import TrainOptions

SHOWN_EXAMPLES = 3


@dataclass(frozen=True)
class ShownExample:
    """One example as the chat template writes it."""

    place: str
    """line in its file"""
    tokens: int
    learned: int
    """tokens that are learned"""
    text: str
    """with marks around what is learned"""


@dataclass(frozen=True)
class Preview:
    """What a training run would learn."""

    examples: tuple[ShownExample, ...]
    train: int
    """examples to train on"""
    validation: int
    files: dict[str, dict[str, Any]]
    """file -> {rows, ignored, skipped}"""
    left_out: dict[str, int]
    """longer: examples longer than the cutoff; longest: tokens of the longest; refused by the template"""

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def text(self) -> str:
        """The examples, then a line for each thing that is left out."""
        lines = []
        for shown in self.examples:
            lines += [
                f"line {shown.place}: {shown.tokens} tokens, {shown.learned} of them learned",
                shown.text,
                "",
            ]
        for name, facts in self.files.items():
            lines.append(f"{name}: {facts['rows']} rows")
            lines += [f"  not used: {key} ({n} rows)" for key, n in facts["ignored"].items()]
            lines += [f"  skipped: line {line}: {why}" for line, why in facts["skipped"]]
            more = facts["bad"] - len(facts["skipped"])
            lines += [f"  skipped: {more} more"] if more else []
        lines.append(f"{self.train} examples to train on, {self.validation} to validate")
        for key in ("longer", "refused"):
            why = {"longer": "longer than the cutoff", "refused": "refused by the chat template"}
            if self.left_out[key]:
                lines.append(f"left out: {self.left_out[key]} {why[key]}")
        return "\n".join(lines)


def preview(
    options: TrainOptions, layout: Layout = "chats", marks: tuple[str, str] = BRACKETS
) -> Preview:
    """Read, encode and count as a run does. Raises as `edgeft.train.run.train` for bad data.

    `layout`: of the rows.
    """
    options, splits = read_splits(options, layout)
    tokenizer = tokenizer_folder(options)
    chat, tokenize = ChatTemplate.from_folder(tokenizer), encoder(tokenizer)
    train, validation, left_out = encode_splits(
        options, splits.train, splits.validation, chat, tokenize
    )
    refused = {row.place for row in left_out.refused}
    first = [example for example in splits.train if example.place not in refused]
    return Preview(
        examples=tuple(
            _shown(example, chat, tokenize, options.train_on_inputs, marks)
            for example in first[:SHOWN_EXAMPLES]
        ),
        train=len(train),
        validation=len(validation),
        files=_files(splits),
        left_out=_left_out(left_out),
    )


def _shown(
    example: Example,
    chat: ChatTemplate,
    tokenize: Encode,
    train_on_inputs: bool,
    marks: tuple[str, str],
) -> ShownExample:
    if example.is_prompt:
        tokens, learned = len(tokenize(chat.render(example.prompt, tools=example.tools))), 0
    else:
        encoded = encode(example, chat, tokenize, train_on_inputs)
        tokens = len(encoded.ids)
        learned = sum(label != IGNORED for label in encoded.labels)
    return ShownExample(
        place=example.place,
        tokens=tokens,
        learned=learned,
        text=marked(example, chat, train_on_inputs, marks),
    )


def _files(splits: Splits) -> dict[str, dict[str, Any]]:
    return {
        str(file.path): {
            "rows": len(file.examples) + len(file.bad),
            "ignored": file.ignored,
            "bad": len(file.bad),
            "skipped": file.to_json().get("skipped", {}).get("first", []),
        }
        for file in splits.files.values()
    }


def _left_out(left_out: LeftOut) -> dict[str, int]:
    return {
        "longer": left_out.longer,
        "longest": left_out.longest,
        "refused": len(left_out.refused),
    }
