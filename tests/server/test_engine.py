"""The engine without HTTP: many answers at a time are the single ones, whatever else happens."""

from __future__ import annotations

import functools
import itertools
import json
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeft.errors import EdgeftError, InputError
from edgeft.records import Limits, Sampling, Token
from edgeft.runtimes.gguf import GGUFRuntime
from edgeft.runtimes.protocol import open_runtime
from edgeft.server import batching
from edgeft.server import engine as engine_module
from edgeft.server.batching import Batching
from edgeft.server.engine import Worker
from edgeft.server.grammar import of_any_json, of_schema, repeats
from edgeft.server.jobs import Busy, Chosen, Event, Job, StopText, Want
from edgeft.server.turns import OneByOne
from helpers.serving import exported


@pytest.fixture(scope="module")
def artifacts(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    quants = ("f32", "f16", "q8_0")
    return dict(
        zip(quants, exported(tiny_base, tmp_path_factory.mktemp("q"), *quants), strict=True)
    )


def open_engine(
    path: Path, slots: int = 4, waiting: int = 8, isolated: bool = True, context: int = 256
) -> Batching:
    runtime = open_runtime(path, threads=1, context=context, repack=not isolated)
    assert isinstance(runtime, GGUFRuntime)
    return Batching(path.stem, runtime, slots, waiting, Worker(), isolated)


@pytest.fixture(scope="module")
def engine(artifacts: dict[str, Path]) -> Iterator[Batching]:
    engine = open_engine(artifacts["f32"])
    yield engine
    engine.close()


def answers(engine: Batching | OneByOne, wants: Sequence[Want]) -> list[list[Event]]:
    """All at once; the events of each."""
    came: queue.SimpleQueue[tuple[int, Event]] = queue.SimpleQueue()
    jobs = [Job(w, lambda event, i=i: came.put((i, event))) for i, w in enumerate(wants)]  # type: ignore[misc]
    engine.submit(jobs)
    events: list[list[Event]] = [[] for _ in wants]
    left = len(wants)
    while left:
        index, event = came.get(timeout=60)
        events[index].append(event)
        left -= bool(event.finish)
    return events


def ids_of(events: Sequence[Event]) -> list[int]:
    return [token.id for event in events for token in event.tokens]


def tokens_of(events: Sequence[Event]) -> list[Chosen]:
    return [token for event in events for token in event.tokens]


def text_of(events: Sequence[Event]) -> str:
    return "".join(event.text for event in events)


def prompts(engine: Batching, count: int) -> list[tuple[int, ...]]:
    """Of different lengths, some with the same beginning."""
    texts = [f"{'the lamp on ' * (i % 3)}{i} {'é' * (i * 17 % 60)} thing" for i in range(count)]
    return [tuple(engine.runtime.encode(text)) for text in texts]


@pytest.mark.parametrize("quant", ["f32", "f16", "q8_0"])
def test_answers_side_by_side_are_those_alone(artifacts: dict[str, Path], quant: str) -> None:
    engine = open_engine(artifacts[quant], slots=8)
    try:
        wants = [Want(ids, 24, top=3, ignore_eos=True) for ids in prompts(engine, 8)]
        alone = [answers(engine, [want])[0] for want in wants]
        for together in (2, 4, 8):
            for i in range(0, 8, together):
                for one, events in zip(
                    alone[i:], answers(engine, wants[i : i + together]), strict=False
                ):
                    # The probabilities too, bit for bit.
                    assert tokens_of(events) == tokens_of(one)
    finally:
        engine.close()


@pytest.mark.slow
@pytest.mark.parametrize("quant", ["f16", "q8_0", "q4_k_m", "q2_k"])
def test_real_answers_side_by_side_are_those_alone(tmp_path: Path, quant: str) -> None:
    """Types whose kernels ask how many rows there are, and prompts longer than the 256 tokens from
    which flash attention would split a lone token's keys."""
    from edgeft.base.resolve import resolve

    (path,) = exported(resolve("smollm2-135m"), tmp_path, quant)
    engine = open_engine(path, slots=8, context=512)
    words = [
        "the",
        "cold",
        "river",
        "carried",
        "small",
        "boats",
        "past",
        "old",
        "houses",
        "while",
        "two",
        "children",
    ]
    try:
        asked = [" ".join(words[i:] * (1 + i * 7)) for i in range(8)]
        ids = [tuple(engine.runtime.encode(f"Tell a story. {text}")) for text in asked]
        assert max(map(len, ids)) > 256
        wants = [Want(prompt, 32, top=1, ignore_eos=True) for prompt in ids]
        alone = [answers(engine, [want])[0] for want in wants]
        for together in (2, 4, 8):
            for i in range(0, 8, together):
                several = answers(engine, wants[i : i + together])
                for one, events in zip(alone[i:], several, strict=False):
                    assert tokens_of(events) == tokens_of(one)
    finally:
        engine.close()


def test_greedy_answers_are_the_runtimes(artifacts: dict[str, Path], engine: Batching) -> None:
    with open_runtime(artifacts["f32"], threads=1) as runtime:
        for ids in prompts(engine, 4):
            wanted = [token.id for token in runtime.stream(ids, Limits(20, ignore_eos=True))]
            events = answers(engine, [Want(ids, 20, top=0, ignore_eos=True)])[0]
            assert ids_of(events) == wanted


def test_a_cached_beginning_changes_nothing_and_is_not_read_again(
    artifacts: dict[str, Path],
) -> None:
    for isolated in (True, False):
        engine = open_engine(artifacts["f32"], slots=2, isolated=isolated)
        try:
            ids = tuple(engine.runtime.encode("the lamp on the thirty-first floor, " * 4))
            first = answers(engine, [Want(ids, 10, top=2, ignore_eos=True)])[0]
            turn = (*ids, *ids_of(first), *engine.runtime.encode(" and then the other lamp"))
            want = Want(turn, 10, top=2, ignore_eos=True)
            seen = engine.counts.reused_tokens
            second = answers(engine, [want])[0]
            reused = engine.counts.reused_tokens - seen
            assert reused == (len(ids) if isolated else len(ids) + 9)
            for number in range(2):
                engine._many.truncate(number, 0)
            fresh = answers(engine, [want])[0]
            assert ids_of(second) == ids_of(fresh)
            if isolated:
                assert tokens_of(second) == tokens_of(fresh)
        finally:
            engine.close()


def test_a_beginning_is_copied_from_a_running_answer(artifacts: dict[str, Path]) -> None:
    engine = open_engine(artifacts["f32"], slots=2)
    try:
        shared = tuple(engine.runtime.encode("be brief and turn on what you are told to. " * 3))
        wants = [
            Want((*shared, *engine.runtime.encode(f"lamp {i} please now")), 12, top=0)
            for i in (1, 2)
        ]
        alone = [ids_of(answers(engine, [want])[0]) for want in wants]
        for number in range(2):
            engine._many.truncate(number, 0)
        before = engine.counts.reused_tokens
        came: queue.SimpleQueue[Event] = queue.SimpleQueue()
        engine.submit([Job(replace(wants[0], max_tokens=60, ignore_eos=True), came.put)])
        came.get(timeout=30)
        assert ids_of(answers(engine, [wants[1]])[0]) == alone[1]
        while not came.get(timeout=30).finish:
            pass
        assert engine.counts.reused_tokens - before >= len(shared)
    finally:
        engine.close()


def test_answers_run_on_neighbouring_sequences(
    artifacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_engine(artifacts["f32"], slots=8)
    step, steps = engine._many.step, []

    def recorded(tokens: Sequence[tuple[int, int]]) -> None:
        steps.append([number for number, _ in tokens])
        step(tokens)

    monkeypatch.setattr(engine._many, "step", recorded)
    # Unused for longest are 1 and 5, which are not beside each other.
    monkeypatch.setattr(engine, "_used", [5.0, 0.0, 4.0, 3.0, 7.0, 1.0, 6.0, 2.0])
    want = Want(prompts(engine, 1)[0], 12, ignore_eos=True)
    try:
        answers(engine, [want] * 3)
    finally:
        engine.close()
    assert max(map(len, steps)) == 3
    assert all(numbers[-1] - numbers[0] == len(numbers) - 1 for numbers in steps)
    assert 1 in steps[0]


def test_a_cancelled_answer_frees_its_slot(engine: Batching) -> None:
    ids = prompts(engine, 1)[0]
    came: queue.SimpleQueue[Event] = queue.SimpleQueue()
    job = Job(Want(ids, 200, ignore_eos=True), came.put)
    engine.submit([job])
    came.get(timeout=30)
    job.cancel()
    ended = time.perf_counter()
    while not (event := came.get(timeout=30)).finish:
        pass
    assert event.finish == "cancelled" and job.new < 200
    assert time.perf_counter() - ended < 1
    assert engine.counts.running == 0


def test_a_full_queue_refuses_and_forgets_who_left(artifacts: dict[str, Path]) -> None:
    engine = open_engine(artifacts["f32"], slots=1, waiting=2)
    try:
        came: queue.SimpleQueue[Event] = queue.SimpleQueue()
        want = Want(prompts(engine, 1)[0], 200, ignore_eos=True)
        jobs = [Job(want, came.put) for _ in range(3)]
        for job in jobs:
            engine.submit([job])
        with pytest.raises(Busy) as busy:
            engine.submit([Job(want, came.put)])
        assert 1 <= busy.value.seconds <= 60
        for job in jobs[1:]:
            job.cancel()
        until = time.perf_counter() + 10
        while engine.counts.waiting and time.perf_counter() < until:
            time.sleep(0.01)
        engine.submit([Job(replace(want, max_tokens=1), came.put)])
        jobs[0].cancel()
    finally:
        engine.close()
    assert engine.counts.running == engine.counts.waiting == 0


def test_running_answers_flow_on_while_a_long_prompt_is_read(
    artifacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "CHUNK", 16)
    monkeypatch.setattr(batching, "REST", batching.WIDE)
    monkeypatch.setattr(engine_module, "PAUSE", 0.0)
    engine = open_engine(artifacts["f32"], slots=2)
    try:
        order: queue.SimpleQueue[str] = queue.SimpleQueue()
        runs = Want(prompts(engine, 1)[0], 100, ignore_eos=True, top=0)
        engine.submit(
            [Job(runs, lambda event: order.put("running" if not event.finish else "end"))]
        )
        assert order.get(timeout=30) == "running"
        long = Want(tuple(engine.runtime.encode("abcdefgh" * 25)), 1, ignore_eos=True)
        engine.submit([Job(long, lambda event: order.put("long"))])
        between = 0
        while order.get(timeout=30) != "long":
            between += 1
        assert between >= 200 // 16 - 2
    finally:
        engine.close()


@pytest.mark.parametrize("length", [5, 127, 128, 129, 150, 159, 160, 161, 200])
def test_prompts_are_read_in_few_parts_and_none_that_is_short(
    artifacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    engine = open_engine(artifacts["f32"], slots=3)
    read, parts = engine._many.read, []

    def recorded(number: int, ids: Sequence[int], outputs: int = 1) -> None:
        parts.append((number, len(ids)))
        read(number, ids, outputs)

    monkeypatch.setattr(engine._many, "read", recorded)
    try:
        answers(engine, [Want(tuple(range(at, at + length)), 4) for at in (1, 2, 3)])
    finally:
        engine.close()
    for number in range(3):
        own = [count for at, count in parts if at == number]
        assert sum(own) == length
        assert len(own) <= max(1, length // 32)
        assert min(own) >= min(length, 32)


def test_a_seed_fixes_an_answer_whoever_is_beside_it(engine: Batching) -> None:
    ids = prompts(engine, 3)
    how = Sampling(temperature=1.5, top_k=40, top_p=0.9, min_p=0.01, seed=7)
    want = Want(ids[1], 20, how, top=0, ignore_eos=True)
    other = Want(ids[2], 20, replace(how, seed=8), top=0, ignore_eos=True)
    (alone,) = answers(engine, [want])
    beside, _ = answers(engine, [want, other])
    assert ids_of(alone) == ids_of(beside)
    for narrow in (replace(how, top_p=0.0), replace(how, min_p=1.0), replace(how, top_k=1)):
        greedy, likeliest = answers(
            engine, [replace(want, sampling=Sampling()), replace(want, sampling=narrow)]
        )
        assert ids_of(greedy) == ids_of(likeliest)
    (again,) = answers(engine, [replace(want, sampling=replace(how, seed=9))])
    assert ids_of(again) != ids_of(alone)


def test_penalties_and_bias_change_what_is_chosen(engine: Batching) -> None:
    want = Want(prompts(engine, 1)[0], 30, top=0, ignore_eos=True)
    plain = ids_of(answers(engine, [want])[0])
    how = Sampling(frequency_penalty=2.0, presence_penalty=2.0, repeat_penalty=1.5)
    varied = ids_of(answers(engine, [replace(want, sampling=how)])[0])
    assert len(set(varied)) > len(set(plain))
    (events,) = answers(engine, [replace(want, sampling=Sampling(bias=((77, 100.0),)))])
    assert set(ids_of(events)) == {77}


def test_a_grammar_is_followed_and_ends_the_answer(engine: Batching) -> None:
    schema = {
        "type": "object",
        "properties": {"on": {"type": "boolean"}, "room": {"enum": ["hall", "den"]}},
        "required": ["on", "room"],
        "additionalProperties": False,
    }
    import json

    ids = prompts(engine, 5)
    for temperature in (0.0, 1.0):
        how = Sampling(temperature=temperature, grammar=of_schema(schema), seed=3)
        for events in answers(engine, [Want(i, 150, how) for i in ids]):
            assert events[-1].finish == "stop", text_of(events)
            value = json.loads(text_of(events))
            assert isinstance(value["on"], bool) and value["room"] in ("hall", "den")
    (events,) = answers(engine, [Want(ids[0], 40, Sampling(grammar=of_any_json()))])
    assert text_of(events).startswith("{")


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "items": {"type": "string"}, "minItems": 10**9},
        {"type": "string", "pattern": "^" + "a" * 200 + "$"},
        {"type": "string", "pattern": "^((((a?){9}){9}){9}){9}$"},
        {"$ref": "https://example.org/schema.json"},
        {"$ref": "#/nowhere"},
        {"type": "nonsense"},
        {"enum": ["x" * 20_000]},
        {"type": "string", "minLength": -1},
        {"properties": 3},
    ],
)
def test_schemas_that_are_none_are_user_errors(schema: dict[str, object]) -> None:
    with pytest.raises(InputError):
        of_schema(schema)


ITSELF = {"$ref": "#/$defs/t"}


def of_itself(*alternatives: dict[str, Any]) -> dict[str, Any]:
    return {"$defs": {"t": {"anyOf": list(alternatives)}}, **ITSELF}


def array(**more: object) -> dict[str, Any]:
    return {"type": "array", "items": ITSELF, **more}


def operation(name: str, *operands: str, first: bool = True) -> dict[str, Any]:
    values: dict[str, Any] = dict.fromkeys(operands, ITSELF)
    told = {"op": {"const": name}}
    properties = told | values if first else values | told
    return {"type": "object", "properties": properties, "required": ["op", *operands]}


def nested(key: str, depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        found = {key: found}
    return found


def finite_beside_endless(count: int, width: int, height: int) -> dict[str, Any]:
    """With each level of an endless one the others begin anew."""
    found: dict[str, Any] = {"e": {"enum": [0] * width}, f"s{height}": {"type": "null"}}
    for i in range(height):
        deeper = {"type": "array", "items": {"$ref": f"#/$defs/s{i + 1}"}}
        found[f"s{i}"] = {"anyOf": [deeper, {"$ref": "#/$defs/e"}]}
    finite = {"type": "array", "items": {"$ref": "#/$defs/s0"}}
    found["t"] = {"anyOf": [array(), *[finite] * count]}
    return {"$defs": found, **ITSELF}


def chain(length: int) -> dict[str, Any]:
    """Two arrays of two arrays of two arrays ..."""
    found: dict[str, Any] = {f"t{length}": {"type": "string"}}
    for i in range(length):
        found[f"t{i}"] = {"anyOf": [{"type": "array", "items": {"$ref": f"#/$defs/t{i + 1}"}}] * 2}
    return {"$defs": found, "$ref": "#/$defs/t0"}


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        (of_itself(*[array(minItems=1) for _ in range(10)]), "contains itself"),
        (of_itself(array(), array(minItems=1)), "contains itself"),
        (of_itself(array(), {"type": "array"}), "contains itself"),
        (of_itself({"type": "object", "properties": {"a": ITSELF}, "additionalProperties": ITSELF}),
         "contains itself"),
        (of_itself(operation("add", "l", "r", first=False), operation("neg", "l", first=False)),
         "contains itself"),
        (chain(12), "too many ways"),
        ({"$defs": {"e": {"enum": list(range(99))}}, "anyOf": [
            {"type": "object", "properties": {f"p{i}": {"$ref": "#/$defs/e"}}} for i in range(50)]},
         "too many ways"),
        ({"$defs": {"t": ITSELF}, **ITSELF}, "nothing but itself"),
        # Not required, whatever the names of the first are: allOf is not looked at beside properties.
        (of_itself(*[{"properties": {name: {"type": "null"}, "v": ITSELF}, "allOf": []} for name in "ab"]),
         "contains itself"),
        (of_itself(*[{"allOf": [{"anyOf": [{"properties": {name: {"type": "null"}}}]},
                                {"properties": {"v": ITSELF}}]} for name in "ab"]), "contains itself"),
        (of_itself({"properties": {"*": ITSELF}}), "named \\*"),
        ({"a#": {"t": {"type": "null"}}, "t": {"anyOf": [{"type": "array", "items": {"$ref": "#/a#/t"}}] * 2},
          "$ref": "#/t"}, "contains itself"),
        (of_itself({"additionalProperties": True, "items": ITSELF}, array()), "contains itself"),
        ({"$defs": {f"a{i}": {"anyOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 2} for i in range(40)}
          | {"a40": {"anyOf": []}}, "$ref": "#/$defs/a0"}, "too many alternatives"),
        ({"$defs": {f"a{i}": {"properties": {k: {"allOf": [{"$ref": f"#/$defs/a{i + 1}"}]} for k in "pq"}}
                    for i in range(28)} | {"a28": {"properties": {"z": {"type": "null"}}}},
          "type": "object", "allOf": [{"$ref": "#/$defs/a0"}]}, "too large a grammar"),
        (nested("properties", 60), "nested"),
        (finite_beside_endless(31, 100, 62), "too many ways"),
        ({"$defs": {"e": {"enum": [0] * 1500}}, "anyOf": [
            {"type": "object", "properties": {"a": {"$ref": "#/$defs/e"}, "o": {"const": i}},
             "required": ["a", "o"]} for i in range(100)]}, "too many ways"),
        ({"anyOf": [{}] * 4000}, "too many alternatives"),
        ({"properties": {"default": {"type": "value"}}}, "no type"),
        ({"$defs": {"enum": {"type": "array", "items": {}, "minItems": 10**9}}, "$ref": "#/$defs/enum"},
         "minItems"),
        ({"type": "object", "additionalProperties": 1}, "additionalProperties"),
        ({"type": "string", "pattern": "^[" + 100 * chr(92) + "$"}, "bracket"),
        ({"type": "string", "pattern": "^(((a?){ 99 }){ 99 }){ 99 }$"}, "bracket"),
        ({"allOf": [{"properties": {"a": {"type": "string"}}}] * 2}, "two parts of an allOf"),
    ],
)  # fmt: skip
def test_what_begins_in_too_many_ways_is_refused(schema: dict[str, Any], reason: str) -> None:
    """llama.cpp would follow them all, in a call that nothing can stop."""
    with pytest.raises(InputError, match=reason):
        of_schema(schema)


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        (of_itself({"type": "number"}, {"type": "string"}, array(),
                   {"type": "object", "additionalProperties": ITSELF}), '[{"a": [1]}, "b"]'),
        (of_itself({"type": "null"}, {"type": "object", "properties": {"next": ITSELF},
                                      "required": ["next"]}), '{"next": {"next": null}}'),
        (of_itself(operation("add", "l", "r"), operation("neg", "l"), {"type": "number"}),
         '{"op": "add", "l": {"op": "neg", "l": 1}, "r": 2}'),
        ({"$defs": {"t": {"type": "object", "properties": {"sons": array()}}}, **ITSELF},
         '{"sons": [{"sons": []}]}'),
        (chain(5), '[[[[["a"]]]]]'),
        ({"type": "array", "items": {"anyOf": [
            {"type": "object", "properties": {"tool": {"const": f"t{i}"}, "to": {"type": "object"}},
             "required": ["tool", "to"]} for i in range(40)]}}, '[{"tool": "t39", "to": {}}]'),
        ({"enum": [f"room {i}" for i in range(1000)]}, '"room 999"'),
        (of_itself({"type": "number"}, *[operation(f"o{i}", "l", "r") for i in range(20)]),
         '{"op": "o19", "l": 1, "r": {"op": "o0", "l": 2, "r": 3}}'),
        ({"const": 'a" | [a] root [b] #'}, json.dumps('a" | [a] root [b] #')),
        ({"enum": ["a\\", 'b"']}, json.dumps('b"')),
        ({"type": "object", "properties": {"größe": {"const": "é\n"}}, "required": ["größe"]},
         '{"größe": "é\\n"}'),
        (functools.reduce(lambda inner, _: {"type": "object", "properties": {"properties": inner}},
                          range(14), {"type": "null"}), "{}"),
        ({"$defs": {"x": {"type": "null"}}, "type": "object", "required": ["ref 0", "ref-0"], "properties": {
            "ref 0": {"const": 1}, "ref-0": {"$ref": "#/$defs/x"}}}, '{"ref 0": 1, "ref-0": null}'),
        ({"type": "object", "properties": {'say "a"': {"const": {"type": "none"}}}, "required": ['say "a"']},
         json.dumps({'say "a"': {"type": "none"}})),
        ({"p": {"c": {"const": "a"}}, "q": {"c": {"const": "b"}}, "type": "array",
          "items": [{"$ref": "#/p/c"}, {"$ref": "#/q/c"}]}, '["a", "b"]'),
    ],
)  # fmt: skip
def test_schemas_that_tell_their_alternatives_apart(
    engine: Batching, schema: dict[str, Any], text: str
) -> None:
    """Recursive ones, too: llama.cpp reads the whole text by their grammar, at once."""
    sampler = engine._many.sampler(Sampling(grammar=of_schema(schema)))
    try:
        began = time.thread_time()
        for token in engine.runtime.encode(text):
            assert sampler.allows(token)
            sampler.accept(token)
        assert any(map(sampler.allows, engine.runtime.eos_ids))
        assert time.thread_time() - began < 2
    finally:
        sampler.close()


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        ({"type": ["object", "null"], "properties": {"a": {"type": "null"}}, "required": ["a"]},
         ['{"a": null}', "null"], ['{"b', "[", "{}"]),
        ({"properties": {"default": {"type": ["array", "null"], "items": {"const": "type"}}}},
         ['{"default": ["type"]}', '{"default": null}', "{}"], ['{"default": [1', '{"default": {']),
        ({"type": ["string", "null"], "enum": ["on", None]}, ['"on"', "null"], ['"of', "1"]),
        ({"type": ["array", "string"], "items": {"type": "boolean"}, "maxItems": 1, "pattern": "^a$"},
         ["[true]", '"a"'], ['["', "[true,", '"b']),
    ],
)  # fmt: skip
def test_each_of_several_types_is_asked_its_own(
    engine: Batching, schema: dict[str, Any], right: list[str], wrong: list[str]
) -> None:
    def reads(text: str) -> bool:
        sampler = engine._many.sampler(Sampling(grammar=of_schema(schema)))
        try:
            for token in engine.runtime.encode(text):
                if not sampler.allows(token):
                    return False
                sampler.accept(token)
            return text in wrong or any(map(sampler.allows, engine.runtime.eos_ids))
        finally:
            sampler.close()

    assert [reads(text) for text in right] == [True] * len(right)
    assert [reads(text) for text in wrong] == [False] * len(wrong)


