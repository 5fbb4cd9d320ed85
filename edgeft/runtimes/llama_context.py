"""llama.cpp over its C interface: a GGUF file -> its weights (`LlamaModel`) -> contexts that compute.

    model = LlamaModel(Path("model.gguf"))
    context = LlamaContext(model, model.context_params(cells=512))
    context.decode([(token, position, 0) for position, token in enumerate(ids)], outputs=1)
    row = context.logits(1)[0]

A context has a cache of keys and values for one or several sequences. The caller keeps track of what
the cache holds (`edgeft.runtimes.sequences`). Nothing here is safe for parallel calls.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeft import machine
from edgeft.errors import EdgeftError, InputError, ResourceError
from edgeft.kv_cache import (
    BLOCK_VALUES,
    EXACT_TYPE,
    KV_TYPES,
    gguf_widths,
    head_size,
    kv_bytes,
)
from edgeft.runtimes.llama_library import first_error, load_library
from edgeft.runtimes.repacking import (
    duplicated_bytes,
    is_batch_invariant,
    repacked_tensors,
    uses_amx,
)
from edgeft.weights import gguf_reader
from edgeft.weights.gguf_check import check_runs
from edgeft.weights.gguf_reader import PADDING_KEY

Logits = npt.NDArray[np.float32]
State = npt.NDArray[np.uint8]
"""keys and values of a sequence, in llama.cpp's form"""
BatchToken = tuple[int, int, int]
"""(token id, position, sequence)"""

BATCH_TOKENS = 512
"""tokens that one call of llama_decode takes at most"""
GGML_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 8}
"""name -> ggml_type in ggml.h"""


class LlamaModel:
    """The weights and the metadata of one GGUF file."""

    def __init__(
        self,
        path: Path,
        threads: int | None = None,
        exact: bool = False,
        repack: bool = True,
        kv_type: str = "f16",
        batch_invariant: bool = False,
    ) -> None:
        """`threads`: default all cores of the process. `exact`: contexts compute attention in
        float32, which is slower and takes more memory. `repack`: llama.cpp may copy 4-bit weights
        into an order that it multiplies faster; a file of which it copies some is read, another one mapped.
        `kv_type`: of the cache, a name of `KV_TYPES`. `batch_invariant`: repack nothing whose products
        depend on the number of rows.

        InputError where the file is not a decoder-only language model with a tokenizer, where its
        header holds what llama.cpp would abort this process for, and for a type that its cache
        cannot have.
        """
        try:
            header = gguf_reader.read(path, errors="surrogateescape")
            check_runs(header)
        except InputError as error:
            problem = error.message.removeprefix(str(path)).lstrip(": ")
            raise InputError(f"cannot load {path}: {problem}", error.hint) from None
        self.lib, self.errors = load_library()
        self.kv_type = EXACT_TYPE if exact else KV_TYPES[kv_type]
        """types of the cache"""
        self.score_padding_id = header.meta.get(PADDING_KEY)
        """of a reward model: the token that the score is not read at; None where the file does not say it"""
        self.cache_widths = gguf_widths(header.meta)
        if self.kv_type.is_quantized and (size := head_size(header.meta)) % BLOCK_VALUES:
            raise InputError(
                f"a cache in {kv_type} needs heads of a multiple of {BLOCK_VALUES} values, those of "
                f"{path} have {size}",
                "--kv-type f16",
            )
        self.threads = threads or len(os.sched_getaffinity(0))
        params = self.lib.llama_model_default_params()
        params.use_extra_bufts = (
            repack and not uses_amx() and (not batch_invariant or is_batch_invariant(header))
        )
        if params.use_extra_bufts and repacked_tensors(header):
            # Mapped, both orders of the weights would be in memory.
            params.load_mode = self.lib.LLAMA_LOAD_MODE_NONE
            largest = max((tensor.size for tensor in header.tensors.values()), default=0)
            needed = path.stat().st_size + duplicated_bytes(header) + largest
            machine.preflight(Path(), f"loading {path}", memory=needed)
        self._pointer: Any = None
        with contextlib.ExitStack() as on_error:
            on_error.callback(self.close)
            self.errors.clear()
            with interrupts_deferred():
                self._pointer = self.lib.llama_model_load_from_file(os.fsencode(path), params)
            if not self._pointer:
                message = f"cannot load {path}: {first_error(self.errors)}"
                raise InputError(message, "is the file whole, and a language model?")
            has_tokenizer = self.vocab_type != self.lib.LLAMA_VOCAB_TYPE_NONE
            if not has_tokenizer or self.lib.llama_model_has_encoder(self._pointer):
                raise InputError(f"{path} is not a decoder-only language model with a tokenizer")
            on_error.pop_all()

    @property
    def pointer(self) -> Any:
        """The llama_model; ValueError after `close`, where llama.cpp would crash the process."""
        if not self._pointer:
            raise ValueError("the model is closed")
        return self._pointer

    @property
    def vocab(self) -> Any:
        """The llama_vocab."""
        return self.lib.llama_model_get_vocab(self.pointer)

    @property
    def vocab_type(self) -> int:
        """enum llama_vocab_type of llama.h"""
        return int(self.lib.llama_vocab_type(self.vocab))

    @property
    def training_context(self) -> int:
        """tokens"""
        return int(self.lib.llama_model_n_ctx_train(self.pointer))

    @property
    def width(self) -> int:
        """values of a token's state between two layers"""
        return int(self.lib.llama_model_n_embd(self.pointer))

    @property
    def layers(self) -> int:
        return int(self.lib.llama_model_n_layer(self.pointer))

    @property
    def is_recurrent(self) -> bool:
        """Has the model layers with a state that cannot be rewound to an earlier token?"""
        lib, model = self.lib, self.pointer
        return bool(lib.llama_model_is_recurrent(model) or lib.llama_model_is_hybrid(model))

    def metadata(self, key: str) -> str | None:
        """A short value of the header (at most 15 bytes), None where the header lacks the key."""
        buffer = ctypes.create_string_buffer(16)
        length = self.lib.llama_model_meta_val_str(self.pointer, key.encode(), buffer, 16)
        return buffer.value.decode("utf-8", "replace") if length >= 0 else None

    def context_params(self, cells: int, sequences: int = 1, outputs: int = BATCH_TOKENS) -> Any:
        """llama_context_params for a cache of `cells` tokens, which all `sequences` share in equal
        parts. `outputs`: rows of logits per sequence and call."""
        params = self.lib.llama_context_default_params()
        params.n_ctx, params.n_seq_max = cells, sequences
        params.n_batch = params.n_ubatch = BATCH_TOKENS
        params.n_outputs_max_per_seq = outputs
        params.n_threads = params.n_threads_batch = self.threads
        params.type_k = GGML_TYPES[self.kv_type.keys]
        params.type_v = GGML_TYPES[self.kv_type.values]
        if self.kv_type == EXACT_TYPE:
            params.flash_attn_type = self.lib.LLAMA_FLASH_ATTN_TYPE_DISABLED  # it computes in f16
        return params

    @property
    def head_outputs(self) -> int:
        """Outputs of the model's head for classification, 1 where it has none."""
        return int(self.lib.llama_model_n_cls_out(self.pointer))

    def cache_bytes(self, cells: int) -> int:
        """Bytes of keys and values of `cells` tokens. llama.cpp allocates all of them at the start,
        and the system kills a process that took too many."""
        return kv_bytes(self.cache_widths, cells, self.kv_type)

    def close(self) -> None:
        """Free the weights. Contexts must be closed before."""
        if self._pointer:
            self.lib.llama_model_free(self._pointer)
        self._pointer = None


