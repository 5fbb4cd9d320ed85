"""Values -> the studio's HTML pages, in the language of the browser.

renderer = Renderer(nav, icons)
renderer.page("job.html.j2", Words("en"), job=…)
"""

from __future__ import annotations

import hashlib
import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from edgeft import __version__
from edgeft.files import format_bytes
from edgeft.studio.words import LANGUAGES, Words

FOLDER = Path(__file__).parent
STATIC = FOLDER / "static"
NAV = ("start", "data", "baseline", "plan", "train", "export", "chat", "measure", "runs", "jobs")
ICONS = {
    "start": "M4 11.5 12 4l8 7.5M6 10v9h4v-5h4v5h4v-9",
    "data": "M5 6c0-4 14-4 14 0v12c0 4-14 4-14 0zm0 0c0 4 14 4 14 0M5 12c0 4 14 4 14 0",
    "baseline": "M4 18h16M4 14c4 0 5-8 8-8s4 8 8 8",
    "plan": "M5 19V9m5 10V5m5 14v-7m5 7v-4M3 19h18",
    "train": "M4 5v14h16M7 8c2 6 5 8 12 8.500",
    "export": "M12 4v10m-4-4 4 4 4-4M5 17v3h14v-3",
    "chat": "M5 5h14v10h-8l-4 4v-4H5z",
    "measure": "M12 4l7 3v5c0 4-3 7-7 8-4-1-7-4-7-8V7zm-3 8 2 2 4-4",
    "runs": "M6 4v8m0 4v4m12-16v3m0 4v9M6 12a2 2 0 1 0 0 4 2 2 0 0 0 0-4m12-5a2 2 0 1 0 0 4 2 2 0 0 0 0-4",
    "jobs": "M4 6h16M4 12h16M4 18h10",
}
"""page -> path of its picture, in a square of 24"""
URL = re.compile(r"http://(?:127\.0\.0\.1|localhost|\[::1\]):\d+[\w/.\-]*")
"""of what a job serves on this machine"""
LEARNED = re.compile(r"⟦(.*?)⟧", re.DOTALL)


def static_version() -> str:
    """Changes with the styles and scripts, so that no browser shows an old one."""
    digest = hashlib.sha256()
    for path in sorted(STATIC.iterdir()):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


class Renderer:
    def __init__(self) -> None:
        self._version = static_version()
        self._environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(FOLDER / "templates"),
            autoescape=True,
            undefined=jinja2.ChainableUndefined,  # results of other versions may lack a field
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.filters |= {
            "ago": _ago,
            "duration": _duration,
            "bytes": lambda size: format_bytes(size or 0),
            "iso": lambda t: datetime.fromtimestamp(t, UTC).isoformat(timespec="seconds"),
            "percent": lambda share: f"{100 * share:.1f} %",
            "short": _short,
            "last_value": _last_value,
            "learned": _learned,
            "links": _links,
        }

    def page(self, template: str, words: Words, **context: Any) -> str:
        return self._environment.get_template(template).render(**self._names(words), **context)

    def result(
        self, words: Words, job: dict[str, Any], result: dict[str, Any], sizes: Any
    ) -> Markup:
        """What a command printed with --json. A result of another shape than expected is a list of facts."""
        template = self._environment.get_template("results.html.j2")
        module: Any = template.make_module({**self._names(words), "sizes": sizes})
        try:
            return Markup(module.show(job, result))
        except (jinja2.UndefinedError, AttributeError, KeyError, TypeError, ValueError):
            return Markup(module.facts(result))

    def _names(self, words: Words) -> dict[str, Any]:
        """What every template can name."""
        return {
            "t": words,
            "words": words,
            "lang": words.language,
            "languages": LANGUAGES,
            "nav": NAV,
            "icons": ICONS,
            "version": f"{__version__}-{self._version}",
        }


@jinja2.pass_context
def _ago(context: jinja2.runtime.Context, when: float) -> str:
    words: Words = context["t"]
    minutes = (time.time() - when) / 60
    if minutes < 1:
        return words("time.now")
    if minutes < 100:
        return words("time.minutes", round(minutes))
    hours = minutes / 60
    return (
        words("time.hours", round(hours)) if hours < 48 else words("time.days", round(hours / 24))
    )


@jinja2.pass_context
def _duration(context: jinja2.runtime.Context, seconds: Any) -> str:
    words: Words = context["t"]
    if not isinstance(seconds, (int, float)):
        return ""
    total = round(seconds)
    if total < 100:
        return words("time.seconds_long", total)
    minutes, rest = divmod(total, 60)
    if minutes < 100:
        return words("time.minutes_long", minutes, rest)
    return words("time.hours_long", *divmod(minutes, 60))


def _short(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value


def _last_value(curve: Any) -> str:
    """[[step, value], …] -> the last value."""
    if not isinstance(curve, list) or not curve or not isinstance(curve[-1], list):
        return ""
    return f"{curve[-1][-1]:.3f}"


def _learned(text: str) -> Markup:
    """⟦…⟧ -> a marked text."""
    return Markup(LEARNED.sub(r"<mark>\1</mark>", str(escape(text))))


def _links(text: str) -> Markup:
    """Addresses of this machine become links; there are no others in what edgeft prints."""
    parts, end = [], 0
    for match in URL.finditer(text):
        link = Markup('<a href="{0}" target="_blank" rel="noopener">{0}</a>').format(match[0])
        parts += [escape(text[end : match.start()]), link]
        end = match.end()
    return Markup("").join([*parts, escape(text[end:])])
