"""A file of torch.save (.bin, .pt, .pth) -> where its tensors lie in it, without unpickling it.

    tensors = read_pickled(Path("pytorch_model.bin"))
    tensors["model.norm.weight"]    # PickledTensor: type, shape, byte offset in the file

`Checkpoint` opens such a file like one of safetensors and reads rows of it by mmap. Python's pickle is
not used. The program in the file is followed here, opcode by opcode, and it can make nothing but
numbers, texts, lists, dicts and tensors. The name of any other class or function ends it.

Both layouts are read: the zip archive of torch 1.6 and later, and the stream before it.
https://github.com/pytorch/pytorch/blob/v2.6.0/torch/serialization.py
"""

from __future__ import annotations

import io
import math
import pickletools
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from edgeft.errors import InputError

MAX_PROGRAM_BYTES = 64_000_000
"""pickled names, shapes and places of the tensors, without their values"""
MAX_OPCODES = 8_000_000
"""in one file; a tensor takes about 40"""
SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
"""of the files that torch.save writes"""
WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
"""keys under which training programs save the tensors beside other things"""

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_STORAGES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8",
    "ByteStorage": "U8", "BoolStorage": "BOOL",
}  # fmt: skip
"""class in torch -> safetensors' name of the type"""
_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1,
               "BOOL": 1}  # fmt: skip
_GLOBALS = {
    "collections.OrderedDict", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter",
    *(f"torch.{name}" for name in _STORAGES),
}  # fmt: skip
"""all that a file may name"""


class PickledTensor(NamedTuple):
    """Where a tensor is stored."""

    dtype: str
    """safetensors' name: F32, F16, BF16, …"""
    shape: tuple[int, ...]
    offset: int
    """bytes from the start of the file"""
    strides: tuple[int, ...]
    """values from one index to the next, for each dimension; () = in C order"""


class _Global(NamedTuple):
    name: str


class _Storage(NamedTuple):
    """A storage that a tensor is a view of."""

    key: str
    dtype: str
    values: int


class _View(NamedTuple):
    """A tensor before the place of its storage is known."""

    storage: _Storage
    offset: int
    """values from the start of the storage"""
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def is_pickled(file: Path) -> bool:
    """Whether the name is that of a file of torch.save."""
    return file.suffix in SUFFIXES


def read_pickled(file: Path) -> dict[str, PickledTensor]:
    """Name -> tensor. Tensors below one of WRAPPERS are named without it.

    InputError for a file that is damaged, that holds no tensors, or that names anything else.
    """
    try:
        views, places = _read_zip(file) if zipfile.is_zipfile(file) else _read_legacy(file)
        size = file.stat().st_size
        return {name: _tensor(view, places, size) for name, view in views.items()}
    except _Refused as error:
        raise InputError(f"{file} {error}", "save it again as safetensors") from None
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, EOFError,
            zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:  # fmt: skip
        raise InputError(
            f"{file} is not a file of torch.save, or it is damaged: {str(error)[:100]!r}",
            "download it again, or save it as safetensors",
        ) from None


class _Refused(Exception):
    """What a file holds that is not read."""


def _read_zip(file: Path) -> tuple[dict[str, _View], dict[str, tuple[int, int]]]:
    """(tensors, key of a storage -> (byte offset, bytes)) of a file of torch 1.6 and later."""
    with zipfile.ZipFile(file) as archive, file.open("rb") as stream:
        members = {info.filename: info for info in archive.infolist()}
        root = next((n.removesuffix("data.pkl") for n in members if n.endswith("/data.pkl")), None)
        if root is None:
            raise _Refused("is a zip archive without tensors of torch.save")
        if any(info.compress_type != zipfile.ZIP_STORED for info in members.values()):
            raise _Refused("is compressed, which torch.save never does")
        order = members.get(f"{root}byteorder")
        if order and _member(stream, order) != b"little":
            raise _Refused("was saved on a big-endian machine")
        program = _member(stream, members[f"{root}data.pkl"])
        storages = f"{root}data/"
        places = {
            name.removeprefix(storages): (_place(stream, info), info.file_size)
            for name, info in members.items()
            if name.startswith(storages)
        }
    return _tensors(_Program(io.BytesIO(program), iter(range(MAX_OPCODES))).run()), places


def _member(stream: BinaryIO, info: zipfile.ZipInfo) -> bytes:
    if info.file_size > MAX_PROGRAM_BYTES:
        raise _Refused(f"describes its tensors in {info.file_size} bytes")
    stream.seek(_place(stream, info))
    return stream.read(info.file_size)


