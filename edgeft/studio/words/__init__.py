"""The texts of the studio: one table per language, with the same keys, and the helps of options.

words = Words("zh")
words("nav.train"), words("job.took", 3), words.help(field.help)

A help is written once, in the command's dataclass. `LANGUAGE_helps.toml` translates it by its English text,
so a help that was changed is shown in English until it is translated again.
"""

from __future__ import annotations

import functools
import tomllib
from pathlib import Path

from edgeft.studio.forms import Field

LANGUAGES = {"en": "English", "zh": "中文"}


@functools.cache
def table(language: str) -> dict[str, str]:
    """Key, such as nav.train -> text."""
    content = tomllib.loads(
        Path(__file__).with_name(f"{language}.toml").read_text(encoding="utf-8")
    )
    return {f"{part}.{key}": text for part, texts in content.items() for key, text in texts.items()}


@functools.cache
def helps(language: str) -> dict[str, str]:
    """What a command says of an option, in English -> in this language."""
    path = Path(__file__).with_name(f"{language}_helps.toml")
    return tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


class Words:
    """One language. KeyError for a text that does not exist."""

    def __init__(self, language: str) -> None:
        self.language = language
        self._table = table(language)

    def __call__(self, key: str, *values: object) -> str:
        return self._table[key].format(*values)

    def field(self, field: Field) -> str:
        """The label of a field: translated where it stands in front of a form, else the option's name."""
        return self._table.get(f"field.{field.name}", field.label)

    def help(self, text: str) -> str:
        """What a command says of an option: its help, or of its default."""
        return helps(self.language).get(text, text)

    def of(self, part: str) -> dict[str, str]:
        """All texts of a part, such as js, without its name."""
        lead = f"{part}."
        return {
            key.removeprefix(lead): text
            for key, text in self._table.items()
            if key.startswith(lead)
        }


def chosen_language(cookie: str, accepted: str) -> str:
    """The language of a browser: its cookie's, else the first of Accept-Language that there is."""
    names = [cookie, *(part.strip().lower() for part in accepted.split(","))]
    for name in names:
        if (code := name.partition(";")[0].partition("-")[0]) in LANGUAGES:
            return code
    return "en"
