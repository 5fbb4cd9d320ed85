"""The reference: transformers in float32 on the CPU, the model that every artifact is held to.

    with ReferenceRuntime(Path("merged")) as model: ...
    with ReferenceRuntime(base, adapters=[(Path("adapter"), 1.0)]) as live:
        live.logits(ids)
        with live.without_adapter(): live.logits(ids)

The second form is the live model: the adapter runs beside the base by peft, nothing is merged.
`weights` gives the model other values than its files hold, such as those that NF4 leaves of them,
or those of a Merged view (with its `config` and `tokenizer`) that was never written to disk. A folder
of GPTQ runs on the values of its codes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from edgeft import models
from edgeft.adapter.config import CHANGED
from edgeft.errors import FormatError, InputError, require
from edgeft.files import read_json
from edgeft.progress import quiet_libraries
from edgeft.records import Limits, Reply, Token
from edgeft.runtimes.sampling import choose, in_turn
from edgeft.tokenizer.chat_template import ChatTemplate
from edgeft.tokenizer.hf_files import encoder, eos_ids, load_tokenizer
from edgeft.weights.checkpoint import Checkpoint, quantization

Weights = Iterable[tuple[str, npt.NDArray[np.float32]]]


class ReferenceRuntime:
    def __init__(
        self,
        path: Path,
        threads: int | None = None,
        context: int | None = None,
        weights: Weights | None = None,
        adapters: Sequence[tuple[Path, float]] = (),
        config: dict[str, Any] | None = None,
        tokenizer: Path | None = None,
        vocabulary: int | None = None,
    ) -> None:
        """`config` and the folder `tokenizer`: where they are not the base's; `vocabulary`: rows of
        the embedding that the adapters were trained on."""
        with quiet_libraries():
            self._torch = torch = require("torch", "train")
            transformers = require("transformers", "train")
            transformers.utils.logging.disable_progress_bar()
            architecture = models.transformers_class(read_json(path / "config.json"))
            if threads:
                torch.set_num_threads(threads)
            if weights is None and quantization(path):
                weights = _of_codes(path)
            if weights is None:
                self._model = transformers.AutoModelForCausalLM.from_pretrained(
                    path, dtype=torch.float32, local_files_only=True, use_safetensors=True
                )
            else:
                changed = {key: value for key, value in (config or {}).items() if key in CHANGED}
                own = transformers.AutoConfig.from_pretrained(
                    path, local_files_only=True, **changed
                )
                own.dtype = torch.float32
                vars(own).pop("quantization_config", None)
                self._model = self._filled(architecture, own, weights)
            if vocabulary and vocabulary != self._model.get_input_embeddings().weight.shape[0]:
                self._model.resize_token_embeddings(vocabulary, mean_resizing=False)
            self.adapted = bool(adapters)
            if adapters:
                self._add(adapters)
            self._model.eval()
        folder = tokenizer or path
        self._tokenizer = load_tokenizer(folder)
        self._stops = set(eos_ids(folder))
        self.encode = encoder(folder)
        self.chat = ChatTemplate.from_folder(folder)
        self.vocab_size = int(self._model.config.vocab_size)
        self.context = min(int(self._model.config.max_position_embeddings), context or 4096)

    def logits(self, ids: Sequence[int], last: int | None = None) -> npt.NDArray[np.float32]:
        if len(ids) > self.context:
            raise InputError(f"{len(ids)} tokens are more than the context of {self.context}")
        with self._torch.inference_mode():
            # logits_to_keep 0 means all of them
            rows = self._model(self._torch.tensor([list(ids)]), logits_to_keep=last or 0).logits[0]
        return np.asarray(rows.numpy(), np.float32)

    def stream(self, ids: Sequence[int], limits: Limits) -> Iterator[Token]:
        torch = self._torch
        started = time.perf_counter()
        pending, shown, produced = torch.tensor([list(ids)]), "", []
        cache: Any = None
        draw = np.random.default_rng(limits.seed & 0xFFFFFFFF)
        for _ in range(min(limits.max_tokens, self.context - len(ids))):
            with torch.inference_mode():
                out = self._model(pending, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            token = choose(out.logits[0, -1].numpy(), limits, draw)
            if token in self._stops and not limits.ignore_eos:
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
        return in_turn(self.stream, prompts, limits, lambda _: limits.max_tokens, progress)

    def close(self) -> None:
        self._model = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def without_adapter(self) -> contextlib.AbstractContextManager[None]:
        """The base alone, while the context lasts."""
        if not self.adapted:
            return contextlib.nullcontext()
        manager: contextlib.AbstractContextManager[None] = self._model.disable_adapter()
        return manager

    def _add(self, adapters: Sequence[tuple[Path, float]]) -> None:
        peft = require("peft", "train")
        names = [f"adapter_{i}" for i in range(len(adapters))]
        weights = [weight for _, weight in adapters]
        what = ""
        try:
            for name, (folder, _) in zip(names, adapters, strict=True):
                what = str(folder)
                if name == names[0]:
                    self._model = peft.PeftModel.from_pretrained(self._model, folder, name)
                else:
                    self._model.load_adapter(folder, name)
            if weights != [1.0]:
                what = f"the sum of {', '.join(str(folder) for folder, _ in adapters)}"
                self._model.add_weighted_adapter(names, weights, "sum", combination_type="cat")
                self._model.set_adapter("sum")
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            # Adapters of other versions of peft, mostly of experts; sums that it does not make.
            reason = str(error).strip().partition("\n")[0]
            raise FormatError(f"peft cannot load {what}: {reason}") from None

    def _filled(self, model: Any, config: Any, weights: Weights) -> Any:
        """A model of these weights under the checkpoint's names; every parameter must get one."""
        named = {name: self._torch.from_numpy(values) for name, values in weights}
        made, facts = model.from_pretrained(
            None, config=config, state_dict=named, output_loading_info=True
        )
        left = sorted(facts["missing_keys"])
        if left:
            raise InputError(f"the model has no weights for {', '.join(left[:3])}")
        return made


def _of_codes(path: Path) -> Weights:
    """The tensors of a folder of GPTQ, which transformers alone would not read."""
    stored, card = Checkpoint(path), models.card_for(read_json(path / "config.json"))
    return ((name, stored.read(name)) for name in stored.tensors if not card.ignores(name))
