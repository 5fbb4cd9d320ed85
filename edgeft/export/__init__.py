"""Adapter -> verified Artifacts: plan, choose, convert, prove."""

from edgeft.export.pipeline import ExportOptions, export

__all__ = ["ExportOptions", "export"]