@pytest.mark.parametrize(
    ("pattern", "size"),
    [("^((a?){9}b){9}$", 90), (r"^\d{4}-[a-z{]{2}\(x$", 9), ("a*b+", 8), ("^(((a*)*)*)*$", 256)],
)
def test_the_size_of_a_pattern(pattern: str, size: float) -> None:
    assert repeats(pattern) == size


def test_a_deep_schema_is_refused() -> None:
    deep: dict[str, object] = {"type": "string"}
    for _ in range(100):
        deep = {"type": "array", "items": deep}
    with pytest.raises(InputError, match="nested"):
        of_schema(deep)


def test_a_broken_grammar_is_refused_before_it_waits(engine: Batching) -> None:
    job = Job(Want((1, 2), 4, Sampling(grammar="root ::= (")), lambda event: None)
    with pytest.raises(InputError, match="grammar"):
        engine.check(job)


def test_stop_texts_over_the_borders_of_tokens(engine: Batching) -> None:
    want = Want(prompts(engine, 1)[0], 40, ignore_eos=True)
    whole = text_of(answers(engine, [want])[0])
    stop = whole[10:14]
    (events,) = answers(engine, [replace(want, stop=(stop, "never that"))])
    assert text_of(events) == whole[: whole.find(stop)]
    assert events[-1].finish == "stop"