def _place(stream: BinaryIO, info: zipfile.ZipInfo) -> int:
    """Byte offset of a stored member: after its local header, name and padding."""
    if info.header_offset < 0:  # the directory says that more lies before it than does
        raise zipfile.BadZipFile("a member begins before the file")
    stream.seek(info.header_offset)
    header = stream.read(30)
    if header[:4] != b"PK\x03\x04":
        raise zipfile.BadZipFile(f"no member at {info.header_offset}")
    lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    return info.header_offset + 30 + lengths


def _read_legacy(file: Path) -> tuple[dict[str, _View], dict[str, tuple[int, int]]]:
    """As `_read_zip`, of a file of older versions: five pickles, then the storages one by one."""
    with file.open("rb") as stream:
        head, budget = io.BytesIO(stream.read(MAX_PROGRAM_BYTES)), iter(range(MAX_OPCODES))
        magic, version, system = (_Program(head, budget).run() for _ in range(3))
        if magic != _LEGACY_MAGIC or version != 1001:
            raise ValueError("it does not begin as one")
        if system["little_endian"] is not True:
            raise _Refused("was saved on a big-endian machine")
        program = _Program(head, budget)
        views, keys = _tensors(program.run()), _Program(head, budget).run()
        stream.seek(head.tell())
        places = {}
        for key in keys:
            values = int.from_bytes(stream.read(8), "little")
            bytes_ = values * _ITEM_BYTES[program.storages[key].dtype]
            places[key] = (stream.tell(), bytes_)
            stream.seek(bytes_, io.SEEK_CUR)
    return views, places


def _tensors(value: Any) -> dict[str, _View]:
    """Name -> tensor of the object in a file: a dict of tensors, or one below a wrapper's key."""
    if not isinstance(value, dict):
        raise _Refused("holds no dict of tensors")
    for key in WRAPPERS:
        if isinstance(value.get(key), dict):
            return _tensors(value[key])
    views = {key: view for key, view in value.items() if isinstance(view, _View)}
    if not views or not all(isinstance(key, str) for key in views):
        raise _Refused("holds no dict of tensors")
    return views


def _tensor(view: _View, places: dict[str, tuple[int, int]], file_bytes: int) -> PickledTensor:
    """Checks that a tensor lies inside its storage, and the storage inside the file."""
    storage, item = view.storage, _ITEM_BYTES[view.storage.dtype]
    start, size = places[storage.key]
    if storage.values * item > size or start + size > file_bytes:
        raise ValueError(f"storage {storage.key} is cut off")
    steps = [(n - 1) * stride for n, stride in zip(view.shape, view.strides, strict=True)]
    values = math.prod(view.shape)
    end = view.offset + (sum(steps) + 1 if values else 0)
    if max(end, values) > storage.values or max(view.shape, default=0) >= 1 << 31:
        raise ValueError(f"a tensor {view.shape} of {storage.values} values")
    contiguous = all(
        n == 1 or stride == math.prod(view.shape[i + 1 :])
        for i, (n, stride) in enumerate(zip(view.shape, view.strides, strict=True))
    )
    offset = start + view.offset * item
    return PickledTensor(storage.dtype, view.shape, offset, () if contiguous else view.strides)


