"""Files of keys, and what a key may use."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from edgeft.errors import InputError
from edgeft.server import keys as keys_module
from edgeft.server.keys import Key, Keys, read_keys

pytestmark = pytest.mark.unit

MIDNIGHT = 20_000.0 * keys_module.DAY_S


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = MIDNIGHT
        monkeypatch.setattr("time.time", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def ask(keys: Keys, token: bytes | None, method: str = "POST") -> tuple[int, dict[str, Any]]:
    """(status of the refusal or 200, scope)."""
    scope: dict[str, Any] = {"method": method}
    refusal = keys.authorize(scope, token)
    return (refusal.status if refusal else 200), scope


def retry_s(keys: Keys, token: bytes) -> int:
    refusal = keys.authorize({"method": "POST"}, token)
    assert refusal and refusal.status == 429
    return int(dict(refusal.headers)[b"retry-after"])


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("open sesame\n", [Key("default", "open sesame")]),
        ("dGVz:dA==", [Key("dGVz", "dA==")]),
        (
            "# people\nalice:a1 rpm=60   tpd=200000\n\nnight-job.1:b2\tTPD\n".replace("\tTPD", ""),
            [Key("alice", "a1", 60, 200_000), Key("night-job.1", "b2")],
        ),
        ("é:ключ", [Key("é", "ключ")]),
    ],
)
def test_a_file_of_keys(tmp_path: Path, text: str, keys: list[Key]) -> None:
    (tmp_path / "keys").write_text(text)
    assert read_keys(tmp_path / "keys") == keys


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("\n# nothing\n", "holds no key"),
        ("alice:s3cret\ns3cret2\n", "keys:2 is no key"),
        ("alice:s3cret rpm=x\nbob:s3cret2", "keys:1 is no key"),
        ("alice:s3cret\nalice:s3cret2", "keys:2 has a name or a key for the second time"),
        ("alice:s3cret\nbob:s3cret", "keys:2 has a name or a key for the second time"),
        ("".join(f"n{i}:s3cret{i}\n" for i in range(1001)), "more than 1000 keys"),
    ],
)
def test_a_wrong_file_of_keys_is_refused_without_showing_a_key(
    tmp_path: Path, text: str, says: str
) -> None:
    (tmp_path / "keys").write_text(text)
    with pytest.raises(InputError) as caught:
        read_keys(tmp_path / "keys")
    assert says in str(caught.value) and "s3cret" not in str(caught.value)


def test_without_keys_everybody_may_ask() -> None:
    assert ask(Keys(), None) == (200, {"method": "POST"})


def test_a_key_is_known_by_its_name() -> None:
    keys = Keys([Key("alice", "a1"), Key("bob", "é")])
    assert ask(keys, b"a1")[1]["edgeft.key"] == "alice"
    assert ask(keys, "é".encode())[1]["edgeft.key"] == "bob"
    assert [ask(keys, token)[0] for token in (None, b"", b"a", b"a1 ", b"alice")] == [401] * 5
    assert keys.uses["alice"].requests == 1 and keys.uses["alice"].limited == 0


def test_requests_a_minute_refill_steadily(clock: Clock) -> None:
    keys = Keys([Key("alice", "a1", rpm=6), Key("bob", "b2")])
    assert [ask(keys, b"a1")[0] for _ in range(7)] == [200] * 6 + [429]
    assert ask(keys, b"b2")[0] == 200  # the other's limit is its own
    assert ask(keys, b"a1", "GET")[0] == 200  # a list of models costs nothing
    assert retry_s(keys, b"a1") == 10
    clock.now += 9
    assert retry_s(keys, b"a1") == 1
    clock.now += 1
    assert [ask(keys, b"a1")[0] for _ in range(2)] == [200, 429]
    clock.now += 3600  # no more than a minute's worth is saved
    assert [ask(keys, b"a1")[0] for _ in range(7)] == [200] * 6 + [429]
    assert keys.uses["alice"].requests == 13 and keys.uses["alice"].limited == 5


def test_a_clock_that_is_set_back_gives_nothing(clock: Clock) -> None:
    keys = Keys([Key("alice", "a1", rpm=1)])
    assert ask(keys, b"a1")[0] == 200
    clock.now -= 1000
    assert ask(keys, b"a1")[0] == 429
    clock.now += 60
    assert ask(keys, b"a1")[0] == 200


def test_tokens_a_day_begin_anew_at_midnight(clock: Clock) -> None:
    keys = Keys([Key("alice", "a1", tpd=100)])
    clock.now += 3600
    for prompt, new in ((40, 20), (30, 9)):
        assert ask(keys, b"a1")[0] == 200
        keys.add_tokens("alice", prompt, new)
    assert ask(keys, b"a1")[0] == 200  # one token is left
    keys.add_tokens("alice", 1, 0)
    assert retry_s(keys, b"a1") == 23 * 3600
    clock.now = MIDNIGHT + keys_module.DAY_S
    assert ask(keys, b"a1")[0] == 200
    use = keys.uses["alice"]
    assert (use.prompt_tokens, use.new_tokens, use.day_tokens) == (71, 29, 0)


def test_other_keys_keep_what_is_known_of_a_name(clock: Clock) -> None:
    keys = Keys([Key("alice", "a1", rpm=1), Key("bob", "b2")])
    assert [ask(keys, b"a1")[0], ask(keys, b"b2")[0]] == [200, 200]
    keys.replace([Key("alice", "a2", rpm=1)])
    assert ask(keys, b"a1")[0] == ask(keys, b"b2")[0] == 401
    assert ask(keys, b"a2")[0] == 429
    keys.add_tokens("bob", 5, 5)  # an answer that ends after its key
    assert list(keys.uses) == ["alice"]


def test_memory_does_not_grow_with_requests(clock: Clock) -> None:
    keys = Keys([Key("alice", "a1", rpm=5, tpd=10)])
    for number in itertools.islice(itertools.count(), 1000):
        clock.now += 7
        ask(keys, b"a1")
        ask(keys, b"%d" % number)
        keys.add_tokens("alice", 1, 1)
        keys.add_tokens(str(number), 1, 1)
    assert list(keys.uses) == ["alice"] and len(keys._by_hash) == 1
