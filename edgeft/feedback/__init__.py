"""Prompts with two answers each + a judge behind an OpenAI-style URL -> preference pairs (RLAIF, 2309.00267)."""

from edgeft.feedback.options import LabelOptions

__all__ = ["LabelOptions"]
