"""Rows of weights -> bytes of a type and back: ggml's blocks, NF4 and GPTQ codes."""
