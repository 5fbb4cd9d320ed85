"""Takes requests about prompts, gives their text, their tokens and how many these are.

/tokenize, /detokenize and /apply-template are llama-server's; .../input_tokens is OpenAI's count for
/v1/responses, which llama-server has for chats, too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from edgeft.errors import EdgeftError
from edgeft.runtimes.protocol import Runtime
from edgeft.server.bodies import read_body
from edgeft.server.openai_api import OpenAIApi
from edgeft.server.requests import chat_prompt, with_bos
from edgeft.server.responses import Refusal, json_response, refusal_for
from edgeft.server.schemas import Chat, Detokenize, Tokenize

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route


class PromptApi:
    def __init__(self, api: OpenAIApi) -> None:
        self._api = api

    def routes(self) -> list[Route]:
        from starlette.routing import Route

        endpoints = {
            "/tokenize": self.tokenize,
            "/detokenize": self.detokenize,
            "/apply-template": self.apply_template,
            "/v1/chat/completions/input_tokens": self.chat_tokens,
            "/chat/completions/input_tokens": self.chat_tokens,
        }
        return [Route(path, endpoint, methods=["POST"]) for path, endpoint in endpoints.items()]

    async def tokenize(self, request: Request) -> Response:
        body = await read_body(request, Tokenize)
        runtime = self._api.engine_of(body.model).runtime
        if body.parse_special is False:
            problem = "parse_special: false is not supported: special tokens are always read"
            raise Refusal(400, problem, "unsupported")

        def tokens() -> list[Any]:
            ids = runtime.encode(body.content)
            ids = with_bos(ids, runtime) if body.add_special else ids
            if not body.with_pieces:
                return ids
            return [{"id": token, "piece": _piece(token, runtime)} for token in ids]

        try:
            made = await asyncio.to_thread(tokens)
        except EdgeftError as error:
            raise refusal_for(error) from None
        counts = {"count": len(made), "max_model_len": runtime.context}
        return json_response({"tokens": made, **counts})

    async def detokenize(self, request: Request) -> Response:
        body = await read_body(request, Detokenize)
        runtime = self._api.engine_of(body.model).runtime
        piece = _pieces(runtime)
        if any(token >= runtime.vocab_size for token in body.tokens):
            raise Refusal(400, f"token ids are below {runtime.vocab_size}", "invalid_value")
        (text,) = await asyncio.to_thread(texts_of, piece, [body.tokens])
        return json_response({"content": text})

    async def apply_template(self, request: Request) -> Response:
        """The prompt of a chat, which is not answered."""
        body = await read_body(request, Chat)
        chat = self._api.engine_of(body.model).runtime.chat
        try:
            return json_response({"prompt": await asyncio.to_thread(chat_prompt, body, chat)})
        except EdgeftError as error:
            raise refusal_for(error) from None

    async def chat_tokens(self, request: Request) -> Response:
        """How many tokens the prompt of a chat has."""
        body = await read_body(request, Chat)
        asked = await self._api.generation_requests(body, self._api.engine_of(body.model))
        return json_response({"input_tokens": len(asked[0].prompt_ids)})


def texts_of(piece: Callable[[int], bytes], prompts: Sequence[Sequence[int]]) -> list[str]:
    """`piece`: id of a token -> its bytes."""
    return [b"".join(map(piece, ids)).decode("utf-8", "replace") for ids in prompts]


def _pieces(runtime: Runtime) -> Callable[[int], bytes]:
    """Token id -> its bytes; Refusal where the engine gives none."""
    piece: Callable[[int], bytes] | None = getattr(runtime, "piece", None)
    if piece is None:
        raise Refusal(501, "this artifact's engine cannot do that", "not_implemented")
    return piece


def _piece(token: int, runtime: Runtime) -> str | list[int]:
    """The text of a token; its bytes where they are a part of a character, as llama-server has it."""
    data = _pieces(runtime)(token)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return list(data)
