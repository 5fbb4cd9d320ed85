"""The options of the server. The string after a field is the help of its option."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from edgeft.errors import InputError
from edgeft.server.keys import Key, read_keys
from edgeft.web.http_server import is_loopback


@dataclass(frozen=True)
class ServeOptions:
    """What is served, to whom and how: the options of `edgeft serve`."""

    artifacts: tuple[Path, ...]
    alias: tuple[str, ...] = ()
    """NAME=MODEL: another name of an artifact, for clients that ask for a model by a name of their own,
    such as gpt-4o-mini=q4_k_m; * as NAME stands for all other names; repeatable."""
    host: str = "127.0.0.1"
    """Address to listen on; one that other machines reach needs a key."""
    port: int = 8080
    """Port to listen on; 0 = a free one."""
    key: str = field(default="", repr=False)
    """that a client must show, where there is no `api_key_file`; "" = none"""
    api_key_file: Path | None = None
    """File with the keys that clients must send: NAME:KEY, one a line, and after it, where wanted, rpm=NUMBER
    (requests a minute) and tpd=NUMBER (tokens a day). One line without a name is one key. Without the
    option: $EDGEFT_API_KEY."""
    slots: int = 4
    """Answers at a time, for each artifact."""
    queue: int = 32
    """Answers that may wait; further requests get status 429."""
    threads: int | None = None
    """CPU threads. Default: all cores."""
    context: int | None = None
    """Tokens of each conversation at most. Default: up to 4096."""
    kv_type: str = "f16"
    """Type of the cache of keys and values: f16, q8_0, q4_0, or q8_0-f16 with values in f16. Smaller
    ones change answers a little and read prompts more slowly."""
    max_memory: int | None = None
    """Memory for the server, such as 700M. Slots, context and type of the cache are then chosen so that
    it suffices; --slots and --context are the most, --kv-type the most exact. Default: the cache
    grows with the longest conversation."""
    speculate: str = "none"
    """ngram: guess the next tokens by what the prompt and the answer repeat, and compute several at
    once while one answer runs. Answers stay the same. none: one token after the other."""
    draft: Path | None = None
    """Smaller GGUF artifact of the same vocabulary that guesses the next tokens, in place of --speculate
    ngram. Answers stay the same."""
    max_tokens: int | None = None
    """Tokens of an answer at most. Default: the context."""
    allow_host: tuple[str, ...] = ()
    """Name in the Host header that is accepted, besides localhost, addresses and this machine's name;
    repeatable."""
    cors: tuple[str, ...] = ()
    """Origin whose pages may send requests, such as https://example.org; repeatable."""
    shutdown_timeout: float = 10.0
    """Seconds that running answers have to finish after SIGTERM."""
    watch: bool = False
    """Serve a new file of an artifact as soon as its manifest is there. SIGHUP does the same at once."""
    batch_invariant: bool = True
    """Compute each answer so that it does not depend on what else is running. Without, llama.cpp may use
    kernels that read long prompts faster."""
    log_prompts: bool = False
    """Write the prompts to stderr, too."""
    quiet: bool = False
    """Write no line per request."""

    def check(self) -> None:
        """InputError for an open address without a key, for a `cors` that is not an origin, and for two
        ways to guess."""
        if self.draft and self.speculate != "none":
            raise InputError("--draft and --speculate exclude each other", "leave one of them out")
        if not is_loopback(self.host) and not (self.key or self.api_key_file):
            raise InputError(
                f"{self.host} can be reached from other machines, which needs a key",
                "EDGEFT_API_KEY or --api-key-file",
            )
        for origin in self.cors:
            if not origin.startswith(("http://", "https://")) or origin.count("/") != 2:
                problem = f"--cors {origin!r} is no origin"
                raise InputError(problem, "such as https://example.org, without a path")

    def keys(self) -> list[Key]:
        """That clients must send, read anew; InputError for a file without any."""
        if self.api_key_file:
            return read_keys(self.api_key_file)
        return [Key("default", self.key)] if self.key else []
