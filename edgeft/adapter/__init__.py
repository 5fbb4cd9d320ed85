"""A peft adapter folder -> the delta of every weight of its base (the Adapter noun)."""

from edgeft.adapter.config import CHANGED_CONFIG_KEYS, adapter_manifest, read_adapter_config
from edgeft.adapter.deltas import WeightDelta
from edgeft.adapter.read import Weighted, read_adapters
from edgeft.adapter.tokenizer import tokenizer_files, tokenizer_folder

__all__ = [
    "CHANGED_CONFIG_KEYS",
    "WeightDelta",
    "Weighted",
    "adapter_manifest",
    "read_adapter_config",
    "read_adapters",
    "tokenizer_files",
    "tokenizer_folder",
]
