"""A peft adapter folder -> the change of every weight (the Adapter noun)."""

from edgeft.adapter.config import adapter_manifest, read_adapter_config
from edgeft.adapter.deltas import Change
from edgeft.adapter.read import Weighted, read_adapters
from edgeft.adapter.tokenizer import tokenizer_folder

__all__ = [
    "Change",
    "Weighted",
    "adapter_manifest",
    "read_adapter_config",
    "read_adapters",
    "tokenizer_folder",
]
