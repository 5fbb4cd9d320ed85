"""`edgeft chat`: the conversation apart from any model, and the loop over a pipe."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from edgeft.cli.chat import Conversation
from edgeft.errors import InputError
from edgeft.records import Limits, Token
from edgeft.template import ALPACA, ChatTemplate


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
    talk = conversation()
    assert "".join(talk.ask("one")) == "ONE"
    assert "".join(talk.ask("two")) == "TWO"
    seen = talk.model.seen  # type: ignore[attr-defined]
    assert "one" in seen and "ONE" in seen
    talk.start("be brief")
    assert "".join(talk.ask("three")) == "THREE"
    seen = talk.model.seen  # type: ignore[attr-defined]
    assert "one" not in seen and seen.startswith("be brief")


def test_a_reply_that_is_stopped_stays_as_far_as_it_came() -> None:
    talk = conversation()
    reply = talk.ask("abcdef")
    assert next(reply) + next(reply) == "AB"
    reply.close()  # type: ignore[attr-defined]
    assert talk.turns[-1].content == "AB"
    "".join(talk.ask("next"))
    assert "AB" in talk.model.seen  # type: ignore[attr-defined]


def test_stats_count_from_the_tokens() -> None:
    talk = conversation()
    assert talk.stats() == "no reply yet"
    "".join(talk.ask("abcdefghijk"))
    assert "first after 100 ms, 11 tokens at 10 tokens/s" in talk.stats()
    assert "of 400" in talk.stats()


def test_the_oldest_turns_go_when_the_context_is_full(capsys: pytest.CaptureFixture[str]) -> None:
    talk = conversation(max_tokens=20)
    for i in range(9):
        "".join(talk.ask(f"question {i} " + "x" * 20))
    assert "its oldest turn was dropped" in capsys.readouterr().err
    seen = talk.model.seen  # type: ignore[attr-defined]
    assert "question 0" not in seen and "question 7" in seen
    with pytest.raises(InputError, match="shorten it or raise --context"):
        "".join(conversation().ask("y" * 500))


@pytest.fixture(scope="module")
def artifact(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from edgeft.export import ExportOptions, export

    out = tmp_path_factory.mktemp("chat")
    return export(ExportOptions(out=out, base=str(tiny_base), quants=("q8_0",)))[0].path


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


def test_a_reader_that_leaves_is_no_error(artifact: Path) -> None:
    command = f"yes lamp | head -400 | {sys.executable} -m edgeft chat {artifact} | head -c 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, check=False)
    assert done.stderr == b""


def test_a_prompt_longer_than_the_context_is_one_line(artifact: Path) -> None:
    done = run(artifact, "lamp " * 200, "--context", "64")
    assert done.returncode == 1
    assert b"raise --context" in done.stderr and done.stderr.count(b"\n") == 1
