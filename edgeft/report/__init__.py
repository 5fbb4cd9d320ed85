"""Measurements and verdicts -> tables, plots, a page and JSON."""

from edgeft.report.storage import read, write
from edgeft.report.tables import table

__all__ = ["read", "table", "write"]
