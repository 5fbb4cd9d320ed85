"""peft's LoRA layers -> the same layers as one autograd function each, with the CPU's fastest product.

    count, why_not = install(model)

A LoRA layer (arXiv 2106.09685) with frozen weight W (out, in), A (r, in), B (out, r) and scale s is

    y = x Wᵀ + s (x Aᵀ) Bᵀ

For the gradient g of y, with u = x Aᵀ and h = s g B, its gradients are

    dx = g W + h A        dA = hᵀ x        dB = s gᵀ u

peft computes it from seven operations of autograd, each with tensors of the size of y in memory. Here it
is one: sums are made in place by `addmm_`, x and u are all that is kept for the backward pass, dx is not
computed where nothing below trains, and no gradient of W exists. What is saved is peft's adapter, unchanged.

`frozen_product` is the product with W. Its kernel depends on the machine and W's type, never on a
measurement, so that the same seed gives the same bytes:

- float32: `edgeft.cpu_products`.
- bfloat16 weights: x and g are rounded to bfloat16 for this product alone. Sums within it, the LoRA matrices'
  products and everything between the layers stay float32.
"""

# Imported only when a run starts, after the check for the extra.
# ruff: noqa: TID253

from __future__ import annotations

import types
from typing import Any

import peft
import torch

from edgeft.cpu_products import product


def install(model: Any) -> tuple[int, str]:
    """Replace the forward pass of peft's LoRA layers; returns (replaced layers, why others were not).

    Only on a CPU. A layer is replaced where it is plain LoRA on a frozen `torch.nn.Linear`: one adapter, no
    dropout, no bias of its own, no variant such as DoRA, no hooks (offloading has them). The scale is read
    from the layer in each pass, so rsLoRA, LoRA+, PiSSA and OLoRA are plain LoRA here. Frozen linear layers
    without LoRA, such as the head, are replaced with them. Every other layer keeps its forward pass.

    A base in bfloat16 gets float32 between the layers, or stays as it is where that cannot be done.
    """
    layers = [m for m in model.modules() if isinstance(m, peft.tuners.lora.LoraLayer)]
    if not layers:
        return 0, ""
    reasons = {layer: why_not(layer) for layer in layers}
    reason = next(filter(None, reasons.values()), "")
    inside = {part for layer in layers for part in layer.modules()}
    linears = [
        m for m in model.modules()
        if type(m) is torch.nn.Linear and m not in inside and _is_frozen(m) and not _has_hooks(m)
        and m.weight.device.type == "cpu"
    ]  # fmt: skip
    bases = [layer.get_base_layer() for layer in layers]
    if any(parameter.dtype != torch.float32 for parameter in model.parameters()):
        reason = reason or _float32_between(model, {*bases, *linears})
        if reason:
            return 0, reason
    replaced = [layer for layer in layers if not reasons[layer]]
    for layer in replaced:
        layer.forward = types.MethodType(_forward, layer)
    for linear in linears if replaced else ():
        linear.forward = types.MethodType(_frozen_forward, linear)
    return len(replaced), reason


def _float32_between(model: Any, linears: set[Any]) -> str:
    """Make float32 what a bfloat16 model computes between its `linears`; why it cannot be, else ""."""
    embedding = model.get_input_embeddings()
    held = {module.weight for module in (*linears, embedding)}
    rest = [(name, p) for name, p in model.named_parameters() if p not in held]
    for name, parameter in model.named_parameters():
        if parameter.dtype not in (torch.float32, torch.bfloat16):
            return f"{name} is {str(parameter.dtype).removeprefix('torch.')}"
    for name, parameter in rest:
        if parameter.dtype != torch.float32 and (parameter.ndim > 1 or parameter.requires_grad):
            return f"{name} computes in bfloat16"
    for _, parameter in rest:
        parameter.data = parameter.data.float()
    if embedding.weight.dtype != torch.float32:
        embedding.register_forward_hook(lambda _, inputs, output: output.float())
    return ""


def why_not(layer: Any) -> str:
    """Why a LoRA layer keeps peft's forward pass, "" where it need not."""
    base = layer.get_base_layer()
    if type(layer) is not peft.tuners.lora.Linear or type(base) is not torch.nn.Linear:
        return f"LoRA on {type(base).__name__}"
    if base.weight.device.type != "cpu":
        return f"it computes on {base.weight.device.type}"
    if not _is_frozen(base):
        return "the base trains, too"
    names = list(layer.lora_A)
    if len(names) != 1 or list(layer.active_adapters) != names or layer.merged:
        return "more than one adapter"
    name = names[0]
    if layer.lora_variant.get(name) is not None:
        return type(layer.lora_variant[name]).__name__
    if layer.lora_bias[name] or layer.fan_in_fan_out:
        return "LoRA with a bias" if layer.lora_bias[name] else "a transposed weight"
    if getattr(layer.lora_dropout[name], "p", 0.0):
        return "LoRA dropout"
    parts = (layer.lora_A[name], layer.lora_B[name])
    if any(type(part) is not torch.nn.Linear for part in parts):
        return "LoRA matrices of another kind"
    if any(part.weight.dtype != torch.float32 for part in parts):
        return f"LoRA matrices in {str(parts[0].weight.dtype).removeprefix('torch.')}"
    if any(_has_hooks(part) for part in (layer, base, *parts)):
        return "hooks on its layers"
    return ""


