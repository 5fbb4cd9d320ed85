"""A GGUF file -> a copy with other metadata or other tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def rewritten_gguf(
    source: Path, out: Path, changes: dict[str, Any], tensors: dict[str, Any] | None = None
) -> Path:
    """A copy of a GGUF file with other metadata (None removes a key) or other arrays of its tensors."""
    from gguf import GGUFReader, GGUFValueType, GGUFWriter

    reader, writer = GGUFReader(source), GGUFWriter(out, "")
    writer.kv_data[0].clear()
    values = {
        name: (field.contents(), *field.types)
        for name, field in reader.fields.items()
        if not name.startswith("GGUF.")
    }
    for name, value in changes.items():
        if value is None:
            values.pop(name, None)
            continue
        types = (GGUFValueType.get_type(value),)
        if isinstance(value, list):
            types = (GGUFValueType.ARRAY, GGUFValueType.get_type(value[0]))
        kept = values.get(name, ())[1:]
        same = kept and kept[0] == GGUFValueType.UINT32 and types[0] == GGUFValueType.INT32
        values[name] = (value, *(kept if same and value >= 0 else types))
    for name, (value, *types) in values.items():
        writer.add_key_value(name, value, *types)
    for tensor in reader.tensors:
        data = (tensors or {}).get(tensor.name)
        writer.add_tensor(
            tensor.name, tensor.data if data is None else data,
            raw_dtype=tensor.tensor_type if data is None else None,
        )  # fmt: skip
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out
