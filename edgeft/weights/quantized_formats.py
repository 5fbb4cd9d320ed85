"""`quantization_config` of config.json -> which reader the weights need, and its layers.

config = quantization_config(folder)             # {} for a model that is not quantized
layers = READERS[method(config)](config, Tensors(stored, raw))
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeft.errors import InputError
from edgeft.files import read_json
from edgeft.weights import (
    awq_layout,
    bitsandbytes_layout,
    compressed_tensors_layout,
    fp8_layout,
    mlx_layout,
)
from edgeft.weights.quantized_layer import Layer, LayerReader, Tensors

READERS: dict[str, LayerReader] = {
    "awq": awq_layout.layers,
    "bitsandbytes": bitsandbytes_layout.layers,
    "compressed-tensors": compressed_tensors_layout.layers,
    "fbgemm_fp8": fp8_layout.layers,
    "fp8": fp8_layout.layers,
    "mlx": mlx_layout.layers,
    "modelopt": fp8_layout.layers,
    "mxfp8": fp8_layout.layers,
}
"""quant_method -> reader; GPTQ's layers keep their codes (`gptq_layout`)"""
AUTO_ROUND = {"gptq": "gptq", "auto_gptq": "gptq", "awq": "awq", "auto_awq": "awq"}
"""end of auto-round's `packing_format` -> the layout that it is"""


def quantization_config(folder: Path) -> dict[str, Any]:
    """How the weights of a folder are quantized, with `quant_method`; {} where they are not.

    Of a multimodal model the settings may be those of its text model. Early folders of AutoGPTQ and
    AutoAWQ have them in quantize_config.json or quant_config.json only, those of MLX under
    `quantization`.
    """
    if not folder.is_dir():
        return {}
    whole = read_json(folder / "config.json")
    if isinstance(mlx := whole.get("quantization"), dict) and "group_size" in mlx:
        return mlx | {"quant_method": "mlx"}
    for part in (whole, whole.get("text_config"), whole.get("llm_config")):
        for key in ("quantization_config", "compression_config"):
            if isinstance(part, dict) and isinstance(config := part.get(key), dict) and config:
                return config | {"quant_method": method(config, key)}
    if config := read_json(folder / "quantize_config.json"):
        return config | {"quant_method": method(config)}
    if (config := read_json(folder / "quant_config.json")) and "w_bit" in config:
        return config | {"quant_method": "awq"}
    return {}


def method(config: Mapping[str, Any], key: str = "quantization_config") -> str:
    """The quant_method of a `quantization_config`, "gptq" where it names none."""
    name = str(config.get("quant_method") or "").lower()
    if "auto-round" in name:
        packing = str(config.get("packing_format") or "").rpartition(":")[2]
        return AUTO_ROUND.get(packing, name)
    if name:
        return name
    if any("load_in_" in entry for entry in config):
        return "bitsandbytes"
    return "compressed-tensors" if key == "compression_config" else "gptq"


def read_layers(config: Mapping[str, Any], tensors: Tensors, where: Path) -> dict[str, Layer]:
    """Name of a weight -> layer, by the reader of its quant_method. InputError for a damaged one."""
    try:
        return READERS[method(config)](config, tensors)
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise InputError(
            f"{where}: its quantization_config is not one of {method(config)}: {error!r}",
            "is it the one that came with the weights?",
        ) from None


def refusal(config: Mapping[str, Any], where: Path) -> InputError:
    """The error for a model that none of READERS reads."""
    variant = config.get("quant_algo") or config.get("format") or config.get("quant_type")
    return InputError(
        f"{where}: the model is quantized by {method(config)}{f' ({variant})' if variant else ''}",
        f"take the unquantized model, or one quantized by GPTQ, {', '.join(READERS)}",
    )