def frozen_product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x Wᵀ in float32; x (rows, in) float32, `weight` (out, in) float32 or bfloat16, strided as it likes."""
    if weight.dtype == torch.bfloat16:
        return (x.bfloat16() @ weight.t()).float()
    return product(x, weight)


class LoRAFunction(torch.autograd.Function):  # type: ignore[misc]
    """y = x Wᵀ + b + s (x Aᵀ) Bᵀ of a frozen W and b; see the module for the gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        """x (rows, in) float32, `weight` (out, in), `bias` (out,), a (r, in), b (out, r) -> (rows, out)."""
        down = frozen_product(x, a)
        y = frozen_product(x, weight)
        y.addmm_(down, b.t(), alpha=scale)
        if bias is not None:
            y.add_(bias)
        ctx.save_for_backward(x, down, weight, a, b)
        ctx.scale = scale
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        """The gradient of y (rows, out) -> those of x, A and B."""
        x, down, weight, a, b = ctx.saved_tensors
        g = gradients[0]
        h = (g @ b).mul_(ctx.scale)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = frozen_product(g, weight.t()).addmm_(h, a)
        da = h.t() @ x if ctx.needs_input_grad[3] else None
        db = (g.t() @ down).mul_(ctx.scale) if ctx.needs_input_grad[4] else None
        return dx, None, None, da, db, None


class QuantizedLoRAFunction(torch.autograd.Function):  # type: ignore[misc]
    """y = x Qᵀ + b, where Q is W + s B A after quantization; A and B get LoRA's gradients at Q.

    It is the straight-through estimator (arXiv 1308.3432): dQ counts as that of W + s B A. No gradient of
    the size of Q is made, and dx = g Q is exact.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        quantized: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        """As LoRAFunction, with `quantized` (out, in) float32 in place of W."""
        y = frozen_product(x, quantized)
        if bias is not None:
            y.add_(bias)
        ctx.save_for_backward(x, quantized, a, b)
        ctx.scale = scale
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        """The gradient of y (rows, out) -> those of x, A and B."""
        x, quantized, a, b = ctx.saved_tensors
        g = gradients[0]
        dx = frozen_product(g, quantized.t()) if ctx.needs_input_grad[0] else None
        da = (g @ b).mul_(ctx.scale).t() @ x if ctx.needs_input_grad[3] else None
        db = (g.t() @ frozen_product(x, a)).mul_(ctx.scale) if ctx.needs_input_grad[4] else None
        return dx, None, None, da, db, None


class FrozenFunction(torch.autograd.Function):  # type: ignore[misc]
    """y = x Wᵀ of a frozen W; its only gradient is dx = g W."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """x (rows, in) float32, `weight` (out, in) -> (rows, out)."""
        ctx.save_for_backward(weight)
        return frozen_product(x, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (weight,) = ctx.saved_tensors
        return frozen_product(gradients[0], weight.t()), None


def _forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """The forward pass of a replaced layer; peft's own where this pass is not plain LoRA in float32."""
    base = self.base_layer
    if args or kwargs or self.merged or x.dtype != torch.float32 or _autocast():
        plain: torch.Tensor = type(self).forward(self, x, *args, **kwargs)
        return plain
    if self.disable_adapters:
        return _frozen_forward(base, x)
    name = self.active_adapters[0]
    weight, function = base.weight, LoRAFunction
    if "ship_weight" in self.__dict__:  # `edgeft.train.ship`
        weight, function = self.ship_weight, QuantizedLoRAFunction
    y: torch.Tensor = function.apply(
        x.flatten(0, -2), weight, base.bias, self.lora_A[name].weight, self.lora_B[name].weight,
        self.scaling[name],
    )  # fmt: skip
    return y.view(
        *x.shape[:-1], y.shape[-1]
    )  # here, since a model may change it in place (OLMo does)


def _frozen_forward(self: Any, x: torch.Tensor) -> torch.Tensor:
    """The forward pass of a frozen `torch.nn.Linear`."""
    if x.dtype != torch.float32 or _autocast():
        return torch.nn.functional.linear(x, self.weight, self.bias)
    y: torch.Tensor = FrozenFunction.apply(x.flatten(0, -2), self.weight)
    y = y.view(*x.shape[:-1], y.shape[-1])
    return y if self.bias is None else y + self.bias


def _autocast() -> bool:
    return bool(torch.is_autocast_enabled("cpu"))


def _is_frozen(linear: Any) -> bool:
    return not any(parameter.requires_grad for parameter in linear.parameters())


def _has_hooks(module: Any) -> bool:
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
        or hasattr(module, "_hf_hook")
    )  # fmt: skip
