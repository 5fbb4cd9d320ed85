"""A release -> its page and its note for people."""

from __future__ import annotations

from markupsafe import escape

from edgeft.records import Release
from edgeft.report import arms_table, release_text


def html(release: Release) -> str:
    return f"<!doctype html>\n<title>edgeft</title>\n<pre>{escape(release_text(release))}</pre>\n"


def markdown(release: Release) -> str:
    """For a release note."""
    ship = f": ship `{release.ship}`" if release.ship else ""
    parts = [f"**{release.outcome}{ship}**", release.reason, arms_table(release.arms)]
    if release.commands:
        parts.append("\n".join(["```sh", *release.commands, "```"]))
    return "\n\n".join(parts) + "\n"
