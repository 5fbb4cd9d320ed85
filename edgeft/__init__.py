"""edgeft: from a QLoRA fine-tune to a model on a plain CPU, proved the same at each step."""

__version__ = "0.1.0"
