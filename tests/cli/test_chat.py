"""`edgeft chat`: the conversation apart from any model, and the loop over a pipe."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from edgeft.chat.conversation import Conversation
from edgeft.chat.options import ChatOptions
from edgeft.chat.terminal import talk
from edgeft.errors import InputError
from edgeft.records import Limits, Token
from edgeft.tokenizer.chat_template import ALPACA, ChatTemplate


class Echo:
    """A model of one character a token that answers with the last user line in capitals."""

    chat = ChatTemplate(ALPACA, "", "", ("\n",))
    vocab_size = 256

    def __init__(self, context: int = 400) -> None:
        self.context = context
        self.seen = ""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def stream(self, ids: Sequence[int], limits: Limits) -> Iterator[Token]:
        self.seen = bytes(ids).decode()
        last = self.seen.rpartition("### Instruction:\n")[2].partition("\n")[0]
        for i, letter in enumerate(last.upper()[: limits.max_tokens]):
            yield Token(ord(letter), letter, 0.1 * (i + 1))


def conversation(context: int = 400, **limits: Any) -> Conversation:
    return Conversation(Echo(context), "", Limits(**limits))  # type: ignore[arg-type]


def test_history_goes_into_the_next_prompt_and_reset_forgets_it() -> None:
    chat = conversation()
    assert "".join(chat.ask("one")) == "ONE"
    assert "".join(chat.ask("two")) == "TWO"
    seen = chat.model.seen  # type: ignore[attr-defined]
    assert "one" in seen and "ONE" in seen
    chat.system = "be brief"
    chat.reset()
    assert "".join(chat.ask("three")) == "THREE"
    seen = chat.model.seen  # type: ignore[attr-defined]
    assert "one" not in seen and seen.startswith("be brief")


def test_a_stopped_reply_keeps_its_text_so_far() -> None:
    chat = conversation()
    reply = chat.ask("abcdef")
    assert next(reply) + next(reply) == "AB"
    reply.close()
    assert chat.turns[-1].content == "AB"
    "".join(chat.ask("next"))
    assert "AB" in chat.model.seen  # type: ignore[attr-defined]


def test_stats_count_from_the_tokens() -> None:
    chat = conversation()
    assert chat.stats == "no reply yet"
    "".join(chat.ask("abcdefghijk"))
    assert "first after 100 ms, 11 tokens at 10 tokens/s" in chat.stats
    assert "of 400" in chat.stats


def test_the_oldest_turns_go_when_the_context_is_full() -> None:
    chat = conversation(max_tokens=20)
    chat.system = "be brief"
    dropped = []
    for i in range(9):
        "".join(chat.ask(f"question {i} " + "x" * 20))
        dropped.append(chat.dropped)
    assert dropped[0] == 0 and dropped[-1] == 2
    seen = chat.model.seen  # type: ignore[attr-defined]
    assert seen.startswith("be brief")
    assert "question 0" not in seen and "question 7" in seen


def test_a_too_long_message_changes_nothing() -> None:
    chat = conversation()
    "".join(chat.ask("one"))
    turns = list(chat.turns)
    with pytest.raises(InputError, match="shorten it or raise --context"):
        chat.ask("y" * 500)
    assert chat.turns == turns


class Keyboard:
    """A terminal at which these lines are typed; an exception is Ctrl-C or Ctrl-D."""

    def __init__(self, patch: pytest.MonkeyPatch, *lines: str | type[BaseException]) -> None:
        self.lines = iter(lines)
        patch.setattr("sys.stdin", self)
        patch.setattr("builtins.input", self.input)

    def isatty(self) -> bool:
        return True

    def input(self, prompt: str) -> str:
        line = next(self.lines, EOFError)
        if isinstance(line, str):
            return line
        raise line


class Interrupted(Echo):
    """Ctrl-C comes with the third letter of a message in capitals."""

    def stream(self, ids: Sequence[int], limits: Limits) -> Iterator[Token]:
        for i, token in enumerate(super().stream(ids, limits)):
            if i == 2 and self.seen.rpartition("### Instruction:\n")[2][:1].isupper():
                raise KeyboardInterrupt
            yield token


def test_ctrl_c_stops_the_reply_and_the_next_turn_works(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Keyboard(monkeypatch, "ABCDEF", "next", KeyboardInterrupt, "never")
    model = Interrupted()
    conversation = Conversation(model, "", Limits())  # type: ignore[arg-type]
    talk(conversation, ChatOptions(Path("m.gguf"), stats=True))
    out, err = capsys.readouterr()
    assert out == "AB\nNEXT\n"
    assert "stopped" in err and err.count("tokens/s") == 1
    assert [turn.content for turn in conversation.turns] == ["ABCDEF", "AB", "next", "NEXT"]


def test_on_a_terminal_an_error_is_one_line_and_the_chat_continues(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Keyboard(monkeypatch, "y" * 500, *(f"question {i} {'x' * 40}" for i in range(5)), "/exit", "no")
    talk(conversation(), ChatOptions(Path("m.gguf")))
    out, err = capsys.readouterr()
    assert out.startswith("QUESTION 0") and out.count("\n") == 5
    assert err.count("error: ") == 1 and "shorten it" in err
    assert "the oldest 2 turns were dropped" in err


@pytest.fixture(scope="module")
def artifact(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from edgeft.export.options import ExportOptions
    from edgeft.export.pipeline import export

    out = tmp_path_factory.mktemp("chat")
    return export(
        ExportOptions(out=out, base=str(tiny_base), quants=("q8_0",), compare_live=False)
    )[0].path


def run(artifact: Path, text: str, *options: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "edgeft", "chat", str(artifact), "--max-tokens", "5", *options],
        input=text.encode(), capture_output=True, check=False,
    )  # fmt: skip


def test_only_replies_go_to_stdout(artifact: Path) -> None:
    plain = run(artifact, "lamp\n")
    assert (plain.returncode, plain.stderr) == (0, b"")
    assert plain.stdout.endswith(b"\n") and plain.stdout.strip()
    noisy = run(artifact, "/stats\n\nlamp\n/stats\n/rest\n/help\n/system x\n/exit\nnever\n")
    assert noisy.returncode == 0
    assert noisy.stdout == plain.stdout
    notes = noisy.stderr.decode()
    assert "no reply yet" in notes and "tokens/s" in notes
    assert "did you mean '/reset'" in notes and "Ctrl-D" in notes and "system message set" in notes


def test_a_closed_pipe_is_not_an_error(artifact: Path) -> None:
    command = f"yes lamp | head -400 | {sys.executable} -m edgeft chat {artifact} | head -c 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, check=False)
    assert done.stderr == b""


def test_a_prompt_longer_than_the_context_is_a_one_line_error(artifact: Path) -> None:
    done = run(artifact, "lamp " * 200, "--context", "64")
    assert done.returncode == 1
    assert (
        done.stdout == b"" and b"raise --context" in done.stderr and done.stderr.count(b"\n") == 1
    )
