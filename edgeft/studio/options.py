"""The options of the studio. The string after a field is the help of its option."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class StudioOptions:
    """What is opened and where it listens: the options of `edgeft studio`."""

    workspace: Path = Path("studio")
    """Folder for data, adapters, artifacts and reports; it is created. Paths on the page are relative to it."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 8500
    """Port to listen on; 0 = a free one."""
    key_file: Path | None = None
    """File with the key that a browser must send. Default: a random one, kept in WORKSPACE/.studio/key."""
    allow_host: tuple[str, ...] = ()
    """Name in the Host header that is accepted, besides localhost, addresses and this machine's name;
    repeatable."""
    max_upload: int = 2_000_000_000
    """Size of an uploaded file at most, such as 500M."""
    browser: bool = True
    """Open the page in the default browser, or only print its address."""
