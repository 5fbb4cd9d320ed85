"""A validated request -> jobs for an engine."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Any

from edgeft.errors import InputError
from edgeft.records import Message, Sampling
from edgeft.runtimes.protocol import Runtime
from edgeft.server import grammar
from edgeft.server.engine import Engine
from edgeft.server.jobs import Event, Job, Want
from edgeft.server.schemas import (
    CHOICES,
    LOGPROBS,
    TOP,
    Chat,
    Completion,
    Generation,
    ResponseFormat,
)

Sink = Callable[[Event], None]


def chat(body: Chat, engine: Engine, limit: int) -> list[Want]:
    """One want per choice. Renders and tokenizes: for a thread of its own."""
    runtime = engine.runtime
    roles = {"developer": "system"}
    messages = [Message(roles.get(m.role, m.role), m.text) for m in body.messages]
    ids = runtime.encode(runtime.chat.render(messages))
    top = (body.top_logprobs or 0) if body.logprobs or body.top_logprobs else None
    rules = _grammar(body.response_format)
    asked = body.max_completion_tokens or body.max_tokens
    return _wants(body, engine, limit, [ids], asked, top=top, grammar=rules)


def completion(body: Completion, engine: Engine, limit: int) -> list[Want]:
    asked = 16 if body.max_tokens is None else body.max_tokens
    prompts = prompts_of(body.prompt, engine.runtime)
    return _wants(body, engine, limit, prompts, asked, body.logprobs, echo=bool(body.echo))


def prompts_of(given: Any, runtime: Runtime) -> list[list[int]]:
    """A text, ids, or a list of either -> ids of each, with the bos where the vocabulary asks for one."""
    prompts: list[Any] = [given]
    if isinstance(given, list) and not isinstance(given[0], int):
        prompts = list(given)
    bos: list[int] = []
    if getattr(runtime, "adds_bos", False):
        bos = runtime.encode(runtime.chat.bos_token)[:1]

    def ids_of(given: str | list[int]) -> list[int]:
        if isinstance(given, list):
            return given
        ids = runtime.encode(given)
        return ids if ids[:1] == bos else [*bos, *ids]

    return list(map(ids_of, prompts))


def check_ids(ids: Sequence[int], runtime: Runtime) -> None:
    if not all(0 <= token < runtime.vocab_size for token in ids):
        raise InputError(f"the ids of tokens go from 0 to {runtime.vocab_size - 1}")


def _wants(
    body: Generation,
    engine: Engine,
    limit: int,
    prompts: Sequence[Sequence[int]],
    asked: int | None,
    top: int | None,
    grammar: str = "",
    echo: bool = False,
) -> list[Want]:
    n = body.n or 1
    if n * len(prompts) > CHOICES:
        raise InputError(f"{n * len(prompts)} answers at once, {CHOICES} are allowed")
    if asked is not None and asked > limit:
        raise InputError(f"max_tokens is {asked}, at most {limit} are allowed")
    size, context = engine.runtime.vocab_size, engine.runtime.context
    for ids in prompts:
        if not ids:
            raise InputError("the prompt is empty")
        if len(ids) > context:
            problem = f"the prompt has {len(ids)} tokens, the context only {context}"
            raise TooLong(problem, "shorten it")
        check_ids(ids, engine.runtime)
    sampling = Sampling(
        temperature=body.temperature or 0.0,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=max(0, body.top_k or 0),
        min_p=body.min_p or 0.0,
        repeat_penalty=body.repeat_penalty or 1.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        presence_penalty=body.presence_penalty or 0.0,
        bias=_bias(body.logit_bias or {}, size),
        grammar=grammar,
    )
    needs = {
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "penalties": body.frequency_penalty
        or body.presence_penalty
        or sampling.repeat_penalty != 1,
        "bias": sampling.bias,
        "grammar": grammar,
        "logprobs": top is not None or (echo and top is not None),
    }
    for name, wanted in needs.items():
        if wanted and name not in engine.can:
            raise InputError(f"the engine of {engine.name} has no {name}", "a GGUF artifact has it")
    if top is not None:
        news = [context - len(ids) if asked is None else asked for ids in prompts]
        kept = sum(news) + (sum(map(len, prompts)) if echo else 0)
        if n * kept * (1 + top) > max(LOGPROBS, (1 + TOP) * context):
            raise InputError(
                "more log probabilities than one request may ask for", "set max_tokens"
            )
    seed = secrets.randbits(32) if body.seed is None else body.seed
    return [
        Want(
            ids=tuple(ids),
            max_tokens=limit if asked is None else asked,
            sampling=_seeded(sampling, seed + i),
            stop=body.stops,
            top=top,
            echo=echo and top is not None,
            ignore_eos=body.ignore_eos,
        )
        for ids in prompts
        for i in range(n)
    ]


class TooLong(InputError):
    """More tokens than the context."""


def jobs(wants: Sequence[Want], sink: Callable[[int], Sink]) -> list[Job]:
    return [Job(want, sink(index)) for index, want in enumerate(wants)]


def _seeded(sampling: Sampling, seed: int) -> Sampling:
    import dataclasses

    return dataclasses.replace(sampling, seed=seed)


def _grammar(form: ResponseFormat | None) -> str:
    if form is None or form.type == "text":
        return ""
    if form.type == "json_object":
        return grammar.of_any_json()
    if form.json_schema is None or form.json_schema.schema_ is None:
        raise InputError("response_format json_schema needs json_schema.schema")
    return grammar.of_schema(form.json_schema.schema_)


def _bias(given: dict[str, float], size: int) -> tuple[tuple[int, float], ...]:
    if not all(
        key.isascii() and key.isdigit() and len(key) <= 10 and int(key) < size for key in given
    ):
        raise InputError(f"the keys of logit_bias are ids of tokens, from 0 to {size - 1}")
    return tuple((int(key), value) for key, value in given.items())
