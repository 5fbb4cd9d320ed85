"""Training options -> the examples of a run, and their token ids: the same for a run and its preview.

options, splits = read_splits(options)
train, validation, left_out = encode_splits(options, splits.train, splits.validation, chat, tokenize)
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeft.data.encoded_rows import IGNORED, Encoded, EncodedPairs, EncodedRows
from edgeft.data.encoding import (
    LeftOut,
    encode_all,
    encode_documents,
    encode_each,
    encode_file,
    encode_pair,
    encode_pairs,
    encode_prompts,
    encode_verdicts,
)
from edgeft.data.hub import pinned
from edgeft.data.layouts import Layout, text_suffixes
from edgeft.data.rows import report_bad_rows
from edgeft.data.sources import data_files
from edgeft.data.split_names import Split
from edgeft.data.splits import Splits, load_splits
from edgeft.errors import InputError
from edgeft.records import Example
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.tokenizer.hf_files import Encode
from edgeft.train.memory import Batch
from edgeft.train.options import TrainOptions

TILE_TOKENS = 4096
"""tokens whose logits trl computes at once"""
LONGEST = 64
"""examples with most characters that are encoded to find the largest batch"""


def read_splits(options: TrainOptions, layout: Layout = "chats") -> tuple[TrainOptions, Splits]:
    """The examples, and the options with what the manifest names: the only data file of a folder in place
    of the folder, and hub ids with their commits.

    `layout`: of the rows. InputError for a base that is no folder, and as `load_splits`.
    """
    if not options.base.is_dir():
        raise InputError(f"no such base model folder: {options.base}")
    validation = options.validation_data
    options = dataclasses.replace(
        options,
        data=_recorded(options.data, "train", layout),
        validation_data=validation and _recorded(validation, "validation", layout),
    )
    size, seed = options.validation_size, options.seed
    rest = (options.bad_rows, options.columns, layout)
    return options, load_splits(options.data, options.validation_data, size, seed, *rest)


def _recorded(path: Path, split: Split, layout: Layout) -> Path:
    """The only data file of a folder, a hub id with its commit, any other path as it is."""
    if path.is_dir():
        files = data_files(path, split, text_suffixes(layout))
        return files[0] if len(files) == 1 else path
    return pinned(path)


def encode_splits(
    options: TrainOptions,
    train: Sequence[Example],
    validation: Sequence[Example],
    chat: ChatTemplate,
    tokenize: Encode,
) -> tuple[Any, Any, LeftOut]:
    """(train, validation, what was left out of train); raises as `encode_file`.

    Both are `EncodedRows`, `EncodedPairs` of preference pairs, or `EncodedVerdicts`. Documents are cut into rows of the cutoff;
    nothing of them is left out.
    """
    cutoff, bad_rows = options.cutoff_length, options.bad_rows
    if train[0].is_document:
        packed = encode_documents(train, chat, tokenize, cutoff)
        if not packed:
            raise InputError(f"{options.data} has less than two tokens to learn", "more text")
        held_out, left_out = encode_held_out(validation, chat, tokenize, cutoff)
        return packed, held_out, left_out
    encoded, left_out = encode_file(
        train, options.data, chat, tokenize, cutoff, options.train_on_inputs, bad_rows
    )
    held_out, refused = encode_held_out(validation, chat, tokenize, cutoff)
    file = options.validation_data or options.data
    report_bad_rows(file, refused.refused, len(validation), bad_rows)
    return encoded, held_out, left_out


def encode_held_out(
    examples: Sequence[Example], chat: ChatTemplate, tokenize: Encode, cutoff: int
) -> tuple[EncodedRows | EncodedPairs, LeftOut]:
    """The rows that the validation loss is computed on, of documents, conversations or preference pairs."""
    if examples and examples[0].is_document:
        return encode_documents(examples, chat, tokenize, cutoff), LeftOut(0, 0)
    if examples and examples[0].rejected:
        return encode_pairs(examples, chat, tokenize, cutoff)
    if examples and examples[0].is_prompt:
        return encode_prompts(examples, chat, tokenize, cutoff)
    if examples and examples[0].desirable is not None:
        return encode_verdicts(examples, chat, tokenize, cutoff)
    return encode_all(examples, chat, tokenize, cutoff)


def largest_batch(
    options: TrainOptions, examples: Sequence[Example], chat: ChatTemplate, tokenize: Encode
) -> Batch:
    """The largest micro-batch that the examples can make, with --batch-size where it is "auto".

    Only the examples with most characters are encoded. Where each of these is longer than the cutoff,
    a batch as long as the cutoff is assumed, and for documents, which fill their rows.
    """
    count = options.batch_size if options.micro_batch_size == "auto" else options.micro_batch_size
    if examples[0].is_document:
        tokens = count * options.cutoff_length
        return Batch(count, options.cutoff_length, tokens, padded=False, shared=0)
    by_size = sorted(
        examples, key=lambda item: sum(len(m.content or "") for m in item.messages), reverse=True
    )
    encoded: list[Encoded] = []
    for example in by_size[:LONGEST]:
        with contextlib.suppress(InputError):  # reported where all are encoded
            if example.is_prompt:
                encoded += encode_prompts([example], chat, tokenize, options.cutoff_length)[0]
            elif example.rejected:
                encoded += encode_pair(example, chat, tokenize)
            else:
                encoded += encode_each(example, chat, tokenize, options.train_on_inputs)
    kept = [item for item in encoded if len(item.ids) <= options.cutoff_length]
    if examples[0].rejected:
        length = max((len(item.ids) for item in kept), default=options.cutoff_length)
        return Batch(count, length, min(2 * count * length, TILE_TOKENS), sequences=2)
    if examples[0].is_prompt:
        length = max((len(item.ids) for item in kept), default=options.cutoff_length)
        length += options.max_new_tokens
        return Batch(count, length, min(count * length, TILE_TOKENS))
    if examples[0].desirable is not None:
        length = max((len(item.ids) for item in kept), default=options.cutoff_length)
        return Batch(count, length, min(count * length, TILE_TOKENS))
    learned = sorted(sum(label != IGNORED for label in item.labels) for item in kept or encoded)
    lengths = {min(len(item.ids), options.cutoff_length) for item in kept or encoded}
    return Batch(
        examples=count,
        length=max(lengths, default=options.cutoff_length),
        learned=min(sum(learned[-count:]), count * options.cutoff_length),
        padded=len(lengths) > 1,
        shared=len(os.path.commonprefix([item.ids for item in kept]))
        if options.shared_prefix
        else 0,
    )


def training_tokens(
    options: TrainOptions, examples: Sequence[Example], chat: ChatTemplate, tokenize: Encode
) -> int:
    """About how many tokens one pass over the examples computes, from a sample of them."""
    sample = examples[:: max(1, len(examples) // LONGEST)]
    encoded, _ = encode_all(sample, chat, tokenize, options.cutoff_length, options.train_on_inputs)
    tokens = sum(len(item.ids) for item in encoded)
    return tokens * len(examples) // max(1, len(sample))
