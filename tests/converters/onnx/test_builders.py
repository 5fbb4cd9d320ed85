"""Configurations that no graph computes are refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from edgeft.converters.onnx.builders import builder_class
from edgeft.errors import FormatError
from helpers.families import SMALL


@pytest.mark.parametrize(
    ("config", "changes", "says"),
    [
        ("Llama", {"head_dim": 12}, "no heads of 12 columns"),
        ("Llama", {"architectures": ["NoSuchForCausalLM"]}, "builder has no NoSuchForCausalLM"),
        ("Llama", {"rope_parameters": {
            "rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "rope of the type 'dynamic'"),
        ("Llama", {"hidden_act": "relu6"}, "does not compute 'relu6'"),
        ("Mixtral", {"hidden_act": "gelu"}, "does not compute 'gelu'"),
        ("Gemma", {"use_bidirectional_attention": True}, "does not look ahead"),
    ],
)  # fmt: skip
def test_unsupported_setting_is_named(config: str, changes: dict[str, Any], says: str) -> None:
    import transformers

    options = SMALL | {"architectures": [f"{config}ForCausalLM"]} | changes
    with pytest.raises(FormatError, match=says) as refused:
        builder_class(getattr(transformers, f"{config}Config")(**options))
    assert "gguf" in refused.value.hint
