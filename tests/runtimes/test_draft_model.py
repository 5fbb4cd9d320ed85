"""What a draft model guesses, and which models may guess for which."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeft.errors import InputError, ResourceError
from edgeft.records import Limits
from edgeft.runtimes import draft_model
from edgeft.runtimes.draft_model import DraftModel, ModelDraft, check_same_vocabulary
from edgeft.runtimes.gguf import GGUFRuntime

PROMPT = "the lamp on the desk"


@pytest.fixture(scope="module")
def target(gguf: Path) -> Iterator[GGUFRuntime]:
    with GGUFRuntime(gguf, threads=1, context=256) as runtime:
        yield runtime


@pytest.fixture
def model(target: GGUFRuntime, gguf: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DraftModel]:
    """The same weights as the target's. A random model is sure of nothing, so every token is guessed."""
    monkeypatch.setattr(draft_model, "MIN_PROBABILITY", 0.0)
    runtime = GGUFRuntime(gguf, threads=1, context=256)
    with contextlib.closing(DraftModel(runtime, target)) as model:
        yield model


def greedy(runtime: GGUFRuntime, ids: list[int], count: int) -> list[int]:
    return [token.id for token in runtime.stream(ids, Limits(count, ignore_eos=True))]


def test_guesses_are_the_models_greedy_tokens(target: GGUFRuntime, model: DraftModel) -> None:
    ids = target.encode(PROMPT)
    answer = greedy(target, ids, 12)
    draft = ModelDraft(model, ids)
    assert draft.propose(7) == answer[:3]
    for token in answer[:3]:
        draft.append(token)
    draft.verified(3, 3)
    assert draft.propose(7) == answer[3:9]
    assert draft.propose(2) == answer[3:5], "asked again"
    assert draft.propose(0) == []
    other = ModelDraft(model, ids[:4])
    assert other.propose(3) == greedy(target, ids[:4], 3)
    assert draft.propose(2) == answer[3:5], "after another answer"


def test_a_token_that_is_not_likely_is_not_guessed(
    target: GGUFRuntime, model: DraftModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draft_model, "MIN_PROBABILITY", 0.75)
    assert ModelDraft(model, target.encode(PROMPT)).propose(7) == []


def test_a_long_prompt_is_read_in_parts(
    target: GGUFRuntime, model: DraftModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draft_model, "READ_TOKENS", 8)
    ids = target.encode(PROMPT * 4)[:20]
    draft = ModelDraft(model, ids)
    assert draft.propose(3) == draft.propose(3) == []
    assert draft.propose(3) == greedy(target, ids, 3)


def test_nothing_is_guessed_beyond_the_context_or_the_memory(
    target: GGUFRuntime, model: DraftModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [5] * 254
    assert ModelDraft(model, ids).propose(3) == []
    assert len(ModelDraft(model, ids).propose(2)) == 2

    def no_memory(tokens: int) -> None:
        raise ResourceError("no memory")

    monkeypatch.setattr(model._sequences, "reserve", no_memory)
    assert ModelDraft(model, ids).propose(1) == []


class Vocabulary:
    """A runtime that has tokens and no weights."""

    def __init__(self, *tokens: str) -> None:
        self.path, self.tokens, self.vocab_size = Path("m.gguf"), tokens, len(tokens)

    def piece(self, token: int) -> bytes:
        return self.tokens[token].encode()


@pytest.mark.parametrize(
    ("draft", "target", "problem"),
    [
        ("abc", "abc", None),
        ("abc", "abcPPP", None),
        ("abcPPP", "abc", None),
        ("abx", "abc", "token 2 is b'x' and b'c'"),
        ("a", "a" * 200, "1 and 200 tokens"),
    ],
)
def test_a_draft_has_the_vocabulary_of_its_target(
    draft: str, target: str, problem: str | None
) -> None:
    pair: Any = Vocabulary(*draft), Vocabulary(*target)
    if problem is None:
        check_same_vocabulary(*pair)
    else:
        with pytest.raises(InputError, match=problem):
            check_same_vocabulary(*pair)


def test_a_model_that_cannot_take_tokens_back_is_no_draft(target: GGUFRuntime) -> None:
    recurrent: Any = Vocabulary("a")
    recurrent.is_recurrent = True
    with pytest.raises(InputError, match="cannot go back"):
        DraftModel(recurrent, target)
