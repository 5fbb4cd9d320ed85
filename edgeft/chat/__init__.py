"""A conversation with an artifact, in a terminal."""

from edgeft.chat.conversation import Conversation
from edgeft.chat.engine_client import answering

__all__ = ["Conversation", "answering"]
