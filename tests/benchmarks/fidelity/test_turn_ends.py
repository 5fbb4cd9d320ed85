"""The proof of an artifact's ends has to fail on each way to run on, and to say what was written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeft.benchmarks.fidelity.turn_ends import (
    ANSWERS,
    GENERAL,
    TurnEnd,
    TurnEnds,
    check_ends,
    check_named,
    expect_ends,
)
from edgeft.errors import ProofError
from edgeft.records import Example, Limits, Token
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.tokenizer.hf_files import encoder
from helpers.chats import some_examples, talk
from helpers.tiny import make_tokenizer

pytestmark = pytest.mark.unit

SIZE, END, EOS = 12, 7, 9


class Scripted:
    """A model that writes fixed tokens after whatever it reads."""

    context = 512

    def __init__(self, *written: int, logit: float = 20.0) -> None:
        self.written, self.logit = written, logit
        self.eos_ids = frozenset((END,))
        self.read: list[list[int]] = []

    def logits(self, ids: Sequence[int], last: int | None = None) -> Any:
        self.read.append(list(ids))
        rows = np.zeros((1, SIZE), np.float32)
        rows[0, self.written[0]] = self.logit
        return rows

    def stream(self, ids: Sequence[int], limits: Limits) -> Iterator[Token]:
        assert limits.ignore_eos
        return (Token(token, "", 0.0) for token in self.written[: limits.max_tokens])


def expected(*probabilities: float) -> TurnEnds:
    ends = tuple(TurnEnd((1, 2), END, probability) for probability in probabilities)
    return TurnEnds(len(ends), ends, {END: "<|end|>"})


@pytest.mark.parametrize(
    ("written", "stops", "strict", "says"),
    [
        ((END, 1), {END}, True, ""),
        ((EOS, 1), {END, EOS}, True, ""),
        ((1, 2, END), {END}, True, ""),
        ((END, 1), {EOS}, False, r"writes <\|end\|> .* its stops are token 9"),
        ((1, END, 2), {EOS}, False, r"writes <\|end\|> where an answer ends and does not stop"),
        ((1, 2) * 8, {END}, True, r"runs on after 2 of 2 .*\[1, 2, 1, 2, .* stops are <\|end\|>"),
        ((1, 2) * 8, {END}, False, "runs on after 2 of 2 answers"),
    ],
)
def test_an_artifact_ends_where_the_live_model_does(
    written: tuple[int, ...], stops: set[int], strict: bool, says: str
) -> None:
    model: Any = Scripted(*written)
    if says:
        with pytest.raises(ProofError, match=says):
            check_ends(model, stops, expected(1.0, 0.95), strict)
    else:
        facts = check_ends(model, stops, expected(1.0, 0.95), strict)
        assert facts == {"answers": 2, "live": 2, "ended": 2}


def test_an_end_that_is_not_certain_binds_nobody() -> None:
    model: Any = Scripted(*(1, 2) * 8)
    assert check_ends(model, {END}, expected(0.6), True) == {"answers": 1, "live": 1, "ended": 0}


def test_rounding_may_miss_half_of_the_ends() -> None:
    class Half(Scripted):
        def logits(self, ids: Sequence[int], last: int | None = None) -> Any:
            self.written = (1, 2, 1, 2) if len(self.read) % 2 else (END,)
            return super().logits(ids, last)

    model: Any = Half(END)
    facts = check_ends(model, {END}, expected(1.0, 1.0, 1.0, 1.0), strict=False)
    assert facts["ended"] == 2
    model = Half(END)
    with pytest.raises(ProofError, match="after 1 of 2 answers"):
        check_ends(model, {END}, expected(1.0, 1.0), strict=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_tokenizer(tmp_path / "model")
    return tmp_path / "model"


def live(folder: Path, *written: int) -> Any:
    model = Scripted(*written)
    model.chat, model.encode = ChatTemplate.from_folder(folder), encoder(folder)  # type: ignore[attr-defined]
    return model


def test_the_live_model_reads_each_answer_up_to_its_end(folder: Path) -> None:
    model = live(folder, END)
    ends = expect_ends(model, some_examples(ANSWERS + 3), folder)
    assert (ends.answers, len(ends.ends)) == (ANSWERS, ANSWERS)
    text = "<|im_start|>user\nq0<|im_end|>\n<|im_start|>assistant\na0"
    assert model.read[0] == list(ends.ends[0].ids) == model.encode(text)
    assert ends.ends[0].stop == END and ends.ends[0].probability == pytest.approx(1, abs=1e-6)


def test_where_the_live_model_writes_on_there_is_nothing_to_hold(folder: Path) -> None:
    ends = expect_ends(live(folder, 1), some_examples(3), folder)
    assert (ends.answers, ends.ends) == (3, ())
    assert check_ends(live(folder, 2), {END}, ends, True)["ended"] == 0


def test_without_data_the_answers_are_general(folder: Path) -> None:
    model = live(folder, END)
    assert expect_ends(model, [], folder).answers == len(GENERAL)
    assert model.read[0][-3:] == model.encode("is.")


def test_an_example_that_the_template_refuses_is_left_out(folder: Path) -> None:
    model = live(folder, END)
    source = "{% if 'secret' in messages[0].content %}{{ raise_exception('no') }}{% endif %}"
    model.chat = ChatTemplate(source + model.chat.source, "", "<|im_end|>", ("<|im_end|>",))
    refused = Example(talk(("user", "secret"), ("assistant", "a")))
    assert expect_ends(model, [refused, *some_examples(1)], folder).answers == 1


def test_the_files_name_every_stop_of_the_template(folder: Path) -> None:
    size, end = make_tokenizer(folder.with_name("other"))
    check_named({end}, folder, size)
    check_named(set(), folder, end)  # a token without a row is no stop of this model
    with pytest.raises(ProofError, match=r"does not stop at <\|im_end\|>"):
        check_named({end - 1}, folder, size)