def test_what_may_begin_a_stop_text_is_held_back() -> None:
    stops = StopText(("###", "\n\n"))
    assert [stops.push(text) for text in ("a#", "#b", "\n", "c##")] == ["a", "##b", "", "\nc"]
    assert stops.rest() == "##" and not stops.hit
    assert stops.push("x\n") + stops.push("\ny") == "x" and stops.hit


def test_an_error_of_the_engine_ends_what_runs_and_nothing_else(
    artifacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_engine(artifacts["f32"], slots=2)
    try:
        want = Want(prompts(engine, 1)[0], 5, ignore_eos=True, top=0)
        wanted = ids_of(answers(engine, [want])[0])
        step = engine._many.step

        def broken(tokens: Sequence[tuple[int, int]]) -> None:
            monkeypatch.setattr(engine._many, "step", step)
            raise EdgeftError("no memory")

        monkeypatch.setattr(engine._many, "step", broken)
        (events,) = answers(engine, [want])
        assert events[-1].finish == "error" and "no memory" in str(events[-1].error)
        assert ids_of(answers(engine, [want])[0]) == wanted
    finally:
        engine.close()


def test_one_by_one_answers_as_the_runtime_does(
    tiny_base: Path, artifacts: dict[str, Path]
) -> None:
    runtime = open_runtime(artifacts["f32"], threads=1)
    engine = OneByOne("any", runtime, 8, Worker())
    try:
        ids = [tuple(runtime.encode(text)) for text in ("the lamp", "on the desk", "lamp")]
        events = answers(engine, [Want(i, 12, ignore_eos=True) for i in ids])
        with open_runtime(artifacts["f32"], threads=1) as other:
            for one, prompt in zip(events, ids, strict=True):
                stream = other.stream(prompt, Limits(12, ignore_eos=True))
                assert text_of(one) == "".join(token.text for token in stream)
                assert one[-1].finish == "length"
    finally:
        engine.close()


@pytest.mark.parametrize("most", [3, 4, 9])
def test_one_by_one_tells_when_the_context_is_full(most: int) -> None:
    """transformers' stream ends by itself there, as it does at a stop."""

    class Model:
        context = 5

        def stream(self, ids: Sequence[int], limits: Limits) -> Iterator[Token]:
            for _ in range(min(limits.max_tokens, self.context - len(ids))):
                yield Token(7, "a", 0.0)

        def close(self) -> None: ...

    engine = OneByOne("any", Model(), 8, Worker())  # type: ignore[arg-type]
    try:
        (events,) = answers(engine, [Want((1, 2), most)])
        assert events[-1].finish == "length" and text_of(events) == "aaa"
        (events,) = answers(engine, [Want((1, 2), 2)])
        assert events[-1].finish == "length" and text_of(events) == "aa"
    finally:
        engine.close()


def test_a_step_goes_between_two_calls() -> None:
    """However many embeddings wait, the running answers flow on."""
    worker, order, wait = Worker(), list[str](), threading.Event()

    class Busy:
        busy = True

        def advance(self) -> None:
            order.append("step")

    def call(name: str) -> None:
        assert wait.wait(30)
        order.append(name)

    callers = [threading.Thread(target=worker.call, args=(functools.partial(call, name),))
               for name in "abc"]  # fmt: skip
    for caller in callers:
        caller.start()
    while len(worker._calls) < 2:
        time.sleep(0.001)
    worker.engines.append(Busy())  # type: ignore[arg-type]
    wait.set()
    for caller in callers:
        caller.join(30)
    worker.close()
    calls = [i for i, name in enumerate(order) if name != "step"]
    assert len(calls) == 3 and all(b - a > 1 for a, b in itertools.pairwise(calls)), order


def test_engines_share_one_thread_and_take_turns(artifacts: dict[str, Path]) -> None:
    worker, threads = Worker(), set()
    engines = []
    for quant in ("f32", "q8_0"):
        runtime = open_runtime(artifacts[quant], threads=1, context=256)
        assert isinstance(runtime, GGUFRuntime)
        engines.append(Batching(quant, runtime, 2, 8, worker))
    try:
        order: queue.SimpleQueue[int] = queue.SimpleQueue()

        def sink(number: int, event: Event) -> None:
            threads.add(threading.get_ident())
            order.put(-1 if event.finish else number)

        for number, engine in enumerate(engines):
            want = Want(prompts(engine, 1)[0], 100, ignore_eos=True)
            engine.submit([Job(want, functools.partial(sink, number))])
        seen: list[int] = []
        while seen.count(-1) < 2:
            seen.append(order.get(timeout=30))
        # Neither waits for the other to end.
        assert {0, 1} <= set(seen[: seen.index(-1)])
        assert len(threads) == 1
    finally:
        for engine in engines:
            engine.close()
        worker.close()
