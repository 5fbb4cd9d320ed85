"""Takes a folder or an address, gives it to the person's desktop, where the studio runs on one."""

from __future__ import annotations

import os
import webbrowser
from pathlib import Path

SCREENS = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
"""environment variables of which a desktop sets one"""


def has_desktop() -> bool:
    return any(os.environ.get(name) for name in SCREENS)


def open_address(address: str) -> bool:
    """Open a page in the default browser; whether a program for it was started."""
    return has_desktop() and webbrowser.open(address)


def open_folder(path: Path) -> bool:
    """Show a folder, or the one that holds a file, in the file manager; whether one was started."""
    return open_address((path if path.is_dir() else path.parent).absolute().as_uri())
