"""The reference: transformers in float32 on the CPU, the model that every artifact is held to.

    with ReferenceRuntime(Path("merged")) as model: ...
    ReferenceRuntime(base, weights=((name, merged.tensor(name)) for name in merged.shapes),
                     config=merged.config, tokenizer=merged.tokenizer)

The second form runs a Merged view without writing it to disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from edgeft.errors import InputError, require
from edgeft.records import Limits, Reply, Token
from edgeft.template import ChatTemplate, encoder, eos_ids, load_tokenizer

_MERGED = ("vocab_size", "tie_word_embeddings")
"""keys of config.json that an adapter may change"""

Weights = Iterable[tuple[str, npt.NDArray[np.float32]]]


class ReferenceRuntime:
    def __init__(
        self,
        path: Path,
        threads: int | None = None,
        context: int | None = None,
        weights: Weights | None = None,
        config: dict[str, Any] | None = None,
        tokenizer: Path | None = None,
    ) -> None:
        self._torch = torch = require("torch", "train")
        transformers = require("transformers", "train")
        transformers.utils.logging.disable_progress_bar()
        if threads:
            torch.set_num_threads(threads)
        if weights is None:
            self._model = transformers.AutoModelForCausalLM.from_pretrained(
                path, dtype=torch.float32, local_files_only=True, use_safetensors=True
            )
        else:
            changed = {key: value for key, value in (config or {}).items() if key in _MERGED}
            own = transformers.AutoConfig.from_pretrained(path, local_files_only=True, **changed)
            own.dtype = torch.float32
            self._model = transformers.AutoModelForCausalLM.from_config(own)
            self._fill(weights)
        self._model.eval()
        tokenizer = tokenizer or path
        self._tokenizer = load_tokenizer(tokenizer)
        self._stops = set(eos_ids(tokenizer))
        self.encode = encoder(tokenizer)
        self.chat = ChatTemplate.from_folder(tokenizer)
        self.vocab_size = int(self._model.config.vocab_size)
        self.context = min(int(self._model.config.max_position_embeddings), context or 4096)

    def logits(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        if len(ids) > self.context:
            raise InputError(f"{len(ids)} tokens are more than the context of {self.context}")
        with self._torch.inference_mode():
            out: npt.NDArray[np.float32] = self._model(self._torch.tensor([list(ids)])).logits[0]
        return np.asarray(out, np.float32)

    def stream(self, ids: Sequence[int], limits: Limits) -> Iterator[Token]:
        torch = self._torch
        started = time.perf_counter()
        pending, shown, produced = torch.tensor([list(ids)]), "", []
        cache: Any = None
        draw = np.random.default_rng(limits.seed)
        for _ in range(min(limits.max_tokens, self.context - len(ids))):
            with torch.inference_mode():
                out = self._model(pending, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            token = _choose(out.logits[0, -1].numpy(), limits, draw)
            if token in self._stops and not limits.past_stops:
                return
            produced.append(token)
            text = self._tokenizer.decode(produced, skip_special_tokens=False)
            whole = text.removesuffix("\ufffd")
            yield Token(token, whole[len(shown) :], time.perf_counter() - started)
            shown = whole
            pending = torch.tensor([[token]])

    def replies(
        self,
        prompts: Sequence[Sequence[int]],
        limits: Limits,
        progress: Callable[[int], None] | None = None,
    ) -> list[Reply]:
        replies = []
        for prompt in prompts:
            tokens = list(self.stream(prompt, limits))
            text = "".join(token.text for token in tokens)
            ids = tuple(token.id for token in tokens)
            replies.append(Reply(text, ids, stopped=len(ids) < limits.max_tokens))
            if progress:
                progress(len(replies))
        return replies

    def close(self) -> None:
        self._model = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _fill(self, weights: Weights) -> None:
        """Copy the weights in; every parameter must get one."""
        parameters = dict(self._model.named_parameters())
        parameters |= {"lm_head.weight": self._model.get_output_embeddings().weight}
        tied = self._model.config.tie_word_embeddings
        left = set(parameters) - ({"lm_head.weight"} if tied else set())
        with self._torch.no_grad():
            for name, values in weights:
                parameters[name].copy_(self._torch.from_numpy(np.ascontiguousarray(values)))
                left.discard(name)
        if left:
            raise InputError(f"the model has no weights for {', '.join(sorted(left)[:3])}")


def _choose(logits: npt.NDArray[np.float32], limits: Limits, draw: np.random.Generator) -> int:
    """Greedy, or nucleus sampling (arXiv 1904.09751)."""
    if limits.temperature <= 0:
        return int(logits.argmax())
    order = np.argsort(-logits)
    scaled = (logits[order] - logits[order[0]]) / limits.temperature
    share = np.exp(scaled) / np.exp(scaled).sum()
    keep = int(np.searchsorted(np.cumsum(share), limits.top_p)) + 1
    return int(draw.choice(order[:keep], p=share[:keep] / share[:keep].sum()))
