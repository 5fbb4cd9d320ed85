"""Products of float32 matrices on a CPU, by the faster of torch's two libraries.

    y = product(x, weight)          # x Wᵀ

torch.mm calls MKL, which uses AVX2 on AMD, also where the CPU has AVX-512. oneDNN does not: 240 against 105
GFLOP/s on one core of Zen 5. On Intel with AVX-512 both are as fast. The choice depends on the machine alone
and never on a measurement, so that the same input gives the same bytes.
"""

# Imported by modules that hold torch already.
# ruff: noqa: TID253

from __future__ import annotations

import types
from typing import Any

import torch


def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x Wᵀ, (rows, out), of x (rows, in) and `weight` (out, in), strided as they like; other types than float32 by
    torch.mm."""
    if x.dtype == torch.float32 and onednn_is_faster():
        # What torch.compile calls for a linear layer on a CPU.
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
        return result
    return x @ weight.t()


def onednn_is_faster() -> bool:
    """Whether `product` calls oneDNN: on CPUs with AVX-512, where torch has it."""
    return (
        torch.backends.cpu.get_cpu_capability() == "AVX512"
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def use_in_linears(module: torch.nn.Module) -> None:
    """Let the float32 `torch.nn.Linear` layers in `module` compute by `product`; only without gradients."""
    for linear in module.modules() if onednn_is_faster() else ():
        if type(linear) is torch.nn.Linear:
            linear.forward = types.MethodType(_linear, linear)


def _linear(self: Any, x: torch.Tensor) -> torch.Tensor:
    if x.dtype != torch.float32 or self.weight.dtype != torch.float32:
        return torch.nn.functional.linear(x, self.weight, self.bias)
    y = product(x.flatten(0, -2), self.weight).view(*x.shape[:-1], self.out_features)
    return y if self.bias is None else y.add_(self.bias)
