"""What autograd saves for the backward pass -> a file until it is needed; on a GPU the host's memory.

    with OffloadedActivations(model, folder):
        loss = model(**batch).loss
        loss.backward()

The values are the same bits, so losses and gradients are, too. Weights stay where they are, and so do
tensors below `SMALLEST_BYTES`. torch's `save_on_cpu` would copy weights as well.
Hooks: https://docs.pytorch.org/docs/stable/autograd.html#saved-tensors-hooks-doc
"""

# Imported only when a run starts, after the check for the extra.
# ruff: noqa: TID253

from __future__ import annotations

import os
import tempfile
import weakref
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.multiprocessing.reductions import StorageWeakRef

SMALLEST_BYTES = 1 << 16
"""of a tensor's memory that is moved; smaller ones are most of the calls and little of the bytes"""


class Block:
    """The bytes of a tensor's memory while they lie elsewhere."""

    def __init__(self, storage: Any, place: Any) -> None:
        # Its address is not used again while this reference lives.
        self.reference = StorageWeakRef(storage)
        self.place = place


class View(NamedTuple):
    """A saved tensor: a view of a block."""

    block: Block
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int


class OffloadedActivations(torch.autograd.graph.saved_tensors_hooks):  # type: ignore[misc]
    """Moves what is saved inside the context; memory that several tensors share is moved once."""

    def __init__(self, model: Any, folder: Path, smallest_bytes: int | None = None) -> None:
        """`folder`: where the file lies on a CPU. It has no name, and ends with this object."""
        weights = (*model.parameters(), *model.buffers())
        self.device = next(model.parameters()).device
        self.smallest_bytes = SMALLEST_BYTES if smallest_bytes is None else smallest_bytes
        self._weights = {weight.untyped_storage()._cdata for weight in weights}
        self._blocks: weakref.WeakValueDictionary[int, Block] = weakref.WeakValueDictionary()
        self._store = File(folder) if self.device.type == "cpu" else HostMemory(self.device)
        super().__init__(self._pack, self._unpack)

    def _pack(self, tensor: torch.Tensor) -> Any:
        if not self._moves(tensor):
            return tensor
        storage = tensor.untyped_storage()
        # Autograd forbids a change of memory that is saved, so a block that lives is up to date.
        block = self._blocks.get(storage._cdata)
        if block is None:
            if not self._blocks:
                self._store.clear()
            block = Block(storage, self._store.put(_bytes_of(storage)))
            self._blocks[storage._cdata] = block
        return View(block, tensor.dtype, tensor.shape, tensor.stride(), tensor.storage_offset())

    def _unpack(self, saved: Any) -> torch.Tensor:
        if not isinstance(saved, View):
            tensor: torch.Tensor = saved
            return tensor
        storage = self._store.get(saved.block.place).untyped_storage()
        whole = torch.empty(0, dtype=saved.dtype, device=storage.device)
        return whole.set_(storage, saved.offset, saved.shape, saved.strides)

    def _moves(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is an activation on the model's device, and large enough."""
        if tensor.device != self.device or tensor.layout != torch.strided:
            return False
        storage = tensor.untyped_storage()
        return storage.nbytes() >= self.smallest_bytes and storage._cdata not in self._weights


class File:
    """Bytes in a file. The kernel writes its pages to the disk where memory is short."""

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._end = 0

    def put(self, values: torch.Tensor) -> tuple[int, int]:
        """uint8 values -> (offset, size)."""
        rest, offset = memoryview(values.numpy()), self._end
        while rest:
            written = os.pwrite(self._file.fileno(), rest, self._end)
            rest, self._end = rest[written:], self._end + written
        return offset, values.numel()

    def get(self, place: tuple[int, int]) -> torch.Tensor:
        """uint8 values in new memory."""
        offset, size = place
        values = torch.empty(size, dtype=torch.uint8)
        rest = memoryview(values.numpy())
        while rest:
            count = os.preadv(self._file.fileno(), [rest], offset)
            rest, offset = rest[count:], offset + count
        return values

    def clear(self) -> None:
        """Forget all. Pages that were not written to the disk yet need not be any more."""
        self._end = 0
        self._file.truncate(0)


class HostMemory:
    """Bytes of a GPU in the host's memory."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def put(self, values: torch.Tensor) -> torch.Tensor:
        return values.cpu()

    def get(self, place: torch.Tensor) -> torch.Tensor:
        return place.to(self.device)

    def clear(self) -> None:
        """Nothing: each block's memory ends with it."""


def _bytes_of(storage: Any) -> torch.Tensor:
    """The memory of a tensor as uint8 values, not copied."""
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
