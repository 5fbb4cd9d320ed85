"""The endpoints: read, check, ask the engine, answer.

    app = Api([engine], Options()).app()

Everything that is wrong with a request is 4xx with OpenAI's error body; 429 where the queue is full.
"""

from __future__ import annotations

import array
import asyncio
import base64
import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from edgeft.errors import EdgeftError
from edgeft.progress import say
from edgeft.server import ask
from edgeft.server.delivery import Refusal, Stream, chunks, gather, left, refusal, watched, whole
from edgeft.server.engine import Engine
from edgeft.server.jobs import Busy, Event, Want
from edgeft.server.metrics import Log, Metrics, memory
from edgeft.server.replies import ChatShape, Shape, usage
from edgeft.server.schemas import (
    BODY,
    Body,
    Chat,
    Completion,
    Detokenize,
    Embeddings,
    Generation,
    Tokenize,
    refuse_unsupported,
)
from edgeft.web.content_policy import content_policy
from edgeft.web.guard import App, Guard, Rules, error_body

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

PAGE = Path(__file__).with_name("page.html")
PATIENCE = 30.0
"""seconds for a body to come"""
EMBEDDING = 16
"""requests for embeddings that may wait for one another; more are answered with 429"""
B = TypeVar("B", bound=Body)


@dataclass(frozen=True)
class Options:
    rules: Rules = field(default_factory=Rules)
    max_tokens: int | None = None
    """of an answer; None = the context"""
    log_prompts: bool = False
    quiet: bool = False


