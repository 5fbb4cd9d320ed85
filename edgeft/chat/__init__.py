"""An artifact -> a conversation with it, in a terminal (`run_chat`) or in Python (`Conversation`)."""

from edgeft.chat.conversation import Conversation
from edgeft.chat.engine_client import open_model
from edgeft.chat.options import ChatOptions
from edgeft.chat.terminal import run_chat

__all__ = ["ChatOptions", "Conversation", "open_model", "run_chat"]
