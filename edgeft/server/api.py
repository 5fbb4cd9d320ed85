"""Takes engines, gives the ASGI application of the endpoints.

    app = Api([engine], ApiOptions()).app()

A wrong request is answered with 4xx and OpenAI's error body, with 429 where the queue is full.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgeft import __version__
from edgeft.errors import EdgeftError
from edgeft.progress import say
from edgeft.server.bodies import read_body
from edgeft.server.chat_page import chat_page
from edgeft.server.embeddings import EmbeddingQueue
from edgeft.server.engine import Engine
from edgeft.server.jobs import Callback, GenerationRequest, Job
from edgeft.server.keys import Keys
from edgeft.server.metrics import Log, Metrics, memory
from edgeft.server.openai_objects import ChatObjects, CompletionObjects
from edgeft.server.other_apis import OtherApis, error_form
from edgeft.server.prompt_api import PromptApi, texts_of
from edgeft.server.requests import (
    chat_requests,
    checked,
    completion_requests,
)
from edgeft.server.responses import (
    Deltas,
    EventStream,
    Refusal,
    chunks,
    collected,
    json_response,
    refusal_for,
    server_sent,
    whole_answer,
)
from edgeft.server.schemas import (
    Chat,
    Completion,
    Embeddings,
    Generation,
    StreamOptions,
)
from edgeft.server.shims.answer import Answer
from edgeft.server.shims.shim import Shim
from edgeft.web.content_policy import content_policy
from edgeft.web.guard import App, Guard, Rules, error_body

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response


@dataclass(frozen=True)
class ApiOptions:
    rules: Rules = field(default_factory=Rules)
    max_tokens: int | None = None
    """of an answer; None = the context"""
    log_prompts: bool = False
    quiet: bool = False
    aliases: Mapping[str, str] = field(default_factory=dict)
    """other name -> name of the model; * = every other name"""


class Api:
    def __init__(
        self, engines: Sequence[Engine], options: ApiOptions, keys: Keys | None = None
    ) -> None:
        """`engines`: looked at for every request, since a reload exchanges them."""
        self._opened = engines
        self.options = options
        self.metrics = Metrics(keys)
        self.embedding_queue = EmbeddingQueue()

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
            body = error_form(request.url.path, error.message, error.status) or error.body
            return JSONResponse(body, error.status, headers)

        async def unknown(request: Request, error: Any) -> Response:
            path, status = request.url.path, error.status_code
            problem = f"{error.detail}: {request.method} {path}"
            body = error_form(path, problem, status) or error_body(problem, "not_found")
            return JSONResponse(body, status, error.headers)

        async def defect(request: Request, error: Any) -> Response:
            say(f"error: {type(error).__name__}: {error}")
            return JSONResponse(error_body("the server failed", "defect", "server_error"), 500)

        post, get = ["POST"], ["GET"]
        routes = [
            Route("/", self.page, methods=get),
            Route("/health", self.health, methods=get),
            Route("/metrics", self.show_metrics, methods=get),
            Route("/props", self.props, methods=get),
            Route("/v1/models", self.models, methods=get),
            Route("/v1/models/{name:path}", self.model, methods=get),
            Route("/v1/chat/completions", self.chat, methods=post),
            Route("/v1/completions", self.completions, methods=post),
            Route("/v1/embeddings", self.embeddings, methods=post),
            # For a base URL without /v1, as llama-server has it.
            Route("/models", self.models, methods=get),
            Route("/chat/completions", self.chat, methods=post),
            *PromptApi(self).routes(),
            *OtherApis(self).routes(),
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
        return json_response({
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
        names = [*self.engines, *(name for name in self.options.aliases if name != "*")]
        return json_response({"object": "list", "data": list(map(self._card, names))})

    async def model(self, request: Request) -> Response:
        return json_response(self._card(request.path_params["name"]))

    async def props(self, request: Request) -> Response:
        """Facts of the first model, or of `model` in the query, as llama-server names them."""
        engine = self.engine_of(request.query_params.get("model"))
        chat, facts = engine.runtime.chat, engine.facts
        return json_response({
            "default_generation_settings": {
                "n_ctx": engine.runtime.context,
                "params": {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": -1},
            },
            "total_slots": engine.slots,
            "model_alias": engine.name,
            "model_path": facts.file,
            "chat_template": chat.source,
            "bos_token": chat.bos_token,
            "eos_token": chat.eos_token,
            "modalities": {"vision": False, "audio": False},
            "build_info": f"edgeft {__version__}",
        })  # fmt: skip

    async def embeddings(self, request: Request) -> Response:
        body = await read_body(request, Embeddings)
        engine = self.engine_of(body.model)
        data, tokens = await self.embedding_queue.vectors(request, engine, body)
        counts = {"prompt_tokens": tokens, "total_tokens": tokens}
        answer = {"object": "list", "data": data, "model": engine.name, "usage": counts}
        return await asyncio.to_thread(json_response, answer)

    async def chat(self, request: Request) -> Any:
        return await self.answer(request, await read_body(request, Chat))

    async def completions(self, request: Request) -> Any:
        return await self.answer(request, await read_body(request, Completion))

    async def answer(
        self, request: Request, body: Chat | Completion, shim: Shim | None = None
    ) -> Any:
        """The response to a request, in OpenAI's form or in that of `shim`."""
        engine = self.engine_of(body.model)
        requests = await self.generation_requests(body, engine)
        piece = getattr(engine.runtime, "piece", None)
        common = engine.name, piece, engine.facts.fingerprint
        objects = CompletionObjects(*common)
        if isinstance(body, Chat):
            objects = ChatObjects(*common, requests[0].form, bool(body.functions))
        echoed: list[str] = []
        if isinstance(body, Completion) and body.echo:
            if piece is None:
                raise Refusal(400, "the engine of this artifact has no echo", "invalid_value")
            ids = [one.prompt_ids for one in requests]
            echoed = await asyncio.to_thread(texts_of, piece, ids)
        if self.options.log_prompts:
            asked = [m.text for m in body.messages] if isinstance(body, Chat) else body.prompt
            say(f"asked: {json.dumps(asked, ensure_ascii=False)}")
        reply = _Reply(requests, len(requests) // (body.n or 1), objects, echoed)
        return await self._respond(request, engine, body, reply, shim)

    async def generation_requests(
        self, body: Chat | Completion, engine: Engine
    ) -> list[GenerationRequest]:
        """What the engine is asked; Refusal for what it cannot do."""
        limit = min(self.options.max_tokens or engine.runtime.context, engine.runtime.context)
        try:
            if isinstance(body, Chat):
                return await asyncio.to_thread(chat_requests, body, engine, limit)
            return await asyncio.to_thread(completion_requests, body, engine, limit)
        except EdgeftError as error:
            raise refusal_for(error) from None

    def engine_of(self, name: str | None) -> Engine:
        """By a name in a request; the first model where there is none."""
        if not name:
            return next(iter(self.engines.values()))
        aliases = self.options.aliases
        if engine := self.engines.get(aliases.get(name, name)) or self.engines.get(
            aliases.get("*", "")
        ):
            return engine
        known = ", ".join([*self.engines, *aliases])
        hint = "edgeft serve --alias NAME=MODEL gives one another name"
        raise Refusal(404, f"no model {name[:100]!r}; known: {known} ({hint})", "model_not_found")

    def _card(self, name: str) -> dict[str, Any]:
        engine = self.engine_of(name)
        return {
            "id": name,
            "object": "model",
            "created": engine.facts.modified,
            "owned_by": "edgeft",
            "max_model_len": engine.runtime.context,
        }

    async def _respond(
        self,
        request: Request,
        engine: Engine,
        body: Generation,
        reply: _Reply,
        shim: Shim | None,
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
            whole = await asyncio.to_thread(
                whole_answer, jobs, reply.prompts, reply.objects, deltas, reply.echoed
            )
            return await asyncio.to_thread(
                json_response, shim.whole(Answer.of(whole)) if shim else whole
            )
        options = body.stream_options or StreamOptions()
        batches = chunks(
            jobs, queue, reply.objects, reply.echoed, reply.prompts, options,
            has_timings=bool(body.timings_per_token),
        )  # fmt: skip
        if shim:
            return EventStream(shim.encoded(batches), jobs, on_end, shim.media_type)
        return EventStream(server_sent(batches), jobs, on_end)


@dataclass(frozen=True)
class _Reply:
    """What one HTTP request asks for."""

    requests: list[GenerationRequest]
    """the answers to the first prompt first, and so on"""
    prompts: int
    objects: CompletionObjects
    echoed: Sequence[str] = ()
    """text before each answer"""
