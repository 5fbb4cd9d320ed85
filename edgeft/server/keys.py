"""A file of keys -> who may ask, how much, and how much each has asked: `Keys.authorize` for `web.guard.Rules`.

One key a line, with its name and, optionally, requests a minute (rpm) and tokens a day (tpd):

    alice:5NfK...  rpm=60 tpd=200000
    nightly-job:Zk2q...

A file of one line without a name is one key, called `default`. What is counted lives in memory: a few
numbers for each key.
"""

from __future__ import annotations

import hashlib
import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgeft.errors import InputError
from edgeft.web.guard import Refusal, Scope, error_body

MAX_KEYS = 1000
DAY_S = 86_400
LINE = re.compile(r"(?P<name>[\w.-]{1,64}):(?P<secret>\S+)(?P<limits>(?:\s+(?:rpm|tpd)=\d{1,12})*)")


@dataclass(frozen=True)
class Key:
    """What a client sends, and what it may use; None = without limit."""

    name: str
    secret: str = field(repr=False)
    rpm: int | None = None
    """requests a minute"""
    tpd: int | None = None
    """tokens of prompts and answers a day, which begins at midnight UTC"""


@dataclass
class Use:
    """What was asked with one key since the start, and what counts for its limits."""

    requests: int = 0
    """that were let through"""
    limited: int = 0
    """requests that a limit refused"""
    prompt_tokens: int = 0
    new_tokens: int = 0
    allowance: float = math.inf
    """requests that may come at once; grows by `rpm` a minute, up to `rpm`"""
    allowance_at: float = 0.0
    """seconds (time.time) at which `allowance` was right"""
    day: int = 0
    """number of the day (UTC) of `day_tokens`"""
    day_tokens: int = 0


class Keys:
    """The keys of a server. Without any, everybody may ask."""

    def __init__(self, keys: Sequence[Key] = ()) -> None:
        self.uses: dict[str, Use] = {}
        """name -> its use"""
        self.replace(keys)

    def replace(self, keys: Sequence[Key]) -> None:
        """Other keys from now on; what is known of a name stays."""
        # Looked up by hash, so that the time tells nothing of a key that is nearly right.
        self._by_hash = {_hash(_bytes(key.secret)): key for key in keys}
        self.uses = {key.name: self.uses.get(key.name, Use()) for key in keys}

    def authorize(self, scope: Scope, token: bytes | None) -> Refusal | None:
        """Refuse a request whose bearer token is no key (401) or has used up what it may use (429).

        `scope["edgeft.key"]` becomes the key's name."""
        if not self._by_hash:
            return None
        key = self._by_hash.get(_hash(token or b""))
        if key is None:
            message = "a key is needed: Authorization: Bearer KEY, or X-Api-Key: KEY"
            body = error_body(message, "invalid_api_key", "authentication_error")
            return Refusal(401, body)
        scope["edgeft.key"] = key.name
        if scope["method"] != "POST":
            return None
        use, now = self.uses[key.name], time.time()
        refusal = _over_day(key, use, now) or _over_minute(key, use, now)
        if refusal:
            use.limited += 1
        else:
            use.requests += 1
        return refusal

    def add_tokens(self, name: str, prompt_tokens: int, new_tokens: int) -> None:
        """Count what a request with the key of this name took."""
        use = self.uses.get(name)
        if use is None:  # the key was taken away while the answer was written
            return
        use.prompt_tokens += prompt_tokens
        use.new_tokens += new_tokens
        _begin_day(use, time.time())
        use.day_tokens += prompt_tokens + new_tokens


def read_keys(file: Path) -> list[Key]:
    """The keys of a file; InputError, which never shows a key, where it cannot be read or understood."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        problem = f"cannot read the key in {file}: {error}"
        raise InputError(problem, "check --api-key-file") from None
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1)]
    lines = [(number, line) for number, line in lines if line and not line.startswith("#")]
    if not lines:
        raise InputError(f"{file} holds no key", "NAME:KEY, one a line")
    if len(lines) == 1 and not LINE.fullmatch(lines[0][1]):
        return [Key("default", lines[0][1])]
    if len(lines) > MAX_KEYS:
        raise InputError(f"{file} holds more than {MAX_KEYS} keys")
    keys: list[Key] = []
    for number, line in lines:
        match = LINE.fullmatch(line)
        if not match:
            raise InputError(f"{file}:{number} is no key", "NAME:KEY, then rpm=NUMBER tpd=NUMBER")
        limits = dict(part.split("=") for part in match["limits"].split())
        key = Key(match["name"], match["secret"], **{k: int(v) for k, v in limits.items()})
        if any(key.name == other.name or key.secret == other.secret for other in keys):
            raise InputError(f"{file}:{number} has a name or a key for the second time")
        keys.append(key)
    return keys


def _over_minute(key: Key, use: Use, now: float) -> Refusal | None:
    """Takes one request from the allowance, which refills steadily (a token bucket)."""
    if key.rpm is None:
        return None
    grown = use.allowance + max(0.0, now - use.allowance_at) * key.rpm / 60
    use.allowance, use.allowance_at = min(key.rpm, grown), now
    if use.allowance >= 1:
        use.allowance -= 1
        return None
    wait = (1 - use.allowance) * 60 / key.rpm if key.rpm else 60.0
    message = f"the key {key.name} may send {key.rpm} requests a minute"
    return _too_many(message, "rate_limit_exceeded", wait)


def _over_day(key: Key, use: Use, now: float) -> Refusal | None:
    _begin_day(use, now)
    if key.tpd is None or use.day_tokens < key.tpd:
        return None
    message = f"the key {key.name} has used its {key.tpd} tokens of this day (UTC)"
    return _too_many(message, "insufficient_quota", DAY_S - now % DAY_S)


def _begin_day(use: Use, now: float) -> None:
    if use.day != (day := int(now // DAY_S)):
        use.day, use.day_tokens = day, 0


def _too_many(message: str, code: str, wait_s: float) -> Refusal:
    retry = b"%d" % max(1, math.ceil(wait_s))
    body = error_body(message, code, "rate_limit_exceeded")
    return Refusal(429, body, [(b"retry-after", retry)])


def _hash(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def _bytes(secret: str) -> bytes:
    """A key as a client sends it; one from the environment may be no UTF-8."""
    return secret.encode("utf-8", "surrogateescape")
