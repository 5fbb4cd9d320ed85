"""The Merged view + calibration text -> GPTQ codes or ggml blocks, one transformer block at a time."""

from edgeft.gptq.quantize import Calibration

__all__ = ["Calibration"]
