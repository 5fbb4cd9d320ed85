"""What `--base` names (an embedded model, a folder, a GGUF file, a hub id) -> a base folder."""

from edgeft.base.gguf_import import import_gguf
from edgeft.base.resolve import resolve_base

__all__ = ["import_gguf", "resolve_base"]
