"""ChatGLM2 and ChatGLM3 in torch, written for the tests from the published architecture.

    live = peft.get_peft_model(make(config), peft.LoraConfig(target_modules=["query_key_value"]))

transformers does not have these models and the code that comes with their weights is never run.
The modules have the names that it has, so that peft's adapters are the ones that users have.
`test_families.py` holds this to transformers' GLM, which is the same model with projections apart.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

OPTIONS: dict[str, Any] = {
    "architectures": ["ChatGLMModel"], "model_type": "chatglm", "hidden_size": 64, "num_layers": 2,
    "ffn_hidden_size": 96, "num_attention_heads": 4, "kv_channels": 16, "seq_length": 256,
    "multi_query_attention": True, "multi_query_group_num": 2, "layernorm_epsilon": 1e-5,
    "add_qkv_bias": True, "add_bias_linear": False, "rmsnorm": True, "post_layer_norm": True,
    "original_rope": True, "apply_residual_connection_post_layernorm": False,
    "tie_word_embeddings": False, "rope_ratio": 1,
}  # fmt: skip
"""config.json's keys, as THUDM/chatglm3-6b has them"""

TO_GLM = {
    "transformer.output_layer": "lm_head",
    "transformer.embedding.word_embeddings": "model.embed_tokens",
    "transformer.encoder.final_layernorm": "model.norm",
    "transformer.encoder.": "model.",
    "self_attention.dense": "self_attn.o_proj",
    "self_attention": "self_attn",
    "dense_h_to_4h": "gate_up_proj",
    "dense_4h_to_h": "down_proj",
}
"""part of a tensor's name -> in transformers' GlmForCausalLM"""


def make(config: dict[str, Any]) -> Any:
    """A model with random weights."""
    import torch
    from torch import nn
    from torch.nn import functional

    hidden, ffn, vocab = (config[f"{key}_size"] for key in ("hidden", "ffn_hidden", "padded_vocab"))
    heads, groups = config["num_attention_heads"], config["multi_query_group_num"]
    width, eps = config["kv_channels"], config["layernorm_epsilon"]

    def tree(**parts: nn.Module) -> Any:
        return nn.ModuleDict(parts)

    def layer() -> Any:
        rows = (heads + 2 * groups) * width
        return tree(
            input_layernorm=nn.RMSNorm(hidden, eps),
            self_attention=tree(
                query_key_value=nn.Linear(hidden, rows, bias=config["add_qkv_bias"]),
                dense=nn.Linear(heads * width, hidden, bias=False),
            ),
            post_attention_layernorm=nn.RMSNorm(hidden, eps),
            mlp=tree(
                dense_h_to_4h=nn.Linear(hidden, 2 * ffn, bias=False),
                dense_4h_to_h=nn.Linear(ffn, hidden, bias=False),
            ),
        )

    def rotated(x: torch.Tensor) -> torch.Tensor:
        """Neighbouring pairs in the first half of each head; x: (position, head, width)."""
        half, ratio = width // 2, config["rope_ratio"]
        positions, base = torch.arange(len(x)).double(), 10000.0
        if "chatglm2" in config.get("_name_or_path", ""):
            positions /= ratio
        else:
            base *= ratio
        angles = torch.outer(positions, base ** -(torch.arange(0, half, 2).double() / half))
        pairs = torch.view_as_complex(x[..., :half].reshape(*x.shape[:-1], -1, 2))
        turned = pairs * torch.polar(torch.ones_like(angles), angles)[:, None].to(pairs.dtype)
        return torch.cat((torch.view_as_real(turned).flatten(-2), x[..., half:]), -1)

    class ChatGLM(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            rope = nn.Module()
            rope.register_buffer("inv_freq", torch.ones(width // 4))
            self.transformer = tree(
                embedding=tree(word_embeddings=nn.Embedding(vocab, hidden)),
                rotary_pos_emb=rope,
                encoder=tree(
                    layers=nn.ModuleList(layer() for _ in range(config["num_layers"])),
                    final_layernorm=nn.RMSNorm(hidden, eps),
                ),
                output_layer=nn.Linear(hidden, vocab, bias=False),
            )

        def forward(self, ids: torch.Tensor) -> Any:
            body = self.transformer
            x = body["embedding"]["word_embeddings"](ids[0])
            for block in body["encoder"]["layers"]:
                x = x + self.attention(block["self_attention"], block["input_layernorm"](x))
                wide = block["mlp"]["dense_h_to_4h"](block["post_attention_layernorm"](x))
                gate, up = wide.chunk(2, -1)
                x = x + block["mlp"]["dense_4h_to_h"](functional.silu(gate) * up)
            return SimpleNamespace(
                logits=body["output_layer"](body["encoder"]["final_layernorm"](x))[None]
            )

        def attention(self, block: Any, x: torch.Tensor) -> torch.Tensor:
            sizes = [heads * width, groups * width, groups * width]
            q, k, v = (
                part.reshape(len(x), -1, width)
                for part in block["query_key_value"](x).split(sizes, -1)
            )
            q, k = rotated(q), rotated(k).repeat_interleave(heads // groups, 1)
            v = v.repeat_interleave(heads // groups, 1)
            scores = torch.einsum("qhd,khd->hqk", q, k) / width**0.5
            future = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
            mixed = scores.masked_fill(future, -torch.inf).softmax(-1)
            return block["dense"](torch.einsum("hqk,khd->qhd", mixed, v).flatten(1))

        def generate(self, ids: torch.Tensor, max_new_tokens: int, **_: Any) -> torch.Tensor:
            """Greedy, past every stop."""
            for _ in range(max_new_tokens):
                ids = torch.cat((ids, self(ids).logits[:, -1:].argmax(-1)), 1)
            return ids

    return ChatGLM()
