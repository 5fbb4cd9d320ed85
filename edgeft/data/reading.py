"""A data file of any common kind -> its rows, or its text; decided by its first bytes, then its name.

for number, row in read_rows(Path("chats.jsonl.gz")): ...

Rows come from JSON (an array, JSONL, or an object that holds the rows), CSV, TSV, Parquet and Arrow.
gzip, bzip2, xz and zstd are unpacked on the way. Text is UTF-8, UTF-16 or UTF-32.
"""

from __future__ import annotations

import bz2
import contextlib
import csv
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, AnyStr

from edgeft.data.fields import is_empty
from edgeft.data.shapes import is_row
from edgeft.errors import DataError, InputError, require

Rows = Iterator[tuple[int, Any]]
"""(number from 1, value): the line in JSONL and CSV, else the place; a DataError for a broken line"""

ROW_SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".feather")
COMPRESSED_SUFFIXES = (".gz", ".bz2", ".xz", ".zst")
HEAD_BYTES = 512
"""bytes at the beginning that tell the kind of a file"""
MAX_UNPACKED_BYTES = 2**27
"""of a compressed file whose text must be read at once, and of any line"""
MAX_CELL_CHARS = 2**28
"""of a CSV"""
NO_TABLES = {"dataset_info.json", "state.json", "dataset_dict.json", "dataset_infos.json"}
"""files about a dataset that datasets writes beside it"""
REFUSED = (
    (0, b"PK\x03\x04", "a zip archive or an Office file", "unpack it, or save the sheet as CSV UTF-8"),
    (0, b"\xd0\xcf\x11\xe0", "an old Office file", "save the sheet as CSV UTF-8"),
    (0, b"%PDF-", "a PDF", "write its text as rows of JSONL"),
    (0, b"GGUF\x02\0\0\0", "a GGUF model", "name a data file"),
    (0, b"GGUF\x03\0\0\0", "a GGUF model", "name a data file"),
    (6, b'\0\0{"', "a safetensors file", "name a data file"),
    (0, b"\x89HDF", "an HDF5 file", "save it as JSONL or Parquet"),
    (0, b"SQLite format 3\0", "an SQLite database", "export the table as CSV"),
    (0, b"\x93NUMPY", "a NumPy array", "edgeft reads text, not tokens"),
    (0, b"7z\xbc\xaf", "a 7z archive", "unpack it"),
    (0, b"Rar!\x1a\x07", "a RAR archive", "unpack it"),
    (257, b"ustar\0", "a tar archive", "unpack it"),
    (257, b"ustar  \0", "a tar archive", "unpack it"),
    (0, b"Obj\x01", "an Avro file", "save it as JSONL or Parquet"),
    (0, b"version https://git-lfs", "a pointer of Git LFS", "fetch the file: git lfs pull"),
    *((0, b"\x80" + bytes([v]), "a pickle, which runs code when it is read",
       "save it as JSONL or Parquet") for v in (2, 3, 4, 5)),
)  # fmt: skip
"""(offset, bytes there, what such a file is, remedy)"""


def holds_rows(path: Path) -> bool:
    """Whether a file's name is that of rows, and not of plain text, a manifest or a bill of materials."""
    is_record = path.name in NO_TABLES or path.name.endswith(("manifest.json", ".cdx.json"))
    return _unpacked_suffix(path) in ROW_SUFFIXES and not is_record


def _unpacked_suffix(path: Path) -> str:
    """The suffix of a name, in lower case; of chats.csv.gz it is .csv."""
    packed = path.suffix.lower() in COMPRESSED_SUFFIXES
    return (path.with_suffix("") if packed else path).suffix.lower()


