"""Many answers at a time are the single ones, whatever else happens."""

from __future__ import annotations

import json
import queue
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest

from edgeft.errors import InputError
from edgeft.records import Limits, Sampling
from edgeft.runtimes import draft_model, speculation
from edgeft.runtimes.grammar import json_schema_grammar
from edgeft.runtimes.protocol import open_runtime
from edgeft.server import batching_engine
from edgeft.server import engine as engine_module
from edgeft.server.batching_engine import BatchingEngine, choose_sequence
from edgeft.server.jobs import GenerationRequest, Job, StreamDelta
from helpers.engines import answers, ids_of, open_engine, prompts, text_of, tokens_of
from helpers.serving import exported
from helpers.tiny import make_base


@pytest.mark.parametrize("quant", ["f32", "f16", "q8_0"])
def test_answers_side_by_side_are_those_alone(artifacts: dict[str, Path], quant: str) -> None:
    engine = open_engine(artifacts[quant], slots=8)
    try:
        requests = [
            GenerationRequest(ids, 24, logprobs=3, ignore_eos=True) for ids in prompts(engine, 8)
        ]
        alone = [answers(engine, [request])[0] for request in requests]
        for together in (2, 4, 8):
            for i in range(0, 8, together):
                for one, events in zip(
                    alone[i:], answers(engine, requests[i : i + together]), strict=False
                ):
                    # The probabilities too, bit for bit.
                    assert tokens_of(events) == tokens_of(one)
    finally:
        engine.close()


SCHEMA = {
    "type": "object",
    "properties": {"room": {"type": "string", "maxLength": 12}, "on": {"type": "boolean"},
                   "more": {"type": "array", "items": {"type": "integer"}, "maxItems": 3}},
    "required": ["room", "on", "more"],
    "additionalProperties": False,
}  # fmt: skip


def some_with_a_schema(
    prompt_ids: Sequence[tuple[int, ...]], tokens: int
) -> list[GenerationRequest]:
    """Every second greedy request follows `SCHEMA`."""
    constrained = Sampling(grammar=json_schema_grammar(SCHEMA))
    return [
        GenerationRequest(ids, tokens, constrained if i % 2 else Sampling(), logprobs=1)
        for i, ids in enumerate(prompt_ids)
    ]


def assert_equal_side_by_side(engine: BatchingEngine, requests: list[GenerationRequest]) -> None:
    """2, 4 and 8 at a time: token for token and bit for bit the answers alone."""
    alone = [answers(engine, [request])[0] for request in requests]
    for together in (2, 4, 8):
        for i in range(0, 8, together):
            several = answers(engine, requests[i : i + together])
            for one, events in zip(alone[i:], several, strict=False):
                assert tokens_of(events) == tokens_of(one)
                assert events[-1].finish_reason == one[-1].finish_reason


@pytest.mark.parametrize("quant", ["f32", "q8_0"])
def test_answers_with_schemas_side_by_side_are_those_alone(
    artifacts: dict[str, Path], quant: str
) -> None:
    engine = open_engine(artifacts[quant], slots=8)
    try:
        assert_equal_side_by_side(engine, some_with_a_schema(prompts(engine, 8), 24))
    finally:
        engine.close()


@pytest.mark.parametrize(
    "kv_type",
    ["f16", *(pytest.param(t, marks=pytest.mark.slow) for t in ("q8_0-f16", "q8_0")), "q4_0"],
)
def test_answers_in_a_cache_of_any_type_that_grows_are_those_alone(
    wide: dict[str, Path], kv_type: str
) -> None:
    """Beside each other while the cache grows from 256 to 512 tokens, and alone in the grown one."""
    engine = open_engine(wide["q8_0"], slots=8, context=512, kv_type=kv_type)
    try:
        ids = [(*prompt, *range(1, 245 - len(prompt))) for prompt in prompts(engine, 8)]
        requests = [GenerationRequest(one, 24, logprobs=1, ignore_eos=True) for one in ids]
        beside = answers(engine, requests)
        assert engine._sequences.room == 512
        for request, several in zip(requests, beside, strict=True):
            engine._sequences.truncate(0, 0)
            assert tokens_of(answers(engine, [request])[0]) == tokens_of(several)
        assert_equal_side_by_side(engine, requests)
    finally:
        engine.close()


