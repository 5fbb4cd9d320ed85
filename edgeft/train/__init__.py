"""Dataset + base -> Adapter: a training run is one method and one objective."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgeft.train.options import TrainOptions

if TYPE_CHECKING:
    from edgeft.train.run import train

__all__ = ["TrainOptions", "train"]


def __getattr__(name: str) -> Any:
    """Imports the trainer on first use: the options alone are for `--help`."""
    if name == "train":
        from edgeft.train import run

        return run.train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
