"""A finished artifact and the live model -> proof that the artifact ends its answers where it does.

    ends = expect_ends(reference, examples, context)      # once per export
    check_ends(model, artifact_stops, ends, strict)       # for every artifact

Answers of the fine-tune's data are cut just before the token that ends them. Where the live model
chooses a stop there, the artifact has to write one of its own stops within a few tokens.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeft.errors import InputError, ProofError
from edgeft.records import Example, Limits, Message
from edgeft.runtimes.protocol import Runtime
from edgeft.runtimes.reference import ReferenceRuntime
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.tokenizer.hf_files import id_to_token
from edgeft.tokenizer.learned_parts import spans

ANSWERS = 8
"""answers whose ends are compared"""
PROMPT_TOKENS = 256
"""tokens before an end at most; longer conversations lose their beginning"""
END_TOKENS = 8
"""tokens that an artifact may write before it ends its turn"""
CERTAIN_PROBABILITY = 0.9
"""of the live model's end, from which rounding must not decide otherwise"""
MAX_MISSED_SHARE = 0.5
"""of the certain ends, after which a rounded artifact may run on"""
GENERAL = (
    ("What is the capital of France?", "The capital of France is Paris."),
    ("What is 17 + 25?", "17 + 25 = 42"),
    ("Name the largest planet.", "Jupiter is the largest planet."),
    ("Is 91 a prime number? Answer yes or no.", "No."),
)
"""questions and answers for an adapter whose data is not at hand"""


@dataclass(frozen=True)
class TurnEnd:
    """A place where the live model ends its turn."""

    ids: tuple[int, ...]
    """the conversation up to there"""
    stop: int
    """what the live model writes there"""
    probability: float


@dataclass(frozen=True)
class TurnEnds:
    answers: int
    """number of answers that the live model was shown"""
    ends: tuple[TurnEnd, ...]
    """those that it ended"""
    stops: dict[int, str]
    """the live model's stops: id -> text"""


def expect_ends(reference: ReferenceRuntime, examples: Sequence[Example], folder: Path) -> TurnEnds:
    """Where the live model ends its turn, after the examples' answers or after general ones.

    `folder`: of the tokenizer. An example that the template refuses is left out.
    """
    examples = examples or [
        Example((Message("user", question), Message("assistant", answer)))
        for question, answer in GENERAL
    ]
    names = id_to_token(folder)
    texts = [text for e in examples[:ANSWERS] if (text := _before_end(reference.chat, e))]
    longest = min(PROMPT_TOKENS, reference.context)
    ends = []
    for text in texts:
        ids = tuple(reference.encode(text)[-longest:])
        row = reference.logits(ids, last=1)[-1].astype(np.float64)
        stop = int(row.argmax())
        if stop in reference.eos_ids:
            ends.append(TurnEnd(ids, stop, float(1 / np.exp(row - row.max()).sum())))
    stops = {stop: names.get(stop, f"token {stop}") for stop in reference.eos_ids}
    return TurnEnds(len(texts), tuple(ends), stops)


def check_named(stops: Collection[int], folder: Path, vocabulary: int) -> None:
    """ProofError where `stops`, the ids that an artifact's files name, lack one of the template's."""
    ids = {text: token for token, text in id_to_token(folder).items()}
    for stop in ChatTemplate.from_folder(folder).stops:
        if ids.get(stop, vocabulary) < vocabulary and ids[stop] not in stops:
            raise ProofError(f"the artifact does not stop at {stop}, with which a turn ends")


def check_ends(
    model: Runtime, stops: Collection[int], expected: TurnEnds, strict: bool
) -> dict[str, Any]:
    """Facts for the manifest; ProofError where the artifact runs on after its answers.

    `stops`: ids that the artifact's own files name. `strict`: an artifact without rounding, which must
    end wherever the live model certainly does.
    """
    ended = certain = 0
    missed: list[list[int]] = []
    for end in expected.ends:
        written = _continuation(model, end.ids, stops)
        if unnamed := [token for token in written if token in expected.stops]:
            raise ProofError(
                f"the artifact writes {expected.stops[unnamed[0]]} where an answer ends and does not "
                f"stop there: its stops are {_names(stops, expected)}",
                "add the token to eos_token_id of the base's generation_config.json",
            )
        certain += end.probability >= CERTAIN_PROBABILITY
        ended += not written
        if written and end.probability >= CERTAIN_PROBABILITY:
            missed.append(written)
    if missed and (strict or len(missed) > MAX_MISSED_SHARE * certain):
        raise ProofError(
            f"the artifact runs on after {len(missed)} of {certain} answers that the live adapter ends: "
            f"it writes the tokens {missed[0]}, its stops are {_names(stops, expected)}",
            "a finer --quant, if it is a coarse one",
        )
    return {"answers": expected.answers, "live": len(expected.ends), "ended": ended}


def _continuation(model: Runtime, ids: Sequence[int], stops: Collection[int]) -> list[int]:
    """The greedy tokens after `ids`; [] where one of `stops` is among them."""
    first = int(model.logits(ids, last=1)[-1].argmax())
    if first in stops:
        return []
    limits = Limits(max_tokens=END_TOKENS, ignore_eos=True)
    written = [token.id for token in model.stream(ids, limits)]
    return [] if set(written) & set(stops) else written


def _before_end(chat: ChatTemplate, example: Example) -> str:
    """The conversation up to the token that ends its last answer; "" where the template refuses it."""
    try:
        text = "".join(part for part, _ in spans(chat, example.messages, example.tools))
    except InputError:
        return ""
    stop = next((stop for stop in chat.stops if text.endswith(stop)), "")
    return text.removesuffix(stop)


def _names(stops: Collection[int], expected: TurnEnds) -> str:
    return ", ".join(expected.stops.get(stop, f"token {stop}") for stop in sorted(stops)) or "none"
