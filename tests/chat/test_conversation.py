"""Conversations: their turns and files, and the same answers in `edgeft chat` and `edgeft serve`."""

from __future__ import annotations

import json
import queue
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from edgeft.chat.conversation import Conversation
from edgeft.chat.engine_client import EngineClient, open_model
from edgeft.data.rows import load_examples
from edgeft.errors import DataError, EdgeftError, InputError
from edgeft.records import Limits, Message, Sampling, Token
from edgeft.tokenizer.chat_template import ChatTemplate


class Echo:
    """Says the last message once more, and counts how often it was asked."""

    chat = ChatTemplate("{% for m in messages %}<{{ m.content }}{% endfor %}", "", "", ())
    context = 400

    def __init__(self) -> None:
        self.asked: list[Limits] = []
        self.seen: list[str] = []

    def encode(self, text: str) -> list[int]:
        return list(map(ord, text))

    def stream(self, ids: Sequence[int], limits: Limits) -> Iterator[Token]:
        self.asked.append(limits)
        self.seen.append("".join(map(chr, ids)))
        for letter in self.seen[-1].rpartition("<")[2][: limits.max_tokens]:
            yield Token(ord(letter), letter, float(len(self.asked)))


def conversation(**limits: Any) -> Conversation:
    return Conversation(Echo(), "", Limits(**limits))


def say(chat: Conversation, *texts: str) -> list[str]:
    return ["".join(chat.ask(text)) for text in texts]


def test_a_saved_conversation_is_data_and_comes_back(tmp_path: Path) -> None:
    chat = conversation()
    chat.system = "be brief"
    say(chat, "zwölf\nZeilen", "und \u2028 Haus 🏠")
    file = tmp_path / "talk.jsonl"
    chat.save(file)
    assert file.read_bytes().count(b"\n") == 1 and json.loads(file.read_text())["messages"]
    (example,) = load_examples(file)
    assert list(example.messages) == chat.messages and example.answer == "und \u2028 Haus 🏠"
    again = conversation()
    again.load(file)
    assert again.system == "be brief" and again.turns == chat.turns
    say(again, "more")
    assert again.model.seen[0].startswith("<be brief<zwölf")  # type: ignore[attr-defined]
    again.save(file)
    assert len(load_examples(file)[0].messages) == 7


def test_files_of_several_conversations_join_to_data(tmp_path: Path) -> None:
    joined = tmp_path / "all.jsonl"
    with joined.open("ab") as out:
        for text in ("one", "two"):
            chat = conversation()
            say(chat, text)
            chat.save(tmp_path / text)
            out.write((tmp_path / text).read_bytes())
    assert [example.answer for example in load_examples(joined)] == ["one", "two"]
    with pytest.raises(InputError, match="holds 2 conversations"):
        chat.load(joined)
    assert chat.turns[0].content == "two"


def test_what_is_no_data_is_not_saved(tmp_path: Path) -> None:
    chat = conversation(max_tokens=0)
    with pytest.raises(InputError, match="no conversation"):
        chat.save(tmp_path / "x")
    say(chat, "one")
    with pytest.raises(InputError, match="no reply"):
        chat.save(tmp_path / "x")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"messages": 3}', '{"messages": [{"role": "cat", "content": "x"}]}',
             '{"messages": [{"role": "user", "content": "x"}]}', "[" * 3000]
)  # fmt: skip
def test_a_file_that_is_no_conversation_changes_nothing(tmp_path: Path, text: str) -> None:
    chat = conversation()
    say(chat, "one")
    before = list(chat.messages)
    (tmp_path / "x").write_text(text)
    with pytest.raises((DataError, InputError)):
        chat.load(tmp_path / "x")
    assert chat.messages == before


def test_half_a_surrogate_pair_is_no_text(tmp_path: Path) -> None:
    turns = '[{"role": "user", "content": "\\ud800"}, {"role": "assistant", "content": "a"}]'
    (tmp_path / "x").write_text(f'{{"messages": {turns}}}')
    chat = conversation()
    with pytest.raises(DataError, match=r"x:1: a text has \\ud800, half of a surrogate pair"):
        chat.load(tmp_path / "x")


def test_retry_takes_the_place_of_the_reply_with_another_seed() -> None:
    chat = conversation(seed=7)
    say(chat, "one", "two")
    for _ in range(2):
        assert "".join(chat.retry()) == "two"
    assert [m.content for m in chat.turns] == ["one", "one", "two", "two"]
    say(chat, "three")
    seeds = [limits.seed for limits in chat.model.asked]  # type: ignore[attr-defined]
    assert seeds == [7, 7, 8, 9, 7]


def test_undo_takes_back_a_message_and_its_reply() -> None:
    chat = conversation()
    say(chat, "one", "two")
    chat.undo()
    assert [m.content for m in chat.turns] == ["one", "one"]
    chat.undo()
    assert not chat.turns
    for again in (chat.undo, chat.retry):
        with pytest.raises(InputError, match="nothing was asked"):
            again()


def test_stopped_before_the_first_token_nothing_has_happened() -> None:
    class Slow(Echo):
        def stream(self, ids: Sequence[int], limits: Limits) -> Iterator[Token]:
            raise KeyboardInterrupt
            yield

    chat = conversation()
    say(chat, "one")
    before = list(chat.turns)
    chat.model = Slow()
    for reply in (chat.ask("two"), chat.retry()):
        with pytest.raises(KeyboardInterrupt):
            next(reply)
        assert chat.turns == before


