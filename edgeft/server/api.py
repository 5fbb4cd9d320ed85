"""Takes engines, gives the ASGI application of the endpoints.

    app = Api([engine], ApiOptions()).app()

A wrong request is answered with 4xx and OpenAI's error body, with 429 where the queue is full.
"""

from __future__ import annotations

import array
import asyncio
import base64
import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from edgeft.errors import EdgeftError
from edgeft.progress import say
from edgeft.server.chat_page import chat_page
from edgeft.server.engine import Engine
from edgeft.server.jobs import Busy, Callback, GenerationRequest, Job
from edgeft.server.keys import Keys
from edgeft.server.metrics import Log, Metrics, memory
from edgeft.server.openai_objects import ChatObjects, CompletionObjects, usage
from edgeft.server.requests import (
    chat_requests,
    check_ids,
    checked,
    completion_requests,
    tokenized,
)
from edgeft.server.responses import (
    Deltas,
    EventStream,
    Refusal,
    cancelled_on_disconnect,
    client_left,
    collected,
    events,
    refusal_for,
    whole_response,
)
from edgeft.server.schemas import (
    INSTEAD,
    MAX_BODY_BYTES,
    Body,
    Chat,
    Completion,
    Detokenize,
    Embeddings,
    Generation,
    Tokenize,
    unsupported_field,
)
from edgeft.web.content_policy import content_policy
from edgeft.web.guard import App, Guard, Rules, error_body

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

BODY_TIMEOUT_S = 30.0
MAX_EMBEDDING_REQUESTS = 16
"""that may wait for one another; more are answered with 429"""
B = TypeVar("B", bound=Body)


@dataclass(frozen=True)
class ApiOptions:
    rules: Rules = field(default_factory=Rules)
    max_tokens: int | None = None
    """of an answer; None = the context"""
    log_prompts: bool = False
    quiet: bool = False