def read_rows(path: Path) -> Rows:
    """The rows of a file. InputError for another kind of file, and DataError for a broken one."""
    with _reported(path), _opened(path) as file:
        head = _head(path, file)
        if head.startswith(b"PAR1"):
            yield from _parquet_rows(path, file)
        elif head.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
            yield from _arrow_rows(path, file, stream=not head.startswith(b"ARROW1"))
        else:
            text = _decoded(file, head)
            if "\0" in head.decode(text.encoding, "ignore"):
                raise InputError(f"{path} is a binary file", "JSONL, JSON, CSV, Parquet or Arrow")
            tabular = _unpacked_suffix(path) in (".csv", ".tsv")
            yield from _csv_rows(path, text) if tabular else _json_rows(path, text)


def read_text(path: Path) -> str:
    """The text of a file, without its byte order mark. InputError for a file that is no text."""
    with _reported(path), _opened(path) as file:
        return _read_all(path, _decoded(file, _head(path, file)))


@contextlib.contextmanager
def _reported(path: Path) -> Iterator[None]:
    """What the readers raise for broken files becomes an InputError."""
    try:
        yield
    except UnicodeDecodeError as error:
        name = error.encoding.upper()
        raise InputError(f"{path} is not {name}: {error}", "save it as UTF-8") from None
    except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        raise InputError(
            f"{path} cannot be read: {error}", "check it, or download it again"
        ) from None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file, unpacked and seekable."""
    with path.open("rb") as file:
        head = file.read(8)
        file.seek(0)
        if head.startswith(b"\x1f\x8b"):
            with gzip.GzipFile(fileobj=file) as unpacked:
                yield unpacked  # type: ignore[misc]
        elif head.startswith(b"BZh") and head[4:8] == b"1AY&":
            with bz2.BZ2File(file) as unpacked:
                yield unpacked
        elif head.startswith(b"\xfd7zXZ\x00"):
            with lzma.LZMAFile(file) as unpacked:
                yield unpacked
        elif head.startswith(b"\x28\xb5\x2f\xfd"):
            pyarrow = require("pyarrow", "data")
            stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(file), "zstd")
            yield io.BytesIO(_at_most(path, stream.read(MAX_UNPACKED_BYTES + 1)))
        else:
            yield file


def _head(path: Path, file: IO[bytes]) -> bytes:
    """The first bytes of a file. InputError where they are those of a kind without rows."""
    head = file.read(HEAD_BYTES)
    file.seek(0)
    for offset, magic, what, remedy in REFUSED:
        if head[offset:].startswith(magic):
            raise InputError(f"{path} is {what}", remedy)
    return head


def _decoded(file: IO[bytes], head: bytes) -> io.TextIOWrapper:
    """The bytes as text, line ends as \\n. JSON's rule finds UTF-16 and UTF-32 (RFC 4627, 3)."""
    encoding = json.detect_encoding(head[:4])
    encoding = "utf-8-sig" if encoding == "utf-8" else encoding
    return io.TextIOWrapper(file, encoding=encoding)


def _read_all(path: Path, text: io.TextIOWrapper) -> str:
    """The rest of a text. InputError for a compressed one that is too large to be held at once."""
    if _is_plain(text):
        return text.read()
    return _at_most(path, text.read(MAX_UNPACKED_BYTES + 1))


def _is_plain(text: io.TextIOWrapper) -> bool:
    """Whether a text is as large as its file."""
    return isinstance(text.buffer, io.BufferedReader)


def _at_most(path: Path, content: AnyStr) -> AnyStr:
    if len(content) > MAX_UNPACKED_BYTES:
        raise _too_large(path)
    return content


def _too_large(path: Path) -> InputError:
    return InputError(f"{path} holds more than 128 MiB", "unpack it, as JSONL")


