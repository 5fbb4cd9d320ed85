"""Many replies side by side are the single ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeft.records import Limits, Message, Reply
from edgeft.runtimes.gguf import GGUFRuntime


def prompt(model: GGUFRuntime, text: str) -> list[int]:
    return model.encode(model.chat.render([Message("user", text)]))


def assert_single_replies(
    model: GGUFRuntime, prompts: list[list[int]], replies: list[Reply], limits: Limits
) -> None:
    for ids, reply in zip(prompts, replies, strict=True):
        tokens = list(model.stream(ids, limits))
        assert reply.ids == tuple(token.id for token in tokens)
        assert reply.text == "".join(token.text for token in tokens)
        most = min(limits.max_tokens, model.context + 1 - len(ids))
        assert reply.stopped == (len(tokens) < most)
        assert len(reply.seconds) == len(tokens) and list(reply.seconds) == sorted(reply.seconds)


def test_many_replies_are_the_single_ones(gguf_model: GGUFRuntime) -> None:
    prompts = [prompt(gguf_model, f"lamp {'é' * (i * 7 % 40)} {i}") for i in range(40)]
    limits, counts = Limits(max_tokens=12), list[int]()
    replies = gguf_model.replies(prompts, limits, counts.append)
    assert counts == list(range(1, 41))
    assert_single_replies(gguf_model, prompts, replies, limits)


def test_prompts_without_a_shared_beginning(gguf_model: GGUFRuntime) -> None:
    prompts = [gguf_model.encode(f"{letter} lamp") for letter in "abcdefghijklmnopqrst"]
    limits = Limits(max_tokens=9, ignore_eos=True)
    assert_single_replies(gguf_model, prompts, gguf_model.replies(prompts, limits), limits)


@pytest.mark.parametrize("max_tokens", [1, 500])
def test_replies_end_at_the_limit_or_with_the_context(gguf: Path, max_tokens: int) -> None:
    with GGUFRuntime(gguf, context=64) as model:
        prompts = [model.encode("lamp " * count) for count in (1, 5, 12)]
        limits = Limits(max_tokens, ignore_eos=True)
        replies = model.replies(prompts, limits)
        assert_single_replies(model, prompts, replies, limits)
        for ids, reply in zip(prompts, replies, strict=True):
            assert len(reply.ids) == min(max_tokens, 65 - len(ids)) and not reply.stopped


def test_nothing_to_answer(gguf_model: GGUFRuntime) -> None:
    assert gguf_model.replies([], Limits()) == []
    assert gguf_model.replies([[1, 2]], Limits(max_tokens=0)) == [Reply("", (), False)]