def test_turns_that_do_not_alternate_are_dropped_from_question_to_question() -> None:
    chat = conversation(max_tokens=10)
    roles = ["user", "user", "assistant", "assistant", "user", "assistant"]
    chat.turns = [Message(role, role[0] * 90) for role in roles]
    say(chat, "x" * 90)
    assert [m.content[0] for m in chat.turns] == ["u", "a", "x", "x"] and chat.dropped == 4


@pytest.fixture(scope="module")
def artifact(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from edgeft.export.pipeline import ExportOptions, export

    out = tmp_path_factory.mktemp("conversation")
    return export(
        ExportOptions(out=out, base=str(tiny_base), quants=("q8_0",), compare_live=False)
    )[0].path


LONG = "lamp kitchen bedroom " * 12
HOW = [
    Sampling(),
    Sampling(temperature=1.5, seed=3),
    Sampling(temperature=2.0, top_k=5, seed=4),
    Sampling(temperature=2.0, top_p=0.7, min_p=0.05, seed=5),
]


def served(
    artifact: Path, turns: Sequence[Sequence[Sequence[int]]], how: Sampling
) -> list[list[str]]:
    """Answers of the server's engine of four slots, to the prompts of each turn at once."""
    from edgeft.server.jobs import GenerationRequest, Job, StreamDelta
    from edgeft.server.options import ServeOptions
    from edgeft.server.run import engines

    events: queue.SimpleQueue[tuple[int, StreamDelta]] = queue.SimpleQueue()

    def job(number: int, ids: Sequence[int]) -> Job:
        return Job(
            GenerationRequest(tuple(ids), 40, how), lambda delta: events.put((number, delta))
        )

    answers = []
    with engines(ServeOptions((artifact,), slots=4, threads=2)) as (engine,):
        for prompts in turns:
            engine.submit([job(i, ids) for i, ids in enumerate(prompts)])
            said, running = [""] * len(prompts), len(prompts)
            while running:
                number, event = events.get(timeout=60)
                said[number] += event.text
                running -= bool(event.finish_reason)
            answers.append(said)
    return answers


@pytest.mark.parametrize("how", HOW)
def test_the_server_answers_the_same(artifact: Path, how: Sampling) -> None:
    limits = Limits(40, how.temperature, how.top_p, how.seed, top_k=how.top_k, min_p=how.min_p)
    assert limits.sampling == how
    prompts, alone = [], []
    with open_model(artifact, 2) as model:
        for text in ("lamp", LONG, "off"):
            alone += say(Conversation(model, "", limits), text)
            prompts.append(model.encode(model.chat.render([Message("user", text)])))
    assert max(map(len, prompts)) > 128 and all(alone)
    assert served(artifact, [prompts], how) == [alone]


def test_the_server_answers_the_second_turn_the_same(artifact: Path) -> None:
    with open_model(artifact, 2) as model:
        chat = Conversation(model, "", Limits(40))
        said = say(chat, LONG, "off")
        asked = [chat.turns[:1], chat.turns[:3]]
        turns = [[model.encode(model.chat.render(messages))] for messages in asked]
    assert served(artifact, turns, Sampling()) == [[text] for text in said]


def test_tokens_are_counted_and_timed_whatever_text_they_have(artifact: Path) -> None:
    """Random tokens are parts of characters more often than not."""
    with open_model(artifact, 2) as model:
        ids = model.encode("lamp")
        tokens = list(model.stream(ids, Limits(60, 3.0, ignore_eos=True)))
        assert len(tokens) == 60 and any(not token.text for token in tokens)
        assert [t.seconds for t in tokens] == sorted(t.seconds for t in tokens)


def test_a_reply_that_is_left_makes_room_for_the_next(artifact: Path) -> None:
    with open_model(artifact, 2) as model:
        expected = say(Conversation(model, "", Limits(20)), LONG)
        for _ in range(5):
            chat = Conversation(model, "", Limits(400, 3.0))
            reply = chat.ask(LONG)
            next(reply)
            reply.close()
            assert [turn.role for turn in chat.turns] == ["user", "assistant"]
            assert len(chat.turns[1].content) < 400
        assert say(Conversation(model, "", Limits(20)), LONG) == expected


def test_the_second_turn_reads_only_what_is_new(artifact: Path) -> None:
    with open_model(artifact, 2) as model:
        assert isinstance(model, EngineClient)
        chat = Conversation(model, "", Limits(4))
        say(chat, LONG)
        first = chat.prompt_tokens
        say(chat, "lamp")
        assert model._engine.counts.reused_tokens >= first - 8


def test_a_reply_fills_the_context_and_ends(artifact: Path) -> None:
    with open_model(artifact, 2, 64) as model:
        ids = model.encode("lamp")
        tokens = list(model.stream(ids, Limits(500, ignore_eos=True)))
    assert len(tokens) == 65 - len(ids)


def test_an_error_of_the_engine_is_raised_where_the_answer_is_awaited(artifact: Path) -> None:
    with open_model(artifact, 2) as model:
        assert isinstance(model, EngineClient)
        model._engine._sequences._context.decode = broken  # type: ignore[attr-defined]
        chat = Conversation(model, "", Limits(4))
        with pytest.raises(EdgeftError, match="out of order"):
            say(chat, "lamp")
        assert not chat.turns


def broken(tokens: Any, outputs: int) -> None:
    raise EdgeftError("out of order")
