"""Releases, measurements and models -> tables, a page, Markdown and JSON.

`write` and `read` are the report folder of `edgeft ab`; `table` is an aligned Markdown table; `describe`
gives the facts about one model or adapter. SCHEMA.md documents report.json.
"""

from edgeft.report.describe import describe
from edgeft.report.storage import read, write
from edgeft.report.tables import table

__all__ = ["describe", "read", "table", "write"]
