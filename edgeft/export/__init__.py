"""Base and adapter -> verified Artifacts: plan, choose, convert, verify."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgeft.export.options import ExportOptions

if TYPE_CHECKING:
    from edgeft.export.pipeline import export

__all__ = ["ExportOptions", "export"]


def __getattr__(name: str) -> Any:
    """Imports the pipeline on first use: the options alone are for `--help`."""
    if name == "export":
        from edgeft.export import pipeline

        return pipeline.export
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
