"""Tokenizer files -> chat template, vocabulary and encoder."""

from edgeft.tokenizer.chat_template import ChatTemplate, spans
from edgeft.tokenizer.hf_files import encoder, eos_ids, load_tokenizer, special_tokens
from edgeft.tokenizer.sentencepiece import SentencePiece
from edgeft.tokenizer.template_lock import check_as_made

__all__ = [
    "ChatTemplate",
    "SentencePiece",
    "check_as_made",
    "encoder",
    "eos_ids",
    "load_tokenizer",
    "spans",
    "special_tokens",
]