class Guesses:
    """Instead of n-grams: what an answer will be, of which every third guess has a wrong third token."""

    answers: ClassVar[dict[tuple[int, ...], list[int]]] = {}
    """prompt -> ids of its answer without speculation"""

    def __init__(self, prompt: Sequence[int]) -> None:
        self.rest = list(self.answers[tuple(prompt)])
        self.proposals = 0

    def append(self, token: int) -> None:
        assert token == self.rest.pop(0)

    def propose(self, most: int) -> list[int]:
        self.proposals += 1
        guess = self.rest[:most]
        if self.proposals % 3 == 0 and len(guess) > 2:
            guess[2] = (guess[2] + 1) % 200
        return guess

    def verified(self, proposed: int, accepted: int) -> None:
        assert accepted <= proposed


@pytest.mark.parametrize(
    ("quant", "kv_type"),
    [
        ("q8_0", "q8_0-f16"),
        ("f16", "q4_0"),
        pytest.param("f16", "q8_0-f16", marks=pytest.mark.slow),
        pytest.param("q8_0", "q4_0", marks=pytest.mark.slow),
    ],
)
def test_answers_with_speculation_are_those_without(
    wide: dict[str, Path], monkeypatch: pytest.MonkeyPatch, quant: str, kv_type: str
) -> None:
    """Greedy, with a schema and random with a seed; log probabilities and ends included. Guesses are
    right, wrong and taken back; alone and beside 1, 3 and 7 others."""
    monkeypatch.setattr(batching_engine, "NgramDraft", Guesses)
    schema = Sampling(grammar=json_schema_grammar(SCHEMA))
    random = Sampling(temperature=0.6, seed=5, repeat_penalty=1.1)
    events: list[list[list[StreamDelta]]] = []
    for speculate in (False, True):
        engine = open_engine(
            wide[quant], slots=8, context=512, kv_type=kv_type, speculate=speculate
        )
        try:
            requests = [
                GenerationRequest(ids, 40, how, logprobs=1, ignore_eos=how is not schema)
                for ids, how in zip(
                    prompts(engine, 8), [Sampling(), schema, random, Sampling()] * 2, strict=True
                )
            ]
            alone = [answers(engine, [request])[0] for request in requests]
            if speculate:
                counts = engine.counts
                assert counts.new_tokens / 2 < counts.accepted_tokens < counts.drafted_tokens
                assert_equal_side_by_side(engine, requests)
            events.append(alone)
            Guesses.answers = {
                request.prompt_ids: [*ids_of(answer), *range(9)]
                for request, answer in zip(requests, alone, strict=True)
            }
        finally:
            engine.close()
    for plain, ahead in zip(*events, strict=True):
        assert tokens_of(plain) == tokens_of(ahead)
        assert text_of(plain) == text_of(ahead)
        assert plain[-1].finish_reason == ahead[-1].finish_reason


@pytest.mark.parametrize("kv_type", [pytest.param("q8_0", marks=pytest.mark.slow), "q8_0-f16"])
def test_answers_with_a_draft_model_are_those_without(
    wide: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kv_type: str
) -> None:
    """A draft with the target's weights is right, another one is wrong; greedy, by a schema and random."""
    monkeypatch.setattr(draft_model, "MIN_PROBABILITY", 0.0)
    monkeypatch.setattr(speculation, "MAX_PAUSE_TOKENS", 8)
    (other,) = exported(make_base(tmp_path / "base", seed=7, hidden=128), tmp_path, "q8_0")
    target, answered = wide["q8_0"], []
    for draft in (None, target, other):
        engine = open_engine(target, slots=4, context=512, kv_type=kv_type, draft=draft)
        try:
            ids = prompts(engine, 3)
            schema = Sampling(grammar=json_schema_grammar(SCHEMA))
            random = Sampling(temperature=0.6, seed=5)
            requests = [
                GenerationRequest(ids[0], 40, logprobs=1, ignore_eos=True),
                GenerationRequest(ids[1], 40, schema, logprobs=1),
                GenerationRequest(ids[2], 40, random, logprobs=1, ignore_eos=True),
            ]
            greedy, *others = requests
            first = tokens_of(answers(engine, [greedy])[0])
            counts = engine.counts
            if draft == target:  # a cache of another type changes some tokens of a random model
                assert counts.accepted_tokens > counts.drafted_tokens / 2 > 10
            elif draft:
                assert counts.drafted_tokens > 2 * counts.accepted_tokens
            else:
                assert counts.drafted_tokens == 0
            answered.append([first, *(tokens_of(answers(engine, [one])[0]) for one in others)])
            together = [tokens_of(answer) for answer in answers(engine, requests)]
            assert together == answered[0]
        finally:
            engine.close()
    assert answered[0] == answered[1] == answered[2]


