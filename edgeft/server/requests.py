"""Takes a validated body, gives the generation requests that answer it.

Rendering and tokenizing take time: call these functions in a thread of their own.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from edgeft.errors import InputError, TooLong
from edgeft.records import Sampling
from edgeft.runtimes.grammar import grammar_of
from edgeft.runtimes.protocol import Runtime
from edgeft.server.answer_rule import answer_rule
from edgeft.server.engine import Engine
from edgeft.server.jobs import GenerationRequest, Job
from edgeft.server.schemas import (
    MAX_CHOICES,
    MAX_LOGPROBS,
    MAX_TOP_LOGPROBS,
    Chat,
    Completion,
    Generation,
)
from edgeft.server.tools import (
    Toolbox,
    answer_form,
    answer_grammar,
    prompt_messages,
    prompt_tools,
)
from edgeft.tokenizer.chat_template import ChatTemplate


def chat_requests(body: Chat, engine: Engine, limit: int) -> list[GenerationRequest]:
    """`n` requests for the conversation. `limit`: the most tokens of an answer."""
    runtime, toolbox = engine.runtime, Toolbox.of(body)
    prompt = chat_prompt(body, runtime.chat)
    prompt_ids = runtime.encode(prompt)
    form = answer_form(toolbox, prompt, runtime)
    rule = answer_rule(body)
    is_optional = bool(toolbox.functions) and not toolbox.is_strict and rule is None
    grammar = ""
    if "grammar" in engine.supports or not is_optional:
        grammar = answer_grammar(toolbox, form, rule, runtime)
    request = GenerationRequest(
        prompt_ids=(),
        max_tokens=_max_tokens(body.max_completion_tokens or body.max_tokens, limit),
        sampling=_sampling(body, runtime.vocab_size, grammar),
        form=form,
        is_grammar_optional=is_optional,
        stop=body.stops,
        logprobs=(body.top_logprobs or 0) if body.logprobs or body.top_logprobs else None,
        ignore_eos=body.ignore_eos,
        has_progress=bool(body.stream and body.return_progress),
    )
    return _choices(request, [prompt_ids], body, engine)


def completion_requests(body: Completion, engine: Engine, limit: int) -> list[GenerationRequest]:
    """`n` requests for each prompt. `limit`: the most tokens of an answer."""
    rule = answer_rule(body)
    request = GenerationRequest(
        prompt_ids=(),
        max_tokens=_max_tokens(16 if body.max_tokens is None else body.max_tokens, limit),
        sampling=_sampling(body, engine.runtime.vocab_size, grammar_of(rule) if rule else ""),
        stop=body.stops,
        logprobs=body.logprobs,
        echo=bool(body.echo) and body.logprobs is not None,
        ignore_eos=body.ignore_eos,
        has_progress=bool(body.stream and body.return_progress),
    )
    return _choices(request, tokenized(body.prompt, engine.runtime), body, engine)


def chat_prompt(body: Chat, chat: ChatTemplate) -> str:
    """The conversation as text; InputError where `continue_final_message` cannot be followed."""
    messages, tools = prompt_messages(body.messages), prompt_tools(body)
    kwargs, last = body.chat_template_kwargs, messages[-1]
    can_continue = last.role == "assistant" and not last.tool_calls and not last.reasoning
    continues = body.continue_final_message
    if continues is None:
        continues = can_continue and body.add_generation_prompt is None
    if not continues:
        opens = body.add_generation_prompt is not False
        return chat.render(messages, opens, tools=tools, template_kwargs=kwargs)
    if not can_continue:
        problem = "continue_final_message needs a last message of the assistant, of text alone"
        raise InputError(problem)
    if body.add_generation_prompt:
        raise InputError("continue_final_message and add_generation_prompt exclude each other")
    return chat.render(messages[:-1], tools=tools, template_kwargs=kwargs) + last.content


def checked(requests: list[GenerationRequest], engine: Engine) -> list[GenerationRequest]:
    """The same, without a grammar that is optional and that the engine cannot follow.

    InputError for one that is not optional.
    """
    first = requests[0]
    if not first.sampling.grammar:
        return requests
    try:
        engine.check(Job(first, lambda _: None))
    except InputError:
        if not first.is_grammar_optional:
            raise
        return [replace(one, sampling=replace(one.sampling, grammar="")) for one in requests]
    return requests


def tokenized(prompt: Any, runtime: Runtime) -> list[list[int]]:
    """A text, ids, or a list of either -> the ids of each, with the bos where the vocabulary wants it."""
    prompts: list[Any] = [prompt]
    if isinstance(prompt, list) and not isinstance(prompt[0], int):
        prompts = list(prompt)

    def ids_of(prompt: str | list[int]) -> list[int]:
        return prompt if isinstance(prompt, list) else with_bos(runtime.encode(prompt), runtime)

    return list(map(ids_of, prompts))


def with_bos(ids: list[int], runtime: Runtime) -> list[int]:
    """The ids of a text with the bos in front, where the vocabulary wants it and it is not there."""
    if not getattr(runtime, "adds_bos", False):
        return ids
    bos = runtime.encode(runtime.chat.bos_token)[:1]
    return ids if ids[:1] == bos else [*bos, *ids]


def check_ids(ids: Sequence[int], runtime: Runtime) -> None:
    """InputError for an id that is not in the vocabulary."""
    if not all(0 <= token < runtime.vocab_size for token in ids):
        raise InputError(f"the ids of tokens go from 0 to {runtime.vocab_size - 1}")


def _choices(
    request: GenerationRequest, prompts: Sequence[Sequence[int]], body: Generation, engine: Engine
) -> list[GenerationRequest]:
    """`request` `n` times for each prompt, each with its own seed; InputError beyond a limit."""
    n = body.n or 1
    if n * len(prompts) > MAX_CHOICES:
        raise InputError(f"{n * len(prompts)} answers at once, {MAX_CHOICES} are allowed")
    for ids in prompts:
        _check_prompt(ids, engine.runtime)
    _check_supported(request, engine)
    _check_logprobs(request, prompts, n, engine.runtime.context)
    seed = secrets.randbits(32) if body.seed is None else body.seed
    seeded = [replace(request.sampling, seed=seed + i) for i in range(n)]
    return [
        replace(request, prompt_ids=tuple(ids), sampling=sampling)
        for ids in prompts
        for sampling in seeded
    ]


def _max_tokens(max_tokens: int | None, limit: int) -> int:
    """At most `limit`: clients ask for more than a context holds, and mean that it may be long."""
    return limit if max_tokens is None else min(max_tokens, limit)


def _sampling(body: Generation, vocab_size: int, grammar: str) -> Sampling:
    return Sampling(
        temperature=body.temperature or 0.0,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=max(0, body.top_k or 0),
        min_p=body.min_p or 0.0,
        repeat_penalty=body.repeat_penalty or 1.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        presence_penalty=body.presence_penalty or 0.0,
        repeat_last_n=-1 if body.repeat_last_n is None else body.repeat_last_n,
        bias=_bias(body.logit_bias or {}, vocab_size),
        grammar=grammar,
    )


def _bias(logit_bias: dict[str, float], vocab_size: int) -> tuple[tuple[int, float], ...]:
    def is_id(key: str) -> bool:
        return key.isascii() and key.isdigit() and len(key) <= 10 and int(key) < vocab_size

    if not all(map(is_id, logit_bias)):
        raise InputError(f"the keys of logit_bias are ids of tokens, from 0 to {vocab_size - 1}")
    return tuple((int(key), value) for key, value in logit_bias.items())


def _check_prompt(ids: Sequence[int], runtime: Runtime) -> None:
    if not ids:
        raise InputError("the prompt is empty")
    if len(ids) > runtime.context:
        raise TooLong(len(ids), runtime.context)
    check_ids(ids, runtime)


def _check_supported(request: GenerationRequest, engine: Engine) -> None:
    sampling = request.sampling
    penalties = sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty
    needs = {
        "top_k": sampling.top_k > 0,
        "min_p": sampling.min_p > 0,
        "penalties": penalties != (1, 0, 0),
        "bias": bool(sampling.bias),
        "grammar": bool(sampling.grammar),
        "logprobs": request.logprobs is not None,
        "return_progress": request.has_progress,
    }
    for name, is_needed in needs.items():
        if is_needed and name not in engine.supports:
            raise InputError(f"the engine of {engine.name} has no {name}", "a GGUF artifact has it")


def _check_logprobs(
    request: GenerationRequest, prompts: Sequence[Sequence[int]], n: int, context: int
) -> None:
    """Bounds the log probabilities that all answers keep until they are sent."""
    if request.logprobs is None:
        return
    new = sum(min(request.max_tokens, context + 1 - len(ids)) for ids in prompts)
    tokens = new + (sum(map(len, prompts)) if request.echo else 0)
    if n * tokens * (1 + request.logprobs) > max(MAX_LOGPROBS, (1 + MAX_TOP_LOGPROBS) * context):
        raise InputError("more log probabilities than one request may ask for", "set max_tokens")