class Api:
    def __init__(
        self, engines: Sequence[Engine], options: ApiOptions, keys: Keys | None = None
    ) -> None:
        """`engines`: looked at for every request, since a reload exchanges them."""
        self._opened = engines
        self.options = options
        self.metrics = Metrics(keys)
        self._embedding_requests = 0
        """that wait or run"""
        self._embedding_lock = asyncio.Lock()

    @property
    def engines(self) -> dict[str, Engine]:
        return {engine.name: engine for engine in self._opened}

    def app(self) -> App:
        from starlette.applications import Starlette
        from starlette.exceptions import HTTPException
        from starlette.responses import JSONResponse
        from starlette.routing import Route

        async def refused(request: Request, error: Any) -> Response:
            headers = {"retry-after": str(error.retry_s)} if error.retry_s else {}
            if error.status in (408, 413):  # the rest of the body is not read
                headers["connection"] = "close"
            return JSONResponse(error.body, error.status, headers)

        async def unknown(request: Request, error: Any) -> Response:
            body = error_body(f"{error.detail}: {request.method} {request.url.path}", "not_found")
            return JSONResponse(body, error.status_code, error.headers)

        async def defect(request: Request, error: Any) -> Response:
            say(f"error: {type(error).__name__}: {error}")
            return JSONResponse(error_body("the server failed", "defect", "server_error"), 500)

        post, get = ["POST"], ["GET"]
        routes = [
            Route("/", self.page, methods=get),
            Route("/health", self.health, methods=get),
            Route("/metrics", self.show_metrics, methods=get),
            Route("/v1/models", self.models, methods=get),
            Route("/v1/models/{name:path}", self.model, methods=get),
            Route("/v1/chat/completions", self.chat, methods=post),
            Route("/v1/completions", self.completions, methods=post),
            Route("/v1/embeddings", self.embeddings, methods=post),
            Route("/tokenize", self.tokenize, methods=post),
            Route("/detokenize", self.detokenize, methods=post),
        ]
        handlers = {Refusal: refused, HTTPException: unknown, Exception: defect}
        inner: Any = Starlette(routes=routes, exception_handlers=handlers)
        inner.router.redirect_slashes = False
        return Log(Guard(inner, self.options.rules), self.metrics, self.options.quiet)

    async def page(self, request: Request) -> Response:
        from starlette.responses import HTMLResponse

        page = chat_page()
        headers = {
            "content-security-policy": content_policy(page),
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
            "cache-control": "no-cache",
        }
        return HTMLResponse(page, headers=headers)

    async def health(self, request: Request) -> Response:
        counts = [engine.counts for engine in self.engines.values()]
        return _json({
            "status": "ok",
            "running": sum(count.running for count in counts),
            "waiting": sum(count.waiting for count in counts),
            "slots": sum(count.slots for count in counts),
            "memory": memory(),
        })  # fmt: skip

    async def show_metrics(self, request: Request) -> Response:
        from starlette.responses import PlainTextResponse

        text = self.metrics.text(self.engines.values())
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    async def models(self, request: Request) -> Response:
        return _json({"object": "list", "data": list(map(self._card, self.engines.values()))})

    async def model(self, request: Request) -> Response:
        return _json(self._card(self._engine(request.path_params["name"])))

    async def embeddings(self, request: Request) -> Response:
        body = await _body(request, Embeddings)
        engine = self._engine(body.model)
        if self._embedding_requests >= MAX_EMBEDDING_REQUESTS:
            raise refusal_for(Busy(1))
        self._embedding_requests += 1
        data, tokens = [], 0
        try:
            prompts = await asyncio.to_thread(tokenized, body.input, engine.runtime)
            async with cancelled_on_disconnect(request.receive) as has_left, self._embedding_lock:
                for index, ids in enumerate(prompts):
                    if has_left.is_set():
                        raise client_left()
                    check_ids(ids, engine.runtime)
                    vector: Any = await asyncio.to_thread(engine.embed, ids)
                    if body.encoding_format == "base64":
                        vector = base64.b64encode(array.array("f", vector).tobytes()).decode()
                    data.append({"object": "embedding", "index": index, "embedding": vector})
                    tokens += len(ids)
        except NotImplementedError:
            problem = "this artifact's engine gives no embeddings"
            raise Refusal(501, problem, "not_implemented") from None
        except EdgeftError as error:
            raise refusal_for(error) from None
        finally:
            self._embedding_requests -= 1
            request.scope["edgeft.tokens"] = tokens, 0
        counts = {"prompt_tokens": tokens, "total_tokens": tokens}
        return _json({"object": "list", "data": data, "model": engine.name, "usage": counts})

    async def tokenize(self, request: Request) -> Response:
        body = await _body(request, Tokenize)
        engine = self._engine(body.model)
        try:
            ids = await asyncio.to_thread(engine.runtime.encode, body.content)
        except EdgeftError as error:
            raise refusal_for(error) from None
        return _json({"tokens": ids, "count": len(ids), "max_model_len": engine.runtime.context})

    async def detokenize(self, request: Request) -> Response:
        body = await _body(request, Detokenize)
        runtime = self._engine(body.model).runtime
        piece = getattr(runtime, "piece", None)
        if piece is None:
            raise Refusal(501, "this artifact's engine cannot do that", "not_implemented")
        if any(token >= runtime.vocab_size for token in body.tokens):
            raise Refusal(400, f"token ids are below {runtime.vocab_size}", "invalid_value")
        (text,) = await asyncio.to_thread(_texts, piece, [body.tokens])
        return _json({"content": text})

    async def chat(self, request: Request) -> Any:
        body = await _body(request, Chat)
        engine = self._engine(body.model)
        requests = await self._requests(chat_requests, body, engine)
        piece, form = getattr(engine.runtime, "piece", None), requests[0].form
        objects = ChatObjects(engine.name, piece, form, has_functions=bool(body.functions))
        if self.options.log_prompts:
            say(f"asked: {json.dumps([m.text for m in body.messages], ensure_ascii=False)}")
        return await self._answer(request, engine, body, _Reply(requests, 1, objects))

    async def completions(self, request: Request) -> Any:
        body = await _body(request, Completion)
        engine = self._engine(body.model)
        requests = await self._requests(completion_requests, body, engine)
        prompts = len(requests) // (body.n or 1)
        piece = getattr(engine.runtime, "piece", None)
        objects = CompletionObjects(engine.name, piece)
        echoed: list[str] = []
        if body.echo:
            if piece is None:
                raise Refusal(400, "the engine of this artifact has no echo", "invalid_value")
            ids = [one.prompt_ids for one in requests]
            echoed = await asyncio.to_thread(_texts, piece, ids)
        if self.options.log_prompts:
            say(f"asked: {json.dumps(body.prompt, ensure_ascii=False)}")
        return await self._answer(request, engine, body, _Reply(requests, prompts, objects, echoed))

    def _engine(self, name: str | None) -> Engine:
        if not name:
            return next(iter(self.engines.values()))
        if name not in self.engines:
            known = ", ".join(self.engines)
            raise Refusal(404, f"no model {name[:100]!r}; known: {known}", "model_not_found")
        return self.engines[name]

    def _card(self, engine: Engine) -> dict[str, Any]:
        return {
            "id": engine.name,
            "object": "model",
            "created": 0,
            "owned_by": "edgeft",
            "max_model_len": engine.runtime.context,
        }

    async def _requests(
        self, make: Callable[[B, Engine, int], list[GenerationRequest]], body: B, engine: Engine
    ) -> list[GenerationRequest]:
        limit = min(self.options.max_tokens or engine.runtime.context, engine.runtime.context)
        try:
            return await asyncio.to_thread(make, body, engine, limit)
        except EdgeftError as error:
            raise refusal_for(error) from None

    async def _answer(
        self, request: Request, engine: Engine, body: Generation, reply: _Reply
    ) -> Any:
        """Submit the jobs of a reply; its response, whole or streamed."""
        queue: Deltas = asyncio.Queue()

        def callback(index: int) -> Callback:
            return lambda delta: queue.put_nowait((index, delta))

        try:
            requests = await asyncio.to_thread(checked, reply.requests, engine)
            jobs = [Job(one, callback(index)) for index, one in enumerate(requests)]
            engine.submit(jobs)
        except EdgeftError as error:
            raise refusal_for(error) from None

        def on_end() -> None:
            for job in jobs:
                if job.first_token_s is not None:
                    self.metrics.first_token(job.first_token_s)
            new = sum(job.new_tokens for job in jobs)
            prompt = sum(len(job.request.prompt_ids) for job in jobs)
            request.scope["edgeft.tokens"] = prompt, new

        if not body.stream:
            try:
                deltas = await collected(request, jobs, queue)
            finally:
                on_end()
            return await asyncio.to_thread(
                whole_response, jobs, reply.prompts, reply.objects, deltas, reply.echoed
            )
        final_usage = None
        if body.stream_options and body.stream_options.include_usage:
            final_usage = functools.partial(usage, jobs, reply.prompts)
        stream = events(jobs, queue, reply.objects, reply.echoed, final_usage)
        return EventStream(stream, jobs, on_end)