def test_a_draft_equal_to_the_target_is_always_right(
    wide: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draft_model, "MIN_PROBABILITY", 0.0)
    for draft in (None, wide["q8_0"]):
        engine = open_engine(wide["q8_0"], slots=1, isolated=False, draft=draft)
        try:
            request = GenerationRequest(prompts(engine, 1)[0], 60, logprobs=0, ignore_eos=True)
            ids = ids_of(answers(engine, [request])[0])
            if draft is None:
                alone = ids
            counts = engine.counts
            assert counts.accepted_tokens == counts.drafted_tokens
            assert counts.drafted_tokens > (40 if draft else -1)
            assert ids == alone
        finally:
            engine.close()


def test_a_stop_text_and_the_limits_hold_in_a_guess(
    wide: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching_engine, "NgramDraft", Guesses)
    engine = open_engine(wide["q8_0"], slots=1, context=256, kv_type="q8_0", speculate=True)
    try:
        request = GenerationRequest(prompts(engine, 1)[0], 1000, logprobs=0, ignore_eos=True)
        monkeypatch.setattr(engine, "_speculates", False)
        (whole,) = answers(engine, [request])
        monkeypatch.setattr(engine, "_speculates", True)
        Guesses.answers = {request.prompt_ids: [*ids_of(whole), *range(9)]}
        (ahead,) = answers(engine, [request])
        assert ids_of(ahead) == ids_of(whole) and engine.counts.accepted_tokens > 100
        assert len(ids_of(ahead)) == 256 - len(request.prompt_ids) + 1
        for most in (1, 17, 18, 40):
            (cut,) = answers(engine, [replace(request, max_tokens=most)])
            assert ids_of(cut) == ids_of(whole)[:most]
            assert cut[-1].finish_reason == "length"
        text = text_of(whole)
        stop = text[40:44]
        (stopped,) = answers(engine, [replace(request, stop=(stop,))])
        assert text_of(stopped) == text[: text.find(stop)]
    finally:
        engine.close()


def test_speculation_that_would_change_answers_is_refused(
    wide: dict[str, Path], artifacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="would change the answers"):
        open_engine(wide["q8_0"], slots=2, kv_type="f16", speculate=True)
    open_engine(wide["q8_0"], slots=2, isolated=False, speculate=True).close()


@pytest.mark.slow
@pytest.mark.parametrize("quant", ["f16", "q8_0", "q4_k_m", "q4_0", "q2_k"])
def test_real_answers_side_by_side_are_those_alone(tmp_path: Path, quant: str) -> None:
    """Types whose kernels ask how many rows there are, and prompts longer than the 256 tokens from
    which flash attention would split a lone token's keys."""
    from edgeft.base.resolve import resolve_base

    (path,) = exported(resolve_base("smollm2-135m"), tmp_path, quant)
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
        plain = [GenerationRequest(prompt, 32, logprobs=1, ignore_eos=True) for prompt in ids]
        assert_equal_side_by_side(engine, plain)
        assert_equal_side_by_side(engine, some_with_a_schema(ids, 32))
    finally:
        engine.close()


