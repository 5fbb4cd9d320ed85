"""Dataset + base -> Adapter: a training run is a method (qlora) and an objective (sft)."""

from edgeft.train.options import TrainOptions
from edgeft.train.run import train

__all__ = ["TrainOptions", "train"]