class Api:
    def __init__(self, engines: Sequence[Engine], options: Options) -> None:
        self.engines = {engine.name: engine for engine in engines}
        self.options = options
        self.metrics = Metrics()
        self._embedding = 0
        """requests for embeddings that were begun"""
        self._one_embeds = asyncio.Lock()

    def app(self) -> App:
        from starlette.applications import Starlette
        from starlette.exceptions import HTTPException
        from starlette.responses import JSONResponse
        from starlette.routing import Route

        async def refused(request: Request, error: Any) -> Response:
            headers = {"retry-after": str(error.retry)} if error.retry else {}
            if error.status in (408, 413):  # what is still on its way is not read
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
            Route("/metrics", self.tell_metrics, methods=get),
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

        page = PAGE.read_bytes()
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

    async def tell_metrics(self, request: Request) -> Response:
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
        if self._embedding >= EMBEDDING:
            raise refusal(Busy(1))
        self._embedding += 1
        data, tokens = [], 0
        try:
            prompts = await asyncio.to_thread(ask.prompts_of, body.input, engine.runtime)
            async with watched(request.receive) as gone, self._one_embeds:
                for index, ids in enumerate(prompts):
                    if gone.is_set():
                        raise left()
                    ask.check_ids(ids, engine.runtime)
                    vector: Any = await asyncio.to_thread(engine.embed, ids)
                    if body.encoding_format == "base64":
                        vector = base64.b64encode(array.array("f", vector).tobytes()).decode()
                    data.append({"object": "embedding", "index": index, "embedding": vector})
                    tokens += len(ids)
        except NotImplementedError:
            told = "this artifact's engine gives no embeddings"
            raise Refusal(501, told, "not_implemented") from None
        except EdgeftError as error:
            raise refusal(error) from None
        finally:
            self._embedding -= 1
        used = {"prompt_tokens": tokens, "total_tokens": tokens}
        return _json({"object": "list", "data": data, "model": engine.name, "usage": used})

    async def tokenize(self, request: Request) -> Response:
        body = await _body(request, Tokenize)
        engine = self._engine(body.model)
        try:
            ids = await asyncio.to_thread(engine.runtime.encode, body.content)
        except EdgeftError as error:
            raise refusal(error) from None
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
        wants = await self._wants(ask.chat, body, engine)
        shape = ChatShape(engine.name, getattr(engine.runtime, "piece", None))
        if self.options.log_prompts:
            say(f"asked: {json.dumps([m.text for m in body.messages], ensure_ascii=False)}")
        return await self._answer(request, engine, body, wants, 1, shape)

    async def completions(self, request: Request) -> Any:
        body = await _body(request, Completion)
        engine = self._engine(body.model)
        wants = await self._wants(ask.completion, body, engine)
        prompts = len(wants) // (body.n or 1)
        piece = getattr(engine.runtime, "piece", None)
        shape = Shape(engine.name, piece)
        echoed: list[str] = []
        if body.echo:
            if piece is None:
                raise Refusal(400, "the engine of this artifact has no echo", "invalid_value")
            echoed = await asyncio.to_thread(_texts, piece, [want.ids for want in wants])
        if self.options.log_prompts:
            say(f"asked: {json.dumps(body.prompt, ensure_ascii=False)}")
        return await self._answer(request, engine, body, wants, prompts, shape, echoed)

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

    async def _wants(
        self, make: Callable[[B, Engine, int], list[Want]], body: B, engine: Engine
    ) -> list[Want]:
        limit = min(self.options.max_tokens or engine.runtime.context, engine.runtime.context)
        try:
            return await asyncio.to_thread(make, body, engine, limit)
        except EdgeftError as error:
            raise refusal(error) from None

    async def _answer(
        self,
        request: Request,
        engine: Engine,
        body: Generation,
        wants: list[Want],
        prompts: int,
        shape: Shape,
        echoed: Sequence[str] = (),
    ) -> Any:
        queue: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()

        def sink(index: int) -> Callable[[Event], None]:
            return lambda event: queue.put_nowait((index, event))

        jobs = ask.jobs(wants, sink)
        try:
            if wants[0].sampling.grammar:
                await asyncio.to_thread(engine.check, jobs[0])
            engine.submit(jobs)
        except EdgeftError as error:
            raise refusal(error) from None

        def finished() -> None:
            for job in jobs:
                if job.first is not None:
                    self.metrics.first_token(job.first)
            new, prompt = sum(job.new for job in jobs), sum(len(job.want.ids) for job in jobs)
            request.scope["edgeft"] = f", {prompt} + {new} tokens"

        if not body.stream:
            events = await gather(request, jobs, queue)
            finished()
            return await asyncio.to_thread(whole, jobs, prompts, shape, events, echoed)
        options = body.stream_options
        use = functools.partial(usage, jobs, prompts) if options and options.include_usage else None
        return Stream(chunks(jobs, queue, shape, echoed, use), jobs, finished)


def _texts(piece: Callable[[int], bytes], prompts: Sequence[Sequence[int]]) -> list[str]:
    return [b"".join(map(piece, ids)).decode("utf-8", "replace") for ids in prompts]


def _json(value: Any) -> Response:
    from starlette.responses import JSONResponse

    return JSONResponse(value)


async def _body(request: Request, kind: type[B]) -> B:
    """The request's JSON as what it must be; Refusal for all else."""
    from pydantic import ValidationError
    from starlette.requests import ClientDisconnect

    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given != "application/json":
        raise Refusal(415, "the Content-Type must be application/json", "unsupported_media_type")
    data = bytearray()
    try:
        async with asyncio.timeout(PATIENCE):
            async for part in request.stream():
                data += part
                if len(data) > BODY:
                    raise Refusal(413, f"a body has {BODY} bytes at most", "body_too_large")
    except TimeoutError:
        raise Refusal(408, "the body did not come", "timeout") from None
    except ClientDisconnect:
        raise left() from None
    try:
        body = kind.model_validate_json(bytes(data))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part)[:64] for part in first["loc"])
        told = f"{where}: {first['msg']}" if where else first["msg"]
        raise Refusal(400, told[:500], "invalid_value") from None
    if isinstance(body, Generation):
        raw = json.loads(data)
        if name := refuse_unsupported(raw):
            raise Refusal(400, f"{name} is not supported", "unsupported")
    return body