@pytest.mark.slow
@pytest.mark.parametrize("quant", ["q8_0", "q4_k_m"])
@pytest.mark.parametrize("kv_type", ["q8_0-f16", "q8_0", "q4_0"])
def test_real_answers_with_speculation_are_those_without(
    tmp_path: Path, quant: str, kv_type: str
) -> None:
    """A prompt that the answer repeats, over 512 tokens, from where kernels of attention may change."""
    from edgeft.base.resolve import resolve_base

    (path,) = exported(resolve_base("smollm2-135m"), tmp_path, quant)
    text = "The cold river carried small boats past old houses while two children watched. " * 40
    events = []
    for speculate in (False, True):
        engine = open_engine(path, slots=2, context=1024, kv_type=kv_type, speculate=speculate)
        try:
            ids = tuple(engine.runtime.encode(text))
            assert len(ids) > 512
            request = GenerationRequest(ids, 64, logprobs=1, ignore_eos=True)
            events.append(answers(engine, [request])[0])
            assert not speculate or engine.counts.accepted_tokens > 20
        finally:
            engine.close()
    assert tokens_of(events[0]) == tokens_of(events[1])


@pytest.mark.slow
@pytest.mark.parametrize("quant", ["f16", "q8_0", "q4_k_m"])
def test_real_answers_with_a_draft_model_are_those_without(tmp_path: Path, quant: str) -> None:
    """The draft has the same weights in q4_0, so most of its guesses are right."""
    from edgeft.base.resolve import resolve_base

    path, draft = exported(resolve_base("smollm2-135m"), tmp_path, quant, "q4_0")
    texts = "The cold river carried small boats past old houses. " * 60, "Tell me of the sea."
    events = []
    for small in (None, draft):
        engine = open_engine(path, slots=2, context=1024, kv_type="q8_0-f16", draft=small)
        try:
            requests = [
                GenerationRequest(tuple(engine.runtime.encode(t)), 64, logprobs=1, ignore_eos=True)
                for t in texts
            ]
            assert len(requests[0].prompt_ids) > 512
            events.append([tokens_of(answers(engine, [request])[0]) for request in requests])
            assert not small or engine.counts.accepted_tokens > 30
        finally:
            engine.close()
    assert events[0] == events[1]


def test_greedy_answers_are_the_runtimes(
    artifacts: dict[str, Path], engine: BatchingEngine
) -> None:
    with open_runtime(artifacts["f32"], threads=1) as runtime:
        for ids in prompts(engine, 4):
            wanted = [token.id for token in runtime.stream(ids, Limits(20, ignore_eos=True))]
            events = answers(engine, [GenerationRequest(ids, 20, logprobs=0, ignore_eos=True)])[0]
            assert ids_of(events) == wanted


def test_a_cached_beginning_changes_nothing_and_is_not_read_again(
    artifacts: dict[str, Path],
) -> None:
    for isolated in (True, False):
        engine = open_engine(artifacts["f32"], slots=2, isolated=isolated)
        try:
            ids = tuple(engine.runtime.encode("the lamp on the thirty-first floor, " * 4))
            first = answers(engine, [GenerationRequest(ids, 10, logprobs=2, ignore_eos=True)])[0]
            turn = (*ids, *ids_of(first), *engine.runtime.encode(" and then the other lamp"))
            request = GenerationRequest(turn, 10, logprobs=2, ignore_eos=True)
            seen = engine.counts.reused_tokens
            second = answers(engine, [request])[0]
            reused = engine.counts.reused_tokens - seen
            assert reused == (len(ids) if isolated else len(ids) + 9)
            for number in range(2):
                engine._sequences.truncate(number, 0)
            fresh = answers(engine, [request])[0]
            assert ids_of(second) == ids_of(fresh)
            if isolated:
                assert tokens_of(second) == tokens_of(fresh)
        finally:
            engine.close()


