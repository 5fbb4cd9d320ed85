"""What an artifact tells about itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgeft.server.model_facts import model_facts
from edgeft.weights import gguf_reader


def test_facts_of_a_gguf_file(artifacts: dict[str, Path]) -> None:
    facts = model_facts(artifacts["q8_0"])
    header = gguf_reader.read(artifacts["q8_0"])
    assert (facts.file, facts.format, facts.quantization) == ("q8_0.gguf", "gguf", "Q8_0")
    assert facts.architecture == "llama"
    assert facts.training_context == header.meta["llama.context_length"]
    assert facts.parameters == sum(tensor.count for tensor in header.tensors.values())
    assert facts.size == artifacts["q8_0"].stat().st_size
    assert not any(isinstance(value, list) for value in facts.metadata.values())
    assert "tokenizer.chat_template" not in facts.metadata


def test_facts_of_a_folder(tiny_base: Path) -> None:
    facts = model_facts(tiny_base)
    assert facts.format == "hf" and facts.architecture == "llama" and not facts.metadata
    assert facts.size > 10_000 and facts.training_context > 0


@pytest.mark.parametrize("change", [{"size": 1}, {"modified": 1}, {"file": "other"}])
def test_a_fingerprint_changes_with_the_artifact(
    artifacts: dict[str, Path], change: dict[str, object]
) -> None:
    facts = model_facts(artifacts["f32"])
    assert facts.fingerprint == model_facts(artifacts["f32"]).fingerprint
    assert facts.fingerprint != replace(facts, **change).fingerprint  # type: ignore[arg-type]
