"""A preference pair -> whether it prefers anything."""

from __future__ import annotations

from edgeft.data.items import Item
from edgeft.data.row_faults.look import excerpt


def chosen_is_rejected(item: Item) -> str:
    same = item.rejected is not None and item.rejected.strip() == item.answer.strip()
    return excerpt(item.answer) if same else ""


def rejected_is_empty(item: Item) -> str:
    return "no text" if item.rejected is not None and not item.rejected.strip() else ""
