"""Options of a training and values to try -> trials, and the one that is best on the validation split."""

from typing import TYPE_CHECKING, Any

from edgeft.sweep.options import Range, SweepOptions

if TYPE_CHECKING:
    from edgeft.sweep.run import SweepResult, sweep
    from edgeft.sweep.trial import Trial

__all__ = ["Range", "SweepOptions", "SweepResult", "Trial", "sweep"]


def __getattr__(name: str) -> Any:
    """Imports the sweep on first use: the options alone are for `--help`."""
    if name in __all__:
        from edgeft.sweep import run

        return getattr(run, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
