"""config.json + options of a run -> bytes of memory at its peak, part by part, without weights.

    base = read_base(Path("model"))                     # a folder, or a config.json alone
    memory = estimate(base, options, METHODS["qlora"].trains, Batch(8, 60, 120))
    memory.peak, memory.activations

A run on this machine is a `Request`: what it needs, and the nearest options that fit.
"""

from edgeft.train.memory.activations import Batch, activation_bytes
from edgeft.train.memory.base_model import BaseModel, read_base
from edgeft.train.memory.peak import Memory, estimate
from edgeft.train.memory.request import Request, check_attention
from edgeft.train.memory.trained import (
    ALL,
    BIASES,
    DORA,
    INITIALIZED,
    LAYERS,
    LORA,
    NORMS,
    QLORA,
    SCALES,
    Trains,
    trained_weights,
)

__all__ = [
    "ALL",
    "BIASES",
    "DORA",
    "INITIALIZED",
    "LAYERS",
    "LORA",
    "NORMS",
    "QLORA",
    "SCALES",
    "BaseModel",
    "Batch",
    "Memory",
    "Request",
    "Trains",
    "activation_bytes",
    "check_attention",
    "estimate",
    "read_base",
    "trained_weights",
]
