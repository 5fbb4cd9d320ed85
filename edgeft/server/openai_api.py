"""What answers requests in OpenAI's form, as the other APIs of the server see it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from edgeft.server.embeddings import EmbeddingQueue
from edgeft.server.engine import Engine
from edgeft.server.jobs import GenerationRequest
from edgeft.server.schemas import Chat, Completion
from edgeft.server.shims.shim import Shim

if TYPE_CHECKING:
    from starlette.requests import Request


class OpenAIApi(Protocol):
    """`edgeft.server.api.Api`."""

    @property
    def engines(self) -> dict[str, Engine]:
        """name -> model"""

    @property
    def embedding_queue(self) -> EmbeddingQueue:
        """What gives vectors of texts."""

    def engine_of(self, name: str | None) -> Engine:
        """Refusal for a name that no model has."""

    async def generation_requests(
        self, body: Chat | Completion, engine: Engine
    ) -> list[GenerationRequest]:
        """What the engine is asked; Refusal for what it cannot do."""

    async def answer(self, request: Request, body: Chat | Completion, shim: Shim | None) -> Any:
        """The response, in the form of the shim."""