class LlamaContext:
    """A llama_context: its cache, and one batch for calls of llama_decode."""

    def __init__(self, model: LlamaModel, params: Any) -> None:
        """`params`: from `LlamaModel.context_params`. ResourceError where memory is short."""
        cells = params.n_ctx
        machine.preflight(Path(), f"a context of {cells} tokens", memory=model.cache_bytes(cells))
        self.model, self.lib = model, model.lib
        self._pointer: Any = None
        self._batch: Any = None
        self._logits: tuple[tuple[int | None, int], Logits] | None = None
        with contextlib.ExitStack() as on_error:
            on_error.callback(self.close)
            model.errors.clear()
            with interrupts_deferred():
                self._pointer = self.lib.llama_init_from_model(model.pointer, params)
            if not self._pointer:
                reason = first_error(model.errors)
                raise ResourceError(f"no context of {cells} tokens: {reason}", "lower --context")
            self.batch_tokens = min(BATCH_TOKENS, int(self.lib.llama_n_batch(self._pointer)))
            """tokens that `decode` takes at most"""
            self._batch = self.lib.llama_batch_init(self.batch_tokens, 0, 1)
            self._vocab_size = int(self.lib.llama_vocab_n_tokens(model.vocab))
            on_error.pop_all()

    @property
    def pointer(self) -> Any:
        """The llama_context; ValueError after `close`, where llama.cpp would crash the process."""
        if not self._pointer:
            raise ValueError("the context is closed")
        return self._pointer

    @property
    def _memory(self) -> Any:
        """The llama_memory_t: what the cache holds of which sequence."""
        return self.lib.llama_get_memory(self.pointer)

    def decode(self, tokens: Sequence[BatchToken], outputs: int) -> None:
        """Compute `tokens`, with logits after each of the last `outputs`.

        ValueError for more than `batch_tokens`, EdgeftError where llama.cpp fails.
        """
        context = self.pointer
        if len(tokens) > self.batch_tokens:
            raise ValueError(f"{len(tokens)} tokens in a batch of at most {self.batch_tokens}")
        if not all(0 <= token < self._vocab_size for token, _, _ in tokens):
            raise ValueError(f"a token id beyond the vocabulary of {self._vocab_size}")
        batch, first_output = self._batch, len(tokens) - outputs
        batch.n_tokens = len(tokens)
        for i, (token, position, sequence) in enumerate(tokens):
            batch.token[i], batch.pos[i] = token, position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            batch.logits[i] = i >= first_output
        self.model.errors.clear()
        if code := self.lib.llama_decode(context, batch):
            reason = first_error(self.model.errors) or f"llama_decode returned {code}"
            raise EdgeftError(f"llama.cpp could not run the model: {reason}")

    def logits(self, outputs: int) -> Logits:
        """(outputs, vocabulary) of the last `decode`, in llama.cpp's memory: the next call
        overwrites them."""
        pointer = self.lib.llama_get_logits(self.pointer)
        key = ctypes.cast(pointer, ctypes.c_void_p).value, outputs
        if self._logits is None or self._logits[0] != key:
            shape = outputs, self._vocab_size
            self._logits = key, np.ctypeslib.as_array(pointer, shape)
        return self._logits[1]

    def states(self, outputs: int) -> Logits:
        """(outputs, width): the last layer's states of the last `decode`, in llama.cpp's memory. The
        context must have been made for embeddings, without pooling."""
        pointer = self.lib.llama_get_embeddings(self.pointer)
        return np.ctypeslib.as_array(pointer, (outputs, self.model.width))

    def head_outputs(self, sequence: int, count: int) -> Logits:
        """(count,): what the model's head says of a sequence, after its last token. The context must have been
        made for embeddings, with rank pooling."""
        pointer = self.lib.llama_get_embeddings_seq(self.pointer, sequence)
        return np.ctypeslib.as_array(pointer, (count,))

    def truncate(self, sequence: int, length: int) -> int:
        """Remove all but the first `length` tokens of a sequence; the length that is left.

        0 for a recurrent model that has read further: its state cannot go back.
        """
        memory = self._memory
        if self.lib.llama_memory_seq_rm(memory, sequence, length, -1):
            return length
        self.lib.llama_memory_seq_rm(memory, sequence, -1, -1)
        return 0

    def copy(self, source: int, target: int) -> None:
        """Overwrite one sequence with another."""
        # llama_memory_seq_cp would move the whole part of the cache, and only with the next decode.
        self.restore(target, self.state(source))

    def state(self, sequence: int) -> State:
        """The part of the cache that a sequence uses, for `restore` of another context of this model
        with the same types of keys and values."""
        state = np.empty(self.lib.llama_state_seq_get_size(self.pointer, sequence), np.uint8)
        length = self.lib.llama_state_seq_get_data(
            self.pointer, _bytes_of(state), len(state), sequence
        )
        return state[:length]

    def restore(self, sequence: int, state: State) -> None:
        """Overwrite a sequence with a `state`. EdgeftError where it does not fit into the cache."""
        self.model.errors.clear()
        if not self.lib.llama_state_seq_set_data(
            self.pointer, _bytes_of(state), len(state), sequence
        ):
            raise EdgeftError(f"llama.cpp took no state: {first_error(self.model.errors)}")

    def keep_only(self, sequence: int) -> None:
        """Remove all other sequences."""
        self.lib.llama_memory_seq_keep(self._memory, sequence)

    def clear(self) -> None:
        """Remove all sequences."""
        self.lib.llama_memory_clear(self._memory, False)

    def close(self) -> None:
        if self._batch:
            self.lib.llama_batch_free(self._batch)
        if self._pointer:
            self.lib.llama_free(self._pointer)
        self._pointer = self._batch = self._logits = None


def _bytes_of(state: State) -> Any:
    return state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))


@contextlib.contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Raise KeyboardInterrupt after the block for a signal that comes in it: raised inside llama.cpp's
    log callback, the exception would be lost."""
    signals = [n for n in (signal.SIGINT, signal.SIGTERM) if callable(signal.getsignal(n))]
    if threading.current_thread() is not threading.main_thread():
        signals = []
    received: list[int] = []
    handlers = [signal.signal(n, lambda number, _: received.append(number)) for n in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, handlers, strict=True):
            signal.signal(number, handler)
    if received:
        raise KeyboardInterrupt
