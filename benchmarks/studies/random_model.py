"""A shape -> a Qwen2 folder with random weights, its tokenizer, and a random LoRA adapter."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgeft.weights.checkpoint import Array, Spec, write_safetensors

SHAPES: dict[str, dict[str, int]] = {
    "qwen2-tiny": {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
                   "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512},
    "qwen2-0.5b": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
                   "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936},
    "qwen2-1.5b": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
                   "num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 151936},
}  # fmt: skip
"""a tiny shape, and real shapes of Qwen2 (https://huggingface.co/Qwen/Qwen2-0.5B/blob/main/config.json)"""

LORA_RANK = 16
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def size(path: Path) -> int:
    """Bytes of a model file, or of the model files in a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(p.stat().st_size for p in path.iterdir() if p.suffix in (".safetensors", ".gguf"))


def make_model(work: Path, shape: dict[str, int], seed: int = 0) -> None:
    """Write `work/base` (bfloat16) and `work/adapter`, streamed: without torch and with little memory."""
    base, adapter = work / "base", work / "adapter"
    base.mkdir(parents=True)
    adapter.mkdir()
    draw = np.random.default_rng(seed)
    hidden, ffn = shape["hidden_size"], shape["intermediate_size"]
    head = hidden // shape["num_attention_heads"]
    kv = head * shape["num_key_value_heads"]
    widths = {"q_proj": (hidden, hidden), "k_proj": (kv, hidden), "v_proj": (kv, hidden),
              "o_proj": (hidden, hidden), "gate_proj": (ffn, hidden), "up_proj": (ffn, hidden),
              "down_proj": (hidden, ffn)}  # fmt: skip
    weights: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (shape["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    deltas: dict[str, tuple[int, ...]] = {}
    for i in range(shape["num_hidden_layers"]):
        for name, (rows, columns) in widths.items():
            block = "self_attn" if name in ("q_proj", "k_proj", "v_proj", "o_proj") else "mlp"
            module = f"model.layers.{i}.{block}.{name}"
            weights[f"{module}.weight"] = (rows, columns)
            if name in ("q_proj", "k_proj", "v_proj"):
                weights[f"{module}.bias"] = (rows,)
            deltas[f"base_model.model.{module}.lora_A.weight"] = (LORA_RANK, columns)
            deltas[f"base_model.model.{module}.lora_B.weight"] = (rows, LORA_RANK)
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"model.layers.{i}.{name}.weight"] = (hidden,)

    def values(sizes: tuple[int, ...]) -> Iterator[Array]:
        step = max(1, (1 << 22) // math.prod(sizes[1:]))
        for start in range(0, sizes[0], step):
            rows = min(step, sizes[0] - start)
            yield draw.standard_normal((rows, *sizes[1:]), np.float32) * np.float32(0.02)

    for folder, name, tensors, dtype in (
        (base, "model.safetensors", weights, "BF16"),
        (adapter, "adapter_model.safetensors", deltas, "F32"),
    ):
        specs = [Spec(key, dtype, sizes) for key, sizes in tensors.items()]
        write_safetensors(folder / name, specs, map(values, tensors.values()))
    config = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", **shape,
              "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
              "tie_word_embeddings": True, "torch_dtype": "bfloat16", "hidden_act": "silu",
              "eos_token_id": 0, "bos_token_id": 0}  # fmt: skip
    _json(base / "config.json", config)
    _json(adapter / "adapter_config.json", {
        "peft_type": "LORA", "r": LORA_RANK, "lora_alpha": 2 * LORA_RANK, "target_modules": list(TARGETS),
        "base_model_name_or_path": str(base), "task_type": "CAUSAL_LM"})  # fmt: skip
    make_tokenizer(base, shape["vocab_size"])


def make_tokenizer(folder: Path, size: int) -> None:
    """Byte-level BPE with the pre-tokenizer of Qwen2, trained on the prompts of the parity checks."""
    from tokenizers import Tokenizer, trainers

    from edgeft import models
    from edgeft.benchmarks.fidelity.parity import PROMPTS, TORTURE
    from edgeft.tokenizer.chat_template import ALPACA

    pre = models.pretokenizer_json(models.pretokenizers()["qwen2"])
    empty = {"version": "1.0", "added_tokens": [], "pre_tokenizer": pre,
             "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                         "use_regex": True},
             "model": {"type": "BPE", "vocab": {}, "merges": []}}  # fmt: skip
    tokenizer = Tokenizer.from_str(json.dumps(empty))
    trainer = trainers.BpeTrainer(
        vocab_size=min(size, 2000), special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=byte_letters(),
    )  # fmt: skip
    tokenizer.train_from_iterator([*PROMPTS, *TORTURE, ALPACA], trainer)
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    _json(folder / "tokenizer_config.json", {
        "tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|endoftext|>",
        "bos_token": "<|endoftext|>"})  # fmt: skip


def byte_letters() -> list[str]:
    """GPT-2's 256 printable stand-ins for the bytes, by byte value."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


def _json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False))