class _Program:
    """One pickle, followed with a stack, as Python's own machine does it.

    https://github.com/python/cpython/blob/v3.13.0/Lib/pickletools.py describes the opcodes.
    """

    def __init__(self, stream: BinaryIO, budget: Iterator[int]) -> None:
        """`budget` yields once for every opcode that may be followed."""
        self._stream, self._budget = stream, budget
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self.storages: dict[str, _Storage] = {}
        """key -> storage that a tensor named"""

    def run(self) -> Any:
        for opcode, argument, _ in pickletools.genops(self._stream):
            if next(self._budget, None) is None:
                raise _Refused(f"describes its tensors in over {MAX_OPCODES} steps")
            if opcode.name == "STOP":
                return self._stack.pop()
            action = _ACTIONS.get(opcode.name)
            if action is None:
                raise _Refused(f"uses {opcode.name} of pickle, and not tensors alone")
            action(self, argument)
        raise EOFError("it has no end")

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def pop(self) -> Any:
        return self._stack.pop()

    def pop_to_mark(self) -> list[Any]:
        mark = self._marks.pop()
        values = self._stack[mark:]
        del self._stack[mark:]
        return values

    def mark(self, _: Any) -> None:
        self._marks.append(len(self._stack))

    def put(self, index: int) -> None:
        self._memo[int(index)] = self._stack[-1]

    def memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def get(self, index: int) -> None:
        self.push(self._memo[int(index)])

    def tuple_of(self, count: int) -> None:
        values = tuple(self._stack[-count:])
        del self._stack[-count:]
        self.push(values)

    def append(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, list):
            raise TypeError("an item of no list")
        target += values

    def set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict):
            raise TypeError("an item of no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, (str, int)):  # the hash of nested tuples can take for ever
                raise TypeError("a key is no text")
            target[key] = value

    def global_(self, name: str) -> None:
        if name not in _GLOBALS:
            raise _Refused(f"names {ascii(name)[1:-1][:80]}, and not tensors alone")
        self.push(_Global(name))

    def stack_global(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise TypeError("a name is no text")
        self.global_(f"{module}.{name}")

    def reduce(self, _: Any) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, _Global) or not isinstance(arguments, tuple):
            raise TypeError("a call of no function")
        if function.name == "collections.OrderedDict":
            self.push(_ordered_dict(*arguments))
        elif function.name == "torch._utils._rebuild_tensor_v2":
            self.push(_view(*arguments))
        elif function.name == "torch._utils._rebuild_parameter":
            data = arguments[0]
            self.push(
                _view(*data) if isinstance(data, _View) else _fail("a parameter of no tensor")
            )
        else:
            raise TypeError("a storage is no function")

    def build(self, _: Any) -> None:
        """State of an OrderedDict: the versions of the modules in `_metadata`, not needed here."""
        self.pop()
        if not isinstance(self._stack[-1], dict):
            raise TypeError("a state of no dict")

    def persistent_id(self, _: Any) -> None:
        tag, cls, key, _device, values, *views = self.pop()
        if tag != "storage" or not isinstance(cls, _Global) or not isinstance(key, str):
            raise TypeError("a reference to no storage")
        if any(view is not None for view in views):
            raise _Refused("holds views of storages")
        storage = _Storage(key, _STORAGES[cls.name.removeprefix("torch.")], _count(values))
        if self.storages.setdefault(key, storage).dtype != storage.dtype:
            raise TypeError(f"storage {key} has two types")
        self.push(storage)


def _fail(problem: str) -> Any:
    raise TypeError(problem)


def _ordered_dict(items: list[Any] | tuple[Any, ...] = ()) -> dict[Any, Any]:
    """OrderedDict(), or as Python 2 pickled it: OrderedDict([[key, value], …])."""
    pairs = [(key, value) for key, value in items]
    if not all(isinstance(key, (str, int)) for key, _ in pairs):
        raise TypeError("a key is no text")
    return dict(pairs)


def _view(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _View:
    """`torch._utils._rebuild_tensor_v2`, or a view again."""
    if not isinstance(storage, _Storage) or not len(shape) == len(strides) <= 8:
        raise TypeError("a tensor of no storage")
    return _View(storage, _count(offset), tuple(map(_count, shape)), tuple(map(_count, strides)))


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise TypeError("a size is no number")
    return value


def _constant(make: Callable[[], Any]) -> Callable[[_Program, Any], None]:
    return lambda program, _: program.push(make())


def _value(program: _Program, argument: Any) -> None:
    program.push(argument)


def _nothing(program: _Program, argument: Any) -> None:
    pass


_ACTIONS: dict[str, Callable[[_Program, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME"), _nothing),
    **dict.fromkeys(
        ("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "UNICODE",
         "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING", "STRING"),
        _value,
    ),
    "NONE": _constant(lambda: None),
    "NEWTRUE": _constant(lambda: True),
    "NEWFALSE": _constant(lambda: False),
    "EMPTY_DICT": _constant(dict),
    "EMPTY_LIST": _constant(list),
    "EMPTY_TUPLE": _constant(tuple),
    "MARK": _Program.mark,
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Program.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Program.get),
    "MEMOIZE": _Program.memoize,
    "POP": lambda program, _: program.pop(),
    "TUPLE": lambda program, _: program.push(tuple(program.pop_to_mark())),
    "TUPLE1": lambda program, _: program.tuple_of(1),
    "TUPLE2": lambda program, _: program.tuple_of(2),
    "TUPLE3": lambda program, _: program.tuple_of(3),
    "LIST": lambda program, _: program.push(program.pop_to_mark()),
    "APPEND": lambda program, _: program.append([program.pop()]),
    "APPENDS": lambda program, _: program.append(program.pop_to_mark()),
    "DICT": lambda program, _: _dict(program),
    "SETITEM": lambda program, _: program.set_items([program.pop(), program.pop()][::-1]),
    "SETITEMS": lambda program, _: program.set_items(program.pop_to_mark()),
    "GLOBAL": lambda program, name: program.global_(".".join(name.split(" ", 1))),
    "STACK_GLOBAL": _Program.stack_global,
    "REDUCE": _Program.reduce,
    "BUILD": _Program.build,
    "BINPERSID": _Program.persistent_id,
}  # fmt: skip
"""opcode -> what it does; any other is refused"""


def _dict(program: _Program) -> None:
    items = program.pop_to_mark()
    program.push({})
    program.set_items(items)