def test_a_beginning_is_copied_from_a_running_answer(artifacts: dict[str, Path]) -> None:
    engine = open_engine(artifacts["f32"], slots=2)
    try:
        shared = tuple(engine.runtime.encode("be brief and turn on what you are told to. " * 3))
        requests = [
            GenerationRequest(
                (*shared, *engine.runtime.encode(f"lamp {i} please now")), 12, logprobs=0
            )
            for i in (1, 2)
        ]
        alone = [ids_of(answers(engine, [request])[0]) for request in requests]
        for number in range(2):
            engine._sequences.truncate(number, 0)
        before = engine.counts.reused_tokens
        came: queue.SimpleQueue[StreamDelta] = queue.SimpleQueue()
        engine.submit([Job(replace(requests[0], max_tokens=60, ignore_eos=True), came.put)])
        came.get(timeout=30)
        assert ids_of(answers(engine, [requests[1]])[0]) == alone[1]
        while not came.get(timeout=30).finish_reason:
            pass
        assert engine.counts.reused_tokens - before >= len(shared)
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("shared", "running", "last_used", "expected"),
    [
        ([0, 0, 0, 0], (), [3, 1, 2, 4], (1, None)),  # unused for longest
        ([0, 0, 0, 0], (2,), [9, 9, 0, 8], (3, None)),  # beside a running one
        ([0, 0, 0, 0], (0, 2), [0, 9, 0, 1], (1, None)),  # between two
        ([0, 15, 0, 16], (), [1, 2, 3, 4], (3, None)),  # the same beginning of at least 16 tokens
        ([0, 15, 0, 0], (), [1, 2, 3, 4], (0, None)),
        ([0, 0, 40, 0], (2,), [1, 1, 1, 1], (1, 2)),  # the beginning of a running one is copied
        ([0, 0, 30, 0], (2,), [1, 1, 1, 1], (1, None)),  # where the copy costs no more than reading
        ([0, 40, 60, 0], (2,), [1, 1, 1, 1], (1, None)),
        ([70], (), [1], (0, None)),
    ],
)
def test_the_sequence_for_a_prompt(
    shared: list[int],
    running: tuple[int, ...],
    last_used: list[float],
    expected: tuple[int, int | None],
) -> None:
    assert choose_sequence(shared, running, last_used, copy_cost=32) == expected


