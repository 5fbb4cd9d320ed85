"""transformers' configuration -> the graph builder's class for its architecture.

    builder = builder_class(config)         # FormatError for a model that no graph computes

The classes import torch and onnxruntime_genai, and so are imported only when one is asked for.
"""

from __future__ import annotations

from typing import Any

from edgeft.converters.onnx.model_config import HINT, architecture, check_config
from edgeft.errors import FormatError


def builder_class(config: Any) -> Any:
    """A subclass of `edgeft.converters.onnx.decoder.Decoder`."""
    from edgeft.converters.onnx.families import BUILDERS

    name = architecture(config)
    if name not in BUILDERS:
        raise FormatError(f"onnxruntime-genai's builder has no {name}", HINT)
    check_config(config)
    return BUILDERS[name]
