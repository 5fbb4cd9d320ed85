"""Two models and token sequences -> how far the next-token distributions of one are from the other's.

`compare` computes KL divergence, same first choice and perplexity; `kept_baseline` saves a reference's
distributions to a file; `parity` proves that an exported artifact is still the merged model;
`llama_perplexity` gives the figures that llama.cpp's tool prints.
"""

from edgeft.benchmarks.fidelity.compare import (
    Estimate,
    Fidelity,
    ScoredSequence,
    chat_answers,
    compare_fidelity,
    file_chunks,
    kl_ratio,
    paired_difference,
    text_chunks,
)
from edgeft.benchmarks.fidelity.kept_baseline import KeptBaseline

__all__ = [
    "Estimate",
    "Fidelity",
    "KeptBaseline",
    "ScoredSequence",
    "chat_answers",
    "compare_fidelity",
    "file_chunks",
    "kl_ratio",
    "paired_difference",
    "text_chunks",
]