def _csv_rows(path: Path, text: io.TextIOWrapper) -> Rows:
    """Rows of a CSV or TSV with a header; the delimiter is the header's commonest of , ; and tab."""
    csv.field_size_limit(MAX_CELL_CHARS)
    header = next((line for line in text if line.strip()), "")
    if declared := re.fullmatch(r"sep=(.)\s*", header):  # Excel's own line above the header
        header = next(text, "")
    delimiter = declared[1] if declared else max(",;\t", key=header.count)
    reader = csv.reader(_chained(header, text), delimiter=delimiter)
    try:
        names = next(reader, [])
        if len(set(names)) < len(names):
            raise InputError(
                f"{path} has two columns of one name", f"its header is {header[:80]!r}"
            )
        line = reader.line_num + 1
        for cells in reader:
            if len(cells) > len(names):
                problem = f"{len(cells)} cells where the header has {len(names)}"
                yield line, DataError(path, line, problem, 'put a text with a comma in "…"')
            elif cells:
                yield line, dict(zip(names, cells, strict=False))
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(path, reader.line_num, f"not CSV: {error}") from None


def _chained(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _json_rows(path: Path, text: io.TextIOWrapper) -> Rows:
    """Rows of JSON or JSONL. A text that is neither is read as JSONL, whose lines are then broken."""
    before = ""
    for line in iter(lambda: text.readline(MAX_UNPACKED_BYTES), ""):
        if len(line) == MAX_UNPACKED_BYTES and not _is_plain(text):
            raise _too_large(path)
        if line.strip():
            if line.lstrip().startswith("[") or isinstance(_json(line), ValueError):
                yield from _whole_json_rows(path, before + line + _read_all(path, text))
            else:
                yield from _first_and_lines(path, before.count("\n") + 1, line, text)
            return
        before += line


def _first_and_lines(path: Path, number: int, line: str, text: io.TextIOWrapper) -> Rows:
    """JSONL from its first line with a text on. A lone object may hold the rows."""
    rest = enumerate(iter(lambda: text.readline(MAX_UNPACKED_BYTES), ""), start=number + 1)
    second = next(((n, other) for n, other in rest if other.strip()), None)
    if second is None:
        yield from _rows_of_objects(path, [(number, _json(line))])
        return
    yield number, _json(line)
    yield from _lines(path, [second])
    yield from _lines(path, rest)


def _lines(path: Path, lines: Any) -> Rows:
    for number, line in lines:
        if line.strip():
            value = _json(line)
            if isinstance(value, ValueError):
                hint = "one JSON object per line"
                yield number, DataError(path, number, f"not JSON: {value}", hint)
            else:
                yield number, value


def _json(text: str) -> Any:
    """The value of a JSON text, or the ValueError that says why there is none."""
    try:
        return json.loads(text)
    except ValueError as error:
        return error
    except RecursionError as error:
        return ValueError(str(error))


def _whole_json_rows(path: Path, text: str) -> Rows:
    """Rows of an array, of one object over many lines, or of several such objects in a row."""
    if text.lstrip().startswith("["):
        value = _json(text)
        if isinstance(value, ValueError):
            line = getattr(value, "lineno", 1)
            raise DataError(path, line, f"not JSON: {value}")
        yield from enumerate(value, start=1)
        return
    if text.lstrip()[:9].lower().startswith(("<!doctype", "<html")):
        raise InputError(f"{path} is a web page", "download the file, not the page about it")
    try:
        values = _objects(text)
    except ValueError as error:
        lines = text.split("\n")
        if not any(isinstance(_json(line), dict) for line in lines):
            number = getattr(error, "lineno", 1)
            hint = "one JSON object per line"
            hint += "" if holds_rows(path) else "; --objective pretrain learns plain text"
            raise DataError(path, number, f"not JSON: {error}", hint) from None
        yield from _lines(path, enumerate(lines, start=1))
        return
    yield from _rows_of_objects(path, values)


def _objects(text: str) -> list[tuple[int, Any]]:
    """(line, value) of each of the values that a text consists of. ValueError for anything else."""
    decoder, values, place = json.JSONDecoder(), [], 0
    try:
        while (start := re.compile(r"\s*").match(text, place).end()) < len(text):  # type: ignore[union-attr]
            value, place = decoder.raw_decode(text, start)
            values.append((text.count("\n", 0, start) + 1, value))
    except RecursionError as error:
        raise ValueError(str(error)) from None
    return values


def _rows_of_objects(path: Path, values: list[tuple[int, Any]]) -> Rows:
    if len(values) == 1 and isinstance(values[0][1], dict):
        rows = _rows_in(path, values[0][1])
        if rows is not None:
            yield from enumerate(rows, start=1)
            return
    yield from values


def _rows_in(path: Path, holder: dict[str, Any]) -> list[Any] | None:
    """The rows that an object holds, None where it is a row itself. InputError for several lists.

    Known are {"data": [row, …]} under any name, the hub viewer's {"rows": [{"row": row}]}, pandas'
    {"column": {"0": cell}}, and a table as {"column": [cell, …]}.
    """
    viewer = holder.get("rows")
    if isinstance(viewer, list) and viewer and all(_is_viewer_row(entry) for entry in viewer):
        cut = DataError(path, 1, "the viewer cut off its cells", "download the data file itself")
        return [cut if entry.get("truncated_cells") else entry["row"] for entry in viewer]
    columns = list(holder.values())
    if len(columns) < 2 or any(is_empty(column) or _has_turns(column) for column in columns):
        columns = []
    if columns and all(isinstance(c, dict) and c.keys() == columns[0].keys() for c in columns):
        return [{name: c[key] for name, c in holder.items()} for key in columns[0]]
    plain = all(isinstance(c, list) and not _is_list_of_objects(c) for c in columns)
    if columns and plain and all(len(c) == len(columns[0]) for c in columns):
        return [dict(zip(holder, cells, strict=True)) for cells in zip(*columns, strict=True)]
    if is_row(holder):
        return None
    lists = {key: value for key, value in holder.items() if _is_list_of_objects(value)}
    if len(lists) > 1:
        raise InputError(
            f"{path} holds several lists of rows: {', '.join(map(repr, lists))}",
            "save one of them as a file",
        )
    return next(iter(lists.values()), None)


def _is_viewer_row(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("row"), dict)


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(e, dict) for e in value)


