"""An artifact -> the memory that it takes while it answers, from its header.

    needs_of(Path("q4_k_m.gguf")).bytes(slots=4, context=4096, kv_type="f16")

An upper bound: the file as if all of its pages were used, weights that llama.cpp holds in two forms, the whole cache,
and what llama.cpp computes in.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgeft.errors import FormatError
from edgeft.formats import format_of, load
from edgeft.kv_cache import KV_TYPES, CacheWidths, gguf_widths, head_size, kv_bytes
from edgeft.runtimes.protocol import DEFAULT_CONTEXT_TOKENS
from edgeft.runtimes.repacking import duplicated_bytes
from edgeft.weights import gguf_reader

PROCESS_BYTES = 120_000_000
"""Python, its packages, the API and the vocabulary as grammars read it"""
STEP_TOKENS = 160
"""of a prompt that the engine computes together at most"""


@dataclass(frozen=True)
class Needs:
    """What an artifact takes while it is served."""

    file: int
    """bytes of its weights in memory"""
    widths: CacheWidths
    heads: int
    head_size: int
    vocabulary: int
    training_context: int

    def bytes(self, slots: int, context: int, kv_type: str) -> int:
        types = KV_TYPES[kv_type]
        tokens = min(context, self.training_context)
        cache = kv_bytes(self.widths, slots * tokens, types)
        # Without flash attention a score for each pair of tokens, before and after the softmax.
        scores = 0 if types.is_quantized else 2 * 4 * STEP_TOKENS * self.heads * tokens
        return self.file + cache + scores + 2 * 4 * slots * self.vocabulary


def needs_of(path: Path, threads: int | None = None) -> Needs:
    row = format_of(path)
    if "llama-cpp-python" not in row.engines:
        raise FormatError(f"{path}: --max-memory knows llama.cpp's cache only", "leave it out")
    file = load(row.prepare)(path, threads) if row.prepare else path
    header = gguf_reader.read(file, errors="surrogateescape")
    meta, architecture = header.meta, header.meta.get("general.architecture")
    heads = meta.get(f"{architecture}.attention.head_count", 1)
    return Needs(
        file=file.stat().st_size + duplicated_bytes(header),
        widths=gguf_widths(meta),
        heads=max(heads) if isinstance(heads, list) else int(heads),
        head_size=head_size(meta),
        vocabulary=len(meta.get("tokenizer.ggml.tokens", ())),
        training_context=int(meta.get(f"{architecture}.context_length", 0))
        or DEFAULT_CONTEXT_TOKENS,
    )
