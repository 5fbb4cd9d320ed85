"""An artifact or a model folder -> logits, tokens and text: one runtime per format, one protocol.

`open_runtime` opens a path with the runtime of its format. Code that needs more than the protocol
imports the class: `gguf.GGUFRuntime`, `gptq.GPTQRuntime`, `onnx.ONNXRuntime`,
`reference.ReferenceRuntime`.
"""

from edgeft.runtimes.protocol import Runtime, open_runtime

__all__ = ["Runtime", "open_runtime"]