def _has_turns(value: Any) -> bool:
    """Whether a column is the list of turns, or of tools, of a single row."""
    keys = {"role", "from", "author", "function", "parameters"}
    return _is_list_of_objects(value) and any(keys & entry.keys() for entry in value)


def _parquet_rows(path: Path, file: IO[bytes]) -> Rows:
    """The rows of a Parquet file, one row group at a time."""
    pyarrow = require("pyarrow", "data")
    parquet = require("pyarrow.parquet", "data")
    try:
        batches = parquet.ParquetFile(file).iter_batches(batch_size=1024)
        yield from _batch_rows(batches)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path} is a broken Parquet file: {_first_line(error)}") from None


def _arrow_rows(path: Path, file: IO[bytes], stream: bool) -> Rows:
    """The rows of an Arrow file: a stream, as datasets saves it, or a file (Feather)."""
    pyarrow, ipc = require("pyarrow", "data"), require("pyarrow.ipc", "data")
    try:
        reader = ipc.open_stream(file) if stream else ipc.open_file(file)
        batches = reader if stream else map(reader.get_batch, range(reader.num_record_batches))
        yield from _batch_rows(batches)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path} is a broken Arrow file: {_first_line(error)}") from None


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]


def _batch_rows(batches: Any) -> Rows:
    number = 0
    for batch in batches:
        for row in batch.to_pylist():
            number += 1
            yield number, _without_nulls(row)


def _without_nulls(value: Any) -> Any:
    """A value without the nulls that Arrow puts where another row has a key and this one has none."""
    if isinstance(value, dict):
        return {key: _without_nulls(entry) for key, entry in value.items() if entry is not None}
    return [_without_nulls(entry) for entry in value] if isinstance(value, list) else value
