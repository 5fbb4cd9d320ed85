"""A mixture of experts in 4 bits: types and bytes are llama-quantize's, and llama.cpp runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_families import MOE, TEXT, Tiny, make_tiny
from test_ggml import llama_quantize, read

from edgeft.converters import gguf
from edgeft.merge import open_merged
from edgeft.runtimes.gguf import GGUFRuntime

WIDE: dict[str, Any] = {
    "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 8,
    "num_key_value_heads": 2, "num_experts_per_tok": 2, "max_position_embeddings": 256,
}  # fmt: skip
CASES = {
    # llama.cpp has its own mixture for 8 experts
    "mixtral": Tiny("MixtralConfig", WIDE | {"num_local_experts": 8}, MOE, std=0.05),
    "qwen2_moe": Tiny("Qwen2MoeConfig", WIDE | {
        "num_experts": 4, "moe_intermediate_size": 256, "shared_expert_intermediate_size": 512,
    }, MOE, std=0.05),
    # a width of 128 has no blocks of 256
    "qwen3_moe": Tiny("Qwen3MoeConfig", WIDE | {
        "num_experts": 4, "moe_intermediate_size": 128, "norm_topk_prob": True}, MOE, std=0.05),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_q4_k_m_of_experts(case: str, tmp_path: Path) -> None:
    base, adapter, _ = make_tiny(tmp_path, CASES[case])
    for quant in ("f32", "q4_k_m"):
        merged = open_merged(base, adapter)
        gguf.convert(merged, tmp_path / f"{quant}.gguf", quant, threads=1)
        assert merged.proof().faithful
    assert llama_quantize(tmp_path / "f32.gguf", tmp_path / "oracle.gguf", "q4_k_m")
    (_, ours), (_, theirs) = read(tmp_path / "q4_k_m.gguf"), read(tmp_path / "oracle.gguf")
    for name, (kind, data) in theirs.items():
        assert ours[name][0] == kind, name
        assert ours[name][1] == data, name
    assert ours.keys() == theirs.keys()
    logits = []
    for quant in ("f32", "q4_k_m"):
        with GGUFRuntime(tmp_path / f"{quant}.gguf", context=128, threads=1) as model:
            logits.append(model.logits(model.encode(TEXT)))
    # rounding sends some tokens to other experts
    assert np.corrcoef(logits[0].ravel(), logits[1].ravel())[0, 1] > 0.9