def test_answers_run_on_neighbouring_sequences(
    artifacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_engine(artifacts["f32"], slots=8)
    step, steps = engine._sequences.step, []

    def recorded(tokens: Sequence[tuple[int, int]]) -> None:
        steps.append([number for number, _ in tokens])
        step(tokens)

    monkeypatch.setattr(engine._sequences, "step", recorded)
    # Unused for longest are 1 and 5, which are not beside each other.
    monkeypatch.setattr(engine, "_last_used", [5.0, 0.0, 4.0, 3.0, 7.0, 1.0, 6.0, 2.0])
    request = GenerationRequest(prompts(engine, 1)[0], 12, ignore_eos=True)
    try:
        answers(engine, [request] * 3)
    finally:
        engine.close()
    assert max(map(len, steps)) == 3
    assert all(numbers[-1] - numbers[0] == len(numbers) - 1 for numbers in steps)
    assert 1 in steps[0]


def test_a_cancelled_answer_frees_its_slot(engine: BatchingEngine) -> None:
    ids = prompts(engine, 1)[0]
    came: queue.SimpleQueue[StreamDelta] = queue.SimpleQueue()
    job = Job(GenerationRequest(ids, 200, ignore_eos=True), came.put)
    engine.submit([job])
    came.get(timeout=30)
    job.cancel()
    ended = time.perf_counter()
    while not (event := came.get(timeout=30)).finish_reason:
        pass
    assert event.finish_reason == "cancelled" and job.new_tokens < 200
    assert time.perf_counter() - ended < 1
    assert engine.counts.running == 0


def test_running_answers_flow_on_while_a_long_prompt_is_read(
    artifacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching_engine, "PROMPT_TOKENS_PER_STEP", 16)
    monkeypatch.setattr(batching_engine, "MIN_STEP_TOKENS", batching_engine.MIN_PROMPT_TOKENS)
    monkeypatch.setattr(engine_module, "SEND_INTERVAL_S", 0.0)
    engine = open_engine(artifacts["f32"], slots=2)
    try:
        order: queue.SimpleQueue[str] = queue.SimpleQueue()
        runs = GenerationRequest(prompts(engine, 1)[0], 100, ignore_eos=True, logprobs=0)
        engine.submit(
            [Job(runs, lambda event: order.put("running" if not event.finish_reason else "end"))]
        )
        assert order.get(timeout=30) == "running"
        long = GenerationRequest(tuple(engine.runtime.encode("abcdefgh" * 25)), 1, ignore_eos=True)
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
    read, parts = engine._sequences.read, []

    def recorded(number: int, ids: Sequence[int], outputs: int = 1) -> None:
        parts.append((number, len(ids)))
        read(number, ids, outputs)

    monkeypatch.setattr(engine._sequences, "read", recorded)
    try:
        answers(engine, [GenerationRequest(tuple(range(at, at + length)), 4) for at in (1, 2, 3)])
    finally:
        engine.close()
    for number in range(3):
        own = [count for at, count in parts if at == number]
        assert sum(own) == length
        assert len(own) <= max(1, length // 32)
        assert min(own) >= min(length, 32)


def test_a_seed_fixes_an_answer_whoever_is_beside_it(engine: BatchingEngine) -> None:
    ids = prompts(engine, 3)
    how = Sampling(temperature=1.5, top_k=40, top_p=0.9, min_p=0.01, seed=7)
    request = GenerationRequest(ids[1], 20, how, logprobs=0, ignore_eos=True)
    other = GenerationRequest(ids[2], 20, replace(how, seed=8), logprobs=0, ignore_eos=True)
    (alone,) = answers(engine, [request])
    beside, _ = answers(engine, [request, other])
    assert ids_of(alone) == ids_of(beside)
    for narrow in (replace(how, top_p=0.0), replace(how, min_p=1.0), replace(how, top_k=1)):
        greedy, likeliest = answers(
            engine, [replace(request, sampling=Sampling()), replace(request, sampling=narrow)]
        )
        assert ids_of(greedy) == ids_of(likeliest)
    (again,) = answers(engine, [replace(request, sampling=replace(how, seed=9))])
    assert ids_of(again) != ids_of(alone)


def test_penalties_and_bias_change_what_is_chosen(engine: BatchingEngine) -> None:
    request = GenerationRequest(prompts(engine, 1)[0], 30, logprobs=0, ignore_eos=True)
    plain = ids_of(answers(engine, [request])[0])
    how = Sampling(frequency_penalty=2.0, presence_penalty=2.0, repeat_penalty=1.5)
    varied = ids_of(answers(engine, [replace(request, sampling=how)])[0])
    assert len(set(varied)) > len(set(plain))
    (events,) = answers(engine, [replace(request, sampling=Sampling(bias=((77, 100.0),)))])
    assert set(ids_of(events)) == {77}


def test_a_grammar_is_followed_and_ends_the_answer(engine: BatchingEngine) -> None:
    schema = {
        "type": "object",
        "properties": {"on": {"type": "boolean"}, "room": {"enum": ["hall", "den"]}},
        "required": ["on", "room"],
        "additionalProperties": False,
    }

    ids = prompts(engine, 5)
    for temperature in (0.0, 1.0):
        how = Sampling(temperature=temperature, grammar=json_schema_grammar(schema), seed=3)
        for events in answers(engine, [GenerationRequest(i, 150, how) for i in ids]):
            assert events[-1].finish_reason == "stop", text_of(events)
            value = json.loads(text_of(events))
            assert isinstance(value["on"], bool) and value["room"] in ("hall", "den")
    (events,) = answers(
        engine,
        [GenerationRequest(ids[0], 40, Sampling(grammar=json_schema_grammar({"type": "object"})))],
    )
    assert text_of(events).startswith("{")


def test_a_broken_grammar_is_refused_before_it_waits(engine: BatchingEngine) -> None:
    job = Job(GenerationRequest((1, 2), 4, Sampling(grammar="root ::= (")), lambda event: None)
    with pytest.raises(InputError, match="cannot be followed"):
        engine.check(job)


def test_stop_texts_over_the_borders_of_tokens(engine: BatchingEngine) -> None:
    request = GenerationRequest(prompts(engine, 1)[0], 40, ignore_eos=True)
    whole = text_of(answers(engine, [request])[0])
    stop = whole[10:14]
    (events,) = answers(engine, [replace(request, stop=(stop, "never that"))])
    assert text_of(events) == whole[: whole.find(stop)]
    assert events[-1].finish_reason == "stop"
