"""The graph builder's class of families with experts: one MoE operator for each layer.

This module imports torch and onnxruntime_genai: import it inside functions.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from edgeft.converters.onnx.decoder import PLAIN_MODEL, Decoder


class MixtureOfExperts(Decoder):
    """Experts in one operator, beside a shared expert where the family has one."""

    runs_as = PLAIN_MODEL

    def __init__(self, config: Any, *args: Any) -> None:
        super().__init__(config, *args)
        self.normalized = bool(getattr(config, "norm_topk_prob", True))
        """the shares of the chosen experts sum to 1"""

    def get_moe_module(self, layer_id: int, layer: Any) -> Any:
        return layer.mlp

    def make_mlp(self, layer_id: int, mlp: Any, root_input: str) -> None:
        self.intermediate_size = len(mlp.gate_proj.weight)  # not that of an expert
        super().make_mlp(layer_id, mlp, root_input)

    def make_moe(self, layer_id: int, moe: Any, root_input: str) -> None:
        if not hasattr(moe, "experts"):
            self.make_mlp(layer_id, moe, root_input)
            return
        base = f"/model/layers.{layer_id}/moe"
        count = len(moe.experts.gate_up_proj)
        weights = self.expert_weights(layer_id, moe.experts)
        router = self.route(base, moe.gate, count, root_input)
        output = f"{base}/MoE/output_0"
        self.make_node(
            "MoE", [root_input, router, weights[0], "", weights[1]], [output],
            name=f"{base}/MoE", domain="com.microsoft", activation_type="swiglu",
            activation_alpha=1.0, activation_beta=0.0, swiglu_fusion=1,
            k=self.moe_attrs["top_k"], normalize_routing_weights=1,
        )  # fmt: skip
        self.make_value(output, self.io_dtype, self.make_hidden_state_shape())
        if not self.normalized:
            output = self.scale_by_share(base, output, count)
        if hasattr(moe, "shared_expert"):
            shared = self.add_shared_expert(layer_id, moe, root_input)
            output = self.add_sum(f"{base}/Add", output, shared)
        self.layernorm_attrs["skip_input"] = output

    def expert_weights(self, layer_id: int, experts: Any) -> tuple[str, str]:
        """Names of the constants: gate and up with alternating rows, as the operator reads them, and
        down."""
        names = self.make_moe_expert_names(layer_id)
        gate_up = experts.gate_up_proj
        half = gate_up.shape[1] // 2
        pairs = torch.stack([gate_up[:, :half], gate_up[:, half:]], dim=2)
        self.make_initializer(pairs.reshape(gate_up.shape), names["gate_up_weight"])
        self.make_initializer(experts.down_proj, names["down_weight"])
        return names["gate_up_weight"], names["down_weight"]

    def route(self, base: str, gate: Any, count: int, root_input: str) -> str:
        """Name of the router's logits, (tokens, experts)."""
        self.make_matmul(SimpleNamespace(weight=gate.weight), f"{base}/router/MatMul", root_input)
        inputs = [f"{base}/router/MatMul/output_0", f"/model/constants/INT64/[-1, {count}]"]
        shape = ["batch_size * sequence_length", count]
        self.make_reshape(f"{base}/router/Reshape", inputs, self.io_dtype, shape)
        return f"{base}/router/Reshape/output_0"

    def scale_by_share(self, base: str, path: str, count: int) -> str:
        """Multiply by the sum of the chosen experts' shares.

        QMoE divides by that sum, whatever its attribute says.
        """
        hidden, dtype = self.make_hidden_state_shape, self.io_dtype
        chosen = self.moe_attrs["top_k"]
        router = f"{base}/router/MatMul/output_0"
        self.make_softmax(f"{base}/Softmax", router, dtype, hidden(last_dim=count))
        shares = [f"{base}/Softmax/output_0", f"/model/constants/INT64/[{chosen}]"]
        self.make_topk(f"{base}/TopK", shares, dtype, hidden(last_dim=chosen))
        axes = [f"{base}/TopK/output_0", "/model/constants/INT64/[-1]"]
        self.make_reduce_sum(f"{base}/ReduceSum", axes, dtype, hidden(last_dim=1), keepdims=True)
        self.make_mul(f"{base}/Scale", [path, f"{base}/ReduceSum/output_0"], dtype, hidden())
        return f"{base}/Scale/output_0"

    def add_shared_expert(self, layer_id: int, moe: Any, root_input: str) -> str:
        """An expert that reads every token, times its gate; the name of the output."""
        base = f"/model/layers.{layer_id}/moe/shared"
        self.make_mlp(layer_id, moe.shared_expert, root_input)
        self.make_matmul(moe.shared_expert_gate, f"{base}/router/MatMul", root_input)
        shape = self.make_hidden_state_shape(last_dim=1)
        gate = f"{base}/router/MatMul/output_0"
        self.make_sigmoid(f"{base}/Sigmoid", gate, self.io_dtype, shape)
        parts = [self.mlp_attrs["output_0"], f"{base}/Sigmoid/output_0"]
        self.make_mul(f"{base}/Mul", parts, self.io_dtype, self.make_hidden_state_shape())
        return f"{base}/Mul/output_0"
