"""The same trainings on the CPU and on a GPU -> their losses, speed and results side by side.

    python -m edgeft.benchmarks.studies.gpu --steps 20 --out gpu

QLoRA with the base dequantized and packed by bitsandbytes, LoRA with each attention, and full fine-tuning
train the embedded suite on both devices, are exported with the check against the live model, and answer
the suite. Needs CUDA. Ends with one JSON line with the largest difference of the training loss, in nats.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from edgeft.benchmarks.studies.training_methods import Row, arguments, measure, report, table
from edgeft.errors import EdgeftError, InputError

VARIANTS = {
    "qlora": (),
    "qlora packed": ("--keep-4bit",),
    "lora fp32": ("--compute-type", "fp32"),
    "lora eager": ("--attention", "eager"),
    "full": (),
}
"""name -> words of `edgeft train`"""
ON_GPU_ONLY = {"lora flash": ("--attention", "flash_attention_2")}
DEVICES = ("cpu", "cuda")


def largest_difference(rows: Sequence[Row]) -> dict[str, float]:
    """Variant -> the largest difference of the training loss between the devices, nats."""
    differences = {}
    for name in dict.fromkeys(row.method for row in rows):
        curves = [[loss for _, loss in row.losses] for row in rows if row.method == name]
        if len(curves) == len(DEVICES):
            differences[name] = max(abs(a - b) for a, b in zip(*curves, strict=True))
    return differences


def has_flash_attention() -> bool:
    """Whether the package flash-attn is installed."""
    import importlib.util

    return importlib.util.find_spec("flash_attn") is not None


def main() -> None:
    import torch

    options = arguments(str(__doc__).partition("\n")[0]).parse_args()
    if not torch.cuda.is_available():
        raise InputError("no CUDA device here", "run it on a machine with an NVIDIA GPU")
    runs = [(name, device, more) for name, more in VARIANTS.items() for device in DEVICES]
    if has_flash_attention():
        runs += [(name, "cuda", more) for name, more in ON_GPU_ONLY.items()]
    rows = []
    for name, device, more in runs:
        rows.append(measure(name, device, options, more))
        print(json.dumps(asdict(rows[-1])), file=sys.stderr, flush=True)
    print(table(rows))
    print(report(rows, options, largest_loss_difference=largest_difference(rows)))


if __name__ == "__main__":
    try:
        main()
    except EdgeftError as error:
        sys.exit(f"error: {error}")
