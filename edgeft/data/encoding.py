"""Conversations -> token ids and labels; token sequences for calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgeft.data.rows import GOLDEN
from edgeft.records import Example
from edgeft.tokenizer.chat_template import ChatTemplate, spans
from edgeft.tokenizer.hf_files import Encode

IGNORED = -100
"""label of a token that is not learned"""


@dataclass(frozen=True)
class Encoded:
    """One example as ids; `labels` are the ids to learn, IGNORED elsewhere, not shifted."""

    ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class Cut:
    """What `encode_all` had to leave out, for the message to the user."""

    longer: int
    """examples longer than the cutoff"""
    longest: int
    """tokens of the longest example"""


def encode(
    example: Example, chat: ChatTemplate, tokens: Encode, train_on_inputs: bool = False
) -> Encoded:
    """Ids and labels of one conversation.

    The pieces between the turns' borders are tokenized apart, because that is what happens when
    the model answers: a merge across the border would be a token that it never sees.
    """
    ids: list[int] = []
    labels: list[int] = []
    for text, learned in spans(chat, example.messages):
        piece = tokens(text)
        ids += piece
        labels += piece if learned or train_on_inputs else [IGNORED] * len(piece)
    return Encoded(ids, labels)


def encode_all(
    examples: Sequence[Example],
    chat: ChatTemplate,
    tokens: Encode,
    cutoff: int,
    train_on_inputs: bool = False,
) -> tuple[list[Encoded], Cut]:
    """Encode; examples longer than `cutoff` tokens are left out, because a cut answer teaches the
    model not to stop."""
    encoded = [encode(example, chat, tokens, train_on_inputs) for example in examples]
    kept = [item for item in encoded if len(item.ids) <= cutoff]
    longest = max((len(item.ids) for item in encoded), default=0)
    return kept, Cut(longer=len(encoded) - len(kept), longest=longest)


def calibration(
    examples: Sequence[Example],
    chat: ChatTemplate,
    tokens: Encode,
    budget: int = 65_536,
    longest: int = 4096,
) -> list[list[int]]:
    """Whole conversations as ids for calibrating a quantizer, `budget` tokens or all there are.

    They are spread evenly over `examples`, always the same, and each as training saw it. What goes
    beyond `longest` tokens of a conversation, or beyond the budget, is cut off.
    """
    sample: list[list[int]] = []
    # The multiples of the golden ratio, modulo 1, lie evenly however many of them are taken.
    for i in sorted(range(len(examples)), key=lambda i: i * GOLDEN % 1):
        if budget <= 0:
            break
        ids = encode(examples[i], chat, tokens).ids[: min(longest, budget)]
        sample.append(ids)
        budget -= len(ids)
    return sample


def text_calibration(
    ids: Sequence[int], begin: Sequence[int], budget: int = 65_536, size: int = 512
) -> list[list[int]]:
    """Pieces of a plain text, `size` tokens each with `begin` in front, spread evenly over it."""
    own = size - len(begin)
    pieces = max(1, len(ids) // own)
    wanted = min(pieces, max(1, budget // size))
    starts = (piece * pieces // wanted * own for piece in range(wanted))
    return [[*begin, *ids[start : start + own]] for start in starts]
