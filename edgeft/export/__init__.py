"""Adapter -> verified Artifacts: plan, choose, convert, prove."""

from edgeft.export.options import ExportOptions
from edgeft.export.pipeline import export

__all__ = ["ExportOptions", "export"]
