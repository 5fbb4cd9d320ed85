"""Dataset + base -> Adapter: a training run is one method and one objective."""

from edgeft.train.options import TrainOptions
from edgeft.train.run import train

__all__ = ["TrainOptions", "train"]
