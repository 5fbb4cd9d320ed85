"""The Merged view -> an ONNX folder for onnxruntime-genai.

`edgeft.converters.onnx.convert` has the entry points `check` and `convert`.
"""

from edgeft.converters.onnx.recipe import Recipe, recipe_of

__all__ = ["Recipe", "recipe_of"]
