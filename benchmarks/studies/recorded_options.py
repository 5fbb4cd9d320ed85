"""Options of a study -> options.json in its folder, to which later runs into the folder are held."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable

from edgeft.files import write_text


def check_options(options: argparse.Namespace, names: Iterable[str]) -> None:
    """Ends the study where the folder `options.out` holds results of other values of `names`."""
    recorded = {name: str(getattr(options, name)) for name in names}
    path = options.out / "options.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else recorded
    if dict.fromkeys(recorded, str(None)) | before != recorded:  # an option may be younger
        sys.exit(f"{path} has other options: choose another --out")
    write_text(path, json.dumps(recorded, indent=1) + "\n")
