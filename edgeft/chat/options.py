"""The options of the chat. The string after a field is the help of its option."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgeft.records import Limits


@dataclass(frozen=True)
class ChatOptions:
    """With what and how one talks: the options of `edgeft chat`."""

    artifact: Path
    system: str = ""
    """System message. Default: the template's."""
    temperature: float = Limits.temperature
    """How freely tokens are chosen; 0 = always the likeliest."""
    top_p: float = Limits.top_p
    """Choose among the likeliest tokens that have this share of the probability together."""
    top_k: int = Limits.top_k
    """Choose among so many tokens; 0 = among all."""
    min_p: float = Limits.min_p
    """Leave out tokens that are less likely than this share of the likeliest one's probability."""
    max_tokens: int = Limits.max_tokens
    """Tokens of a reply at most."""
    seed: int = Limits.seed
    """Seed of the random choices."""
    threads: int | None = None
    """CPU threads. Default: all cores."""
    context: int | None = None
    """Tokens of the conversation at most. Default: up to 4096."""
    kv_type: str = "f16"
    """Type of the cache of keys and values: f16, q8_0, q4_0, or q8_0-f16 with values in f16."""
    reference: bool = False
    """Compute a Hugging Face folder in float32 by torch, slowly."""
    batch_invariant: bool = True
    """Compute as `edgeft serve` does, whose answers are then the same. Without, llama.cpp may use kernels
    that read long prompts faster."""
    stats: bool = False
    """Write tokens/s to stderr after every reply."""

    @property
    def limits(self) -> Limits:
        return Limits(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            seed=self.seed,
            top_k=self.top_k,
            min_p=self.min_p,
        )
