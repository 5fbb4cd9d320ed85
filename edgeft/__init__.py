"""edgeft: from a QLoRA fine-tune to a model on a plain CPU, proved the same at each step."""

import os

__version__ = "0.1.0"

NO_TELEMETRY = {
    "ORT_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
"""variables that keep libraries from reporting their use: onnxruntime does some seconds after its import"""

for _name, _value in NO_TELEMETRY.items():
    os.environ.setdefault(_name, _value)
