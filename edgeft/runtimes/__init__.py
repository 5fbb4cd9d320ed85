"""Artifacts -> logits, tokens and text: one runtime per format behind one protocol."""

from edgeft.runtimes.protocol import Runtime, open_runtime

__all__ = ["Runtime", "open_runtime"]
