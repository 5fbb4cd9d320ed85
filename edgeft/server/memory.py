"""Takes `ServeOptions` with `max_memory`, gives those whose slots, context and cache fit into it.

llama-server and vLLM let the user do this sum. Here it is an upper bound: the file of each artifact as
if all of its pages were used, the whole cache, what llama.cpp computes in, and the process itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

from edgeft.errors import ResourceError
from edgeft.files import format_bytes
from edgeft.kv_cache import BLOCK_VALUES, KV_TYPES
from edgeft.progress import say
from edgeft.runtimes.needs import PROCESS_BYTES, Needs, needs_of
from edgeft.runtimes.protocol import DEFAULT_CONTEXT_TOKENS
from edgeft.server.options import ServeOptions

MIN_CONTEXT_TOKENS = 512
"""below which no context is chosen"""
DRAFT_TYPE = "f16"
"""of the cache of a draft model"""
LAST_RESORT = "q4_0"
"""a type that is taken only where the user names it"""


def fit_memory(options: ServeOptions, limit: int) -> ServeOptions:
    """`options` with the first combination that fits into `limit` bytes. Their slots and context are the
    most that is tried, their type of the cache the most exact.

    The order: the context is halved last, the cache gets a smaller type before that, and before
    that there are fewer slots. ResourceError where nothing fits, FormatError for an artifact that
    llama.cpp does not run.
    """
    artifacts = [needs_of(path, options.threads) for path in options.artifacts]
    draft = needs_of(options.draft, options.threads) if options.draft else None
    smallest = None
    for slots, context, kv_type in _combinations(options, artifacts):
        smallest = PROCESS_BYTES + sum(a.bytes(slots, context, kv_type) for a in artifacts)
        if draft:  # each artifact has one of its own
            smallest += len(artifacts) * draft.bytes(1, context, DRAFT_TYPE)
        if smallest <= limit:
            slots_text = "1 slot" if slots == 1 else f"{slots} slots"
            say(
                f"{slots_text} of {context} tokens, cache in {kv_type}: at most "
                f"{format_bytes(smallest)} of {format_bytes(limit)}"
            )
            return replace(options, slots=slots, context=context, kv_type=kv_type)
    raise ResourceError(
        f"nothing fits into {format_bytes(limit)}: {slots} slot of {context} "
        f"tokens with a cache in {kv_type} needs {format_bytes(smallest or 0)}",
        "a smaller artifact or --context",
    )


def _combinations(options: ServeOptions, artifacts: list[Needs]) -> Iterator[tuple[int, int, str]]:
    """(slots, context, type of the cache), from what serves most to what takes least."""
    names = list(KV_TYPES)
    types = [name for name in names[names.index(options.kv_type) :] if name != LAST_RESORT]
    if any(artifact.head_size % BLOCK_VALUES for artifact in artifacts):
        types = [name for name in types if not KV_TYPES[name].is_quantized]
    types = types or [options.kv_type]
    longest = max(artifact.training_context for artifact in artifacts)
    context = options.context or min(longest, DEFAULT_CONTEXT_TOKENS)
    contexts = _halves(context, min(context, MIN_CONTEXT_TOKENS))
    for tokens, kv_type, slots in itertools.product(contexts, types, _halves(options.slots, 1)):
        yield slots, tokens, kv_type


def _halves(most: int, least: int) -> list[int]:
    values = [most]
    while values[-1] // 2 >= least:
        values.append(values[-1] // 2)
    return values
