"""Takes requests of other APIs than OpenAI's first two, gives their answers by the shims.

/v1/responses, Anthropic's /v1/messages and Ollama's /api: each request becomes one of chat completions.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from edgeft.server.bodies import checked, read_body
from edgeft.server.openai_api import OpenAIApi
from edgeft.server.responses import Refusal, json_response
from edgeft.server.schemas import Chat, Completion, Embeddings
from edgeft.server.shims import anthropic, ollama
from edgeft.server.shims.responses_api import Responses, ResponsesShim
from edgeft.server.shims.shim import Shim, unsupported
from edgeft.server.shims.stored_responses import StoredResponses

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route


class OtherApis:
    def __init__(self, api: OpenAIApi) -> None:
        self._api = api
        self._stored = StoredResponses()

    def routes(self) -> list[Route]:
        from starlette.routing import Route

        post = {
            "/v1/responses": self.responses,
            "/responses": self.responses,
            "/v1/responses/input_tokens": self.response_tokens,
            "/v1/messages": self.messages,
            "/v1/messages/count_tokens": self.count_tokens,
            "/api/chat": self.ollama_chat,
            "/api/generate": self.ollama_generate,
            "/api/show": self.ollama_show,
            "/api/embed": self.ollama_embed,
        }
        get = {"/api/tags": self.ollama_tags, "/api/version": self.ollama_version}
        return [
            Route("/v1/responses/{id}", self.stored_response, methods=["GET", "DELETE"]),
            *(Route(path, endpoint, methods=["POST"]) for path, endpoint in post.items()),
            *(Route(path, endpoint, methods=["GET"]) for path, endpoint in get.items()),
        ]

    async def responses(self, request: Request) -> Any:
        shim = ResponsesShim(await read_body(request, Responses), self._stored)
        return await self._translated(request, shim)

    async def stored_response(self, request: Request) -> Response:
        """An earlier answer, read or deleted."""
        response_id = request.path_params["id"]
        if request.query_params.get("stream") == "true":
            raise unsupported("the stream of an earlier response")
        if request.method == "DELETE":
            response = {"id": response_id, "object": "response", "deleted": True}
            found = self._stored.delete(response_id)
        else:
            response = self._stored.response(response_id) or {}
            found = bool(response)
        if not found:
            message = f"no response {response_id[:64]!r}: unknown, or forgotten"
            raise Refusal(404, message, "not_found")
        return json_response(response)

    async def response_tokens(self, request: Request) -> Response:
        shim = ResponsesShim(await read_body(request, Responses), self._stored)
        tokens = await self._prompt_tokens(shim)
        return json_response({"object": "response.input_tokens", "input_tokens": tokens})

    async def messages(self, request: Request) -> Any:
        shim = anthropic.AnthropicShim(await read_body(request, anthropic.Messages))
        return await self._translated(request, shim)

    async def count_tokens(self, request: Request) -> Response:
        shim = anthropic.AnthropicShim(await read_body(request, anthropic.CountTokens))
        return json_response({"input_tokens": await self._prompt_tokens(shim)})

    async def ollama_chat(self, request: Request) -> Any:
        return await self._ollama(request, await read_body(request, ollama.Chat))

    async def ollama_generate(self, request: Request) -> Any:
        return await self._ollama(request, await read_body(request, ollama.Generate))

    async def ollama_embed(self, request: Request) -> Response:
        body = await read_body(request, ollama.Embed)
        engine = self._api.engine_of(body.model.removesuffix(":latest"))
        asked = checked({"input": body.input, "dimensions": body.dimensions}, Embeddings)
        started = time.perf_counter()
        truncate = body.truncate is not False
        data, tokens = await self._api.embedding_queue.vectors(request, engine, asked, truncate)
        answer = ollama.embedded(body, data, tokens, time.perf_counter() - started)
        return await asyncio.to_thread(json_response, answer)

    async def ollama_tags(self, request: Request) -> Response:
        return json_response(ollama.tags(list(self._api.engines.values())))

    async def ollama_show(self, request: Request) -> Response:
        body = await read_body(request, ollama.Show)
        name = body.model or body.name or ""
        return json_response(ollama.show(self._api.engine_of(name.removesuffix(":latest"))))

    async def ollama_version(self, request: Request) -> Response:
        return json_response(ollama.version())

    async def _ollama(self, request: Request, body: ollama.Chat | ollama.Generate) -> Any:
        shim = ollama.OllamaShim(body)
        if ollama.is_load(body):
            self._api.engine_of(shim.openai["model"])
            return json_response(ollama.loaded(body))
        return await self._translated(request, shim)

    async def _prompt_tokens(self, shim: Shim) -> int:
        body = self._body(shim)
        (one,) = await self._api.generation_requests(body, self._api.engine_of(body.model))
        return len(one.prompt_ids)

    async def _translated(self, request: Request, shim: Shim) -> Any:
        return await self._api.answer(request, self._body(shim), shim)

    def _body(self, shim: Shim) -> Chat | Completion:
        """Of OpenAI's API; a template that can be told whether to think is told it."""
        if shim.path == "/v1/completions":
            return checked(shim.openai, Completion)
        body = checked(shim.openai, Chat)
        template = self._api.engine_of(body.model).runtime.chat.source
        if shim.thinking is not None and "enable_thinking" in template:
            kwargs = {"enable_thinking": shim.thinking} | (body.chat_template_kwargs or {})
            body = body.model_copy(update={"chat_template_kwargs": kwargs})
        return body


def error_form(path: str, message: str, status: int) -> dict[str, Any] | None:
    """The body of an error in the form of the API that a path is of; None = OpenAI's."""
    if path.startswith("/v1/messages"):
        return anthropic.error_body(message, status)
    return ollama.error_body(message) if path.startswith("/api/") else None
