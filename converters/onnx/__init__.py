"""The Merged view -> an ONNX folder for onnxruntime-genai."""
