"""A tiny random Llama as a Hugging Face folder, and a tiny task for it: seconds, not minutes."""

from __future__ import annotations

import json
import shutil
import string
from pathlib import Path
from typing import Any

import numpy as np

from edgeft import models
from edgeft.benchmarks.studies.random_model import byte_letters
from edgeft.files import read_json
from edgeft.weights import gptq_layout
from edgeft.weights.checkpoint import Checkpoint, Spec, write_safetensors

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HIDDEN, LAYERS, HEADS, KV_HEADS, FFN, CONTEXT = 64, 2, 4, 2, 128, 512


def make_tokenizer(folder: Path) -> tuple[int, int]:
    """Byte-level BPE and ChatML; returns (vocabulary size, id of the token that ends a turn)."""
    folder.mkdir(parents=True)
    merges = [["o", "n"], ["Ġ", "t"], ["Ġt", "h"], ["Ġth", "e"], ["l", "a"], ["la", "m"]]
    tokens = [*byte_letters(), *("".join(pair) for pair in merges)]
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocab = {token: i for i, token in enumerate(tokens)}
    added = [
        {"id": len(tokens) + i, "content": text, "special": True, "single_word": False,
         "lstrip": False, "rstrip": False, "normalized": False}
        for i, text in enumerate(special)
    ]  # fmt: skip
    end = len(tokens) + 2
    _write(folder / "tokenizer.json", {
        "version": "1.0", "added_tokens": added,
        "pre_tokenizer": models.pretokenizer_json(models.pretokenizers()["smollm"]),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True,
                    "use_regex": True},
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    })  # fmt: skip
    _write(folder / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>", "pad_token": "<|im_end|>", "chat_template": CHATML,
    })  # fmt: skip
    _write(folder / "generation_config.json", {"eos_token_id": end, "pad_token_id": end})
    return len(tokens) + len(special), end


def make_base(folder: Path, seed: int = 0, hidden: int = HIDDEN) -> Path:
    """Write the folder: 2 layers, grouped-query attention, tied head, byte-level BPE, ChatML."""
    size, end = make_tokenizer(folder)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": hidden, "intermediate_size": FFN, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
        "head_dim": hidden // HEADS, "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-5,
        "vocab_size": size, "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "dtype": "float32",
        "bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": end,
    }  # fmt: skip
    _write(folder / "config.json", config)
    kv = hidden // HEADS * KV_HEADS
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),  # type: ignore[dict-item]
        "model.norm.weight": (hidden,),
    }
    for i in range(LAYERS):
        layer = f"model.layers.{i}."
        shapes |= {
            f"{layer}input_layernorm.weight": (hidden,),
            f"{layer}post_attention_layernorm.weight": (hidden,),
            f"{layer}self_attn.q_proj.weight": (hidden, hidden),
            f"{layer}self_attn.k_proj.weight": (kv, hidden),
            f"{layer}self_attn.v_proj.weight": (kv, hidden),
            f"{layer}self_attn.o_proj.weight": (hidden, hidden),
            f"{layer}mlp.gate_proj.weight": (FFN, hidden),
            f"{layer}mlp.up_proj.weight": (FFN, hidden),
            f"{layer}mlp.down_proj.weight": (hidden, FFN),
        }
    draw = np.random.default_rng(seed)
    arrays = [
        (1 + draw.normal(0, 0.1, shape) if len(shape) == 1 else draw.normal(0, 0.2, shape)).astype(
            np.float32
        )
        for shape in shapes.values()
    ]
    specs = [Spec(name, "F32", shape) for name, shape in shapes.items()]
    write_safetensors(folder / "model.safetensors", specs, arrays)
    return folder


def some_codes(
    rows: int, columns: int, bits: int, group: int, sym: bool, order: bool = False, seed: int = 0
) -> gptq_layout.Codes:
    """A random layer of GPTQ; `group` -1: the whole row, `order`: columns in any order's groups."""
    draw = np.random.default_rng(seed)
    groups = np.arange(columns, dtype=np.int32) // (columns if group == -1 else group)
    count = int(groups[-1]) + 1
    scales = (draw.uniform(0.05, 0.1, (rows, count)) / 2**bits).astype(np.float16)
    scales *= draw.choice(np.array([-1, 1], np.float16), (rows, count))
    zeros = draw.integers(1, 2**bits, (rows, count), np.uint8)
    return gptq_layout.Codes(
        codes=draw.integers(0, 2**bits, (rows, columns), np.uint8),
        scales=scales,
        zeros=np.full_like(zeros, 2 ** (bits - 1)) if sym else zeros,
        groups=draw.permutation(groups) if order else groups,
        bits=bits,
    )


def write_gptq(
    base: Path,
    folder: Path,
    bits: int = 4,
    group: int = 32,
    sym: bool = True,
    order: bool = False,
    scales: str = "F16",
    offset: int = 1,
    **more: Any,
) -> tuple[Path, dict[str, gptq_layout.Codes]]:
    """A copy of a base whose linear layers are random ones of GPTQ, and those layers by their names.

    `more` goes into its quantization_config.
    """
    shutil.copytree(base, folder)
    plain, config = Checkpoint(base), read_json(base / "config.json")
    card = models.card_for(config)
    made: dict[str, gptq_layout.Codes] = {}
    specs, arrays = [], []
    for name, info in plain.tensors.items():
        place = card.gguf_names(name)[0][0]
        if len(info.shape) < 2 or not place.startswith("blk.") or "gate_inp" in place:
            specs.append(Spec(name, info.dtype, info.shape))
            arrays.append(plain.read(name))
            continue
        made[name] = some_codes(*info.shape, bits, group, sym, order, seed=len(made))  # type: ignore[misc]
        for part, array in gptq_layout.pack(made[name], offset).items():
            kind = scales if part == "scales" else "I32"
            specs.append(Spec(name.removesuffix("weight") + part, kind, array.shape))
            arrays.append(array)
    write_safetensors(folder / "model.safetensors", specs, arrays)
    config["quantization_config"] = gptq_layout.quantization_config(
        **{"bits": bits, "group_size": group, "sym": sym, "desc_act": order} | more
    )
    _write(folder / "config.json", config)
    return folder, made


def make_chats(path: Path, count: int = 40) -> Path:
    """Alpaca rows: a lamp's letter goes to a line of JSON."""
    rows = [
        {"instruction": f"lamp {string.ascii_lowercase[i % 26]} on {i}",
         "output": json.dumps({"on": string.ascii_lowercase[i % 26]})}
        for i in range(count)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False))
