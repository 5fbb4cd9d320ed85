"""Base and adapter -> the Merged view and its landing proof."""

from edgeft.merge.landing import Proof
from edgeft.merge.view import Merged, open_merged

__all__ = ["Merged", "Proof", "open_merged"]
