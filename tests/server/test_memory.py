"""Which slots, context and type of the cache fit into a given memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeft.errors import FormatError, ResourceError
from edgeft.kv_cache import KV_TYPES, kv_bytes
from edgeft.runtimes.gguf import GGUFRuntime
from edgeft.server.memory import PROCESS_BYTES, fit_memory, needs_of
from edgeft.server.options import ServeOptions
from edgeft.server.run import engines


def chosen(options: ServeOptions, limit: int) -> tuple[int, int | None, str]:
    fitted = fit_memory(options, limit)
    return fitted.slots, fitted.context, fitted.kv_type


def test_slots_go_before_the_type_of_the_cache_and_the_context_goes_last(
    wide: dict[str, Path],
) -> None:
    path = wide["q8_0"]
    needs = needs_of(path)
    options = ServeOptions((path,), context=2048)
    order = [
        (slots, context, kv_type)
        for context in (2048, 1024, 512)
        for kv_type in ("f16", "q8_0-f16", "q8_0")
        for slots in (4, 2, 1)
    ]
    sizes = [PROCESS_BYTES + needs.bytes(*one) for one in order]
    for place, size in enumerate(sizes):
        first = next(i for i, other in enumerate(sizes) if other <= size)
        assert chosen(options, size) == order[first], place
    assert chosen(options, max(sizes)) == order[0]
    with pytest.raises(ResourceError, match="1 slot of 512 tokens with a cache in q8_0 needs"):
        fit_memory(options, min(sizes) - 1)


def test_the_bytes_are_at_least_those_of_the_file_and_the_cache(wide: dict[str, Path]) -> None:
    needs = needs_of(wide["f16"])
    for kv_type, types in KV_TYPES.items():
        cache = kv_bytes(needs.widths, 3 * 400, types)
        extra = needs.bytes(3, 400, kv_type) - wide["f16"].stat().st_size - cache
        assert 0 < extra < 20_000_000


def test_the_values_of_the_options_are_the_most(wide: dict[str, Path]) -> None:
    options = ServeOptions((wide["f16"],), slots=3, context=300, kv_type="q4_0")
    assert chosen(options, 10**9) == (3, 300, "q4_0")
    # A context is never longer than the model was trained for.
    assert chosen(ServeOptions((wide["f16"],)), 10**9)[1] == needs_of(wide["f16"]).training_context


def test_heads_that_no_block_fits_keep_float16(artifacts: dict[str, Path]) -> None:
    path = artifacts["f16"]
    needs = needs_of(path)
    least = PROCESS_BYTES + needs.bytes(1, 512, "f16")
    assert chosen(ServeOptions((path,), context=512), least) == (1, 512, "f16")
    with pytest.raises(ResourceError, match="cache in f16"):
        fit_memory(ServeOptions((path,), context=512), least - 1)


def test_two_artifacts_share_the_memory(wide: dict[str, Path]) -> None:
    both = tuple(wide.values())
    size = PROCESS_BYTES + sum(needs_of(path).bytes(1, 512, "f16") for path in both)
    assert chosen(ServeOptions(both, slots=1, context=512), size) == (1, 512, "f16")


def test_a_draft_has_its_share_of_the_memory(wide: dict[str, Path]) -> None:
    target, draft = wide["f16"], wide["q8_0"]
    alone = PROCESS_BYTES + needs_of(target).bytes(1, 512, "f16")
    size = alone + needs_of(draft).bytes(1, 512, "f16")
    options = ServeOptions((target,), slots=1, context=512, draft=draft)
    assert chosen(options, size) == (1, 512, "f16")
    assert chosen(options, size - 1) != (1, 512, "f16")
    with pytest.raises(ResourceError):
        fit_memory(options, alone - 1)


def test_other_engines_are_refused(tmp_path: Path) -> None:
    (tmp_path / "genai_config.json").write_text("{}")
    with pytest.raises(FormatError, match="--max-memory"):
        needs_of(tmp_path)


def test_the_whole_cache_is_there_from_the_start(wide: dict[str, Path]) -> None:
    options = ServeOptions((wide["q8_0"],), slots=2, context=1024, threads=1, max_memory=10**9)
    with engines(options) as (engine,):
        assert isinstance(engine.runtime, GGUFRuntime)
        assert engine._sequences.room == 1024  # type: ignore[attr-defined]
    with engines(ServeOptions((wide["q8_0"],), slots=2, context=1024, threads=1)) as (engine,):
        assert engine._sequences.room == 256  # type: ignore[attr-defined]
