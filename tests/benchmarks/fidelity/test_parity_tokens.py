"""The proof of token ids has to fail on each kind of difference, and to say where it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeft.benchmarks.fidelity.parity import TORTURE, check_tokens
from edgeft.errors import ProofError
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.tokenizer.hf_files import encoder

pytestmark = pytest.mark.unit


class Fake:
    """A runtime that encodes as the folder does, except for what a test changes."""

    def __init__(self, folder: Path) -> None:
        self.chat = ChatTemplate.from_folder(folder)
        self.vocab_size = 10_000
        self._encode = encoder(folder)
        self.wrong = ""

    def encode(self, text: str) -> list[int]:
        return [*self._encode(text), *([0] if self.wrong and self.wrong in text else [])]


def test_the_same_passes_and_counts(tiny_base: Path) -> None:
    model: Any = Fake(tiny_base)
    facts = check_tokens(model, tiny_base)
    assert facts["texts"] == len(TORTURE) + 3 + 3
    assert facts["stops"] == ["<|im_end|>"]
    assert "only_for" not in facts


@pytest.mark.parametrize(
    "wrong",
    [
        " " * 33 + "x", "\x07", "\r y\n\r\n", "हि", "789012345", "👩\u200d👧", "e\u0301", "𓀀", "\ue000",
        "<|endoftext|>b\n", "<|im_start|> <", "<|im_start|><|im_end|>",
    ],
)  # fmt: skip
def test_one_wrong_text_is_found_and_cut_to_what_is_wrong(tiny_base: Path, wrong: str) -> None:
    model: Any = Fake(tiny_base)
    model.wrong = wrong
    with pytest.raises(ProofError) as caught:
        check_tokens(model, tiny_base)
    assert f"the artifact cuts {wrong!r} into [" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_stops_and_templates_are_compared(tiny_base: Path) -> None:
    model: Any = Fake(tiny_base)
    right = model.chat
    for chat, says in (
        (replace(right, stops=()), "does not stop at <|im_end|>"),
        (replace(right, source=right.source + " "), "carries another chat template"),
    ):
        model.chat = chat
        with pytest.raises(ProofError, match=says.replace("|", r"\|")):
            check_tokens(model, tiny_base)


def test_what_the_template_makes_of_its_tokens_is_compared(tiny_base: Path) -> None:
    model: Any = Fake(tiny_base)
    right = replace(model.chat, source="{{ pad_token }}")
    model.chat = replace(right, pad_token="other")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ChatTemplate, "from_folder", lambda folder: right)
        with pytest.raises(ProofError, match="renders another text"):
            check_tokens(model, tiny_base)


def test_the_prompt_itself_is_compared(tiny_base: Path) -> None:
    model: Any = Fake(tiny_base)
    model.wrong = "capital of France?<|im_end|>"
    with pytest.raises(ProofError, match="cuts the prompt .*im_start"):
        check_tokens(model, tiny_base)
