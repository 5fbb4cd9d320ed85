"""A Release -> report.json, report.md and report.html in a folder, and back.

write(release, Path("report"))
read(Path("report/report.json"))            # the release again
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from edgeft.errors import InputError
from edgeft.files import read_text, write_text
from edgeft.records import SCHEMA, Release
from edgeft.report.tables import one_line

JSON = "report.json"
MAX_REPORT_BYTES = 64_000_000


def write(release: Release, folder: Path) -> Path:
    """Write the three files, each atomically; the path of the page.

    The JSON is written first, so that hours of measuring survive a failure of the others. The page and
    the Markdown show nothing that is not in the JSON.
    """
    from edgeft.report.page import html, markdown

    raw = _encodable(release.to_json())
    release = Release.from_json(raw)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(raw, indent=1, ensure_ascii=False, allow_nan=False)
    write_text(folder / JSON, text + "\n")
    write_text(folder / "report.md", markdown(release))
    write_text(folder / "report.html", html(release))
    return folder / "report.html"


def read(file: Path) -> Release:
    """A release from its report.json; InputError for anything else."""
    import jinja2

    from edgeft.report.page import html, markdown

    hint = f"--report of edgeft ab or edgeft search writes {JSON}"
    if file.is_dir():
        raise InputError(f"{file} is a folder", f"name the {JSON} in it")
    try:
        raw = json.loads(read_text(file, MAX_REPORT_BYTES, plain=False))
    except FileNotFoundError:
        raise InputError(f"no such file: {file}", hint) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is not JSON: {error}", hint) from None
    schema = raw.get("schema") if isinstance(raw, dict) else None
    if type(schema) is not int or schema < 1:
        raise InputError(f"{file} is no report: it has no schema", hint)
    if schema > SCHEMA:
        raise InputError(f"{file} was written by a newer edgeft", "upgrade edgeft")
    render_errors = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError,
             jinja2.TemplateError)  # fmt: skip
    try:
        release = Release.from_json(_encodable(raw))
        html(release)  # rendering finds wrong types inside the parts
        markdown(release)
    except render_errors as error:
        raise InputError(f"{file} is no report: {one_line(str(error))}", hint) from None
    return release


def _encodable(value: Any) -> Any:
    """The value with infinite numbers and NaN as None and lone surrogates replaced, for JSON in UTF-8."""
    if isinstance(value, dict):
        return {_encodable(key): _encodable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encodable(item) for item in value]
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    return None if isinstance(value, float) and not math.isfinite(value) else value
