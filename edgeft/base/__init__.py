"""What `--base` names -> a base folder: a path, a hub id, an embedded model or a GGUF file."""

from edgeft.base.gguf_import import import_gguf

__all__ = ["import_gguf"]