@dataclass(frozen=True)
class _Reply:
    """What one HTTP request asks for."""

    requests: list[GenerationRequest]
    """the answers to the first prompt first, and so on"""
    prompts: int
    objects: CompletionObjects
    echoed: Sequence[str] = ()
    """text before each answer"""


def _texts(piece: Callable[[int], bytes], prompts: Sequence[Sequence[int]]) -> list[str]:
    return [b"".join(map(piece, ids)).decode("utf-8", "replace") for ids in prompts]


def _json(value: Any) -> Response:
    from starlette.responses import JSONResponse

    return JSONResponse(value)


async def _body(request: Request, schema: type[B]) -> B:
    """The request's JSON by its schema; Refusal for everything else."""
    from pydantic import ValidationError
    from starlette.requests import ClientDisconnect

    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise Refusal(415, "the Content-Type must be application/json", "unsupported_media_type")
    data = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for part in request.stream():
                data += part
                if len(data) > MAX_BODY_BYTES:
                    raise Refusal(
                        413, f"a body has {MAX_BODY_BYTES} bytes at most", "body_too_large"
                    )
    except TimeoutError:
        raise Refusal(408, "the body did not come", "timeout") from None
    except ClientDisconnect:
        raise client_left() from None
    try:
        body = schema.model_validate_json(bytes(data))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part)[:64] for part in first["loc"])
        problem = f"{where}: {first['msg']}" if where else first["msg"]
        raise Refusal(400, problem[:500], "invalid_value") from None
    if isinstance(body, Generation) and (name := unsupported_field(json.loads(data))):
        hint = f" ({INSTEAD[name]} is)" if name in INSTEAD else ""
        raise Refusal(400, f"{name} is not supported{hint}", "unsupported")
    return body
