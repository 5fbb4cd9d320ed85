"""What a table of another trainer is made of: rows, reasons, and readers of YAML's values."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MAX_SHOWN_CHARS = 60
PER_DEVICE = "it counts for each GPU there, and edgeft trains on one: with n of them a step had n times as many"


class NotCarried(Exception):
    """The reason why edgeft cannot do what a key says."""


class NotNeeded(Exception):
    """The reason why a key needs no option."""


@dataclass(frozen=True)
class Row:
    """An option of edgeft, and the keys of the other tool that say its value."""

    option: str
    """without --"""
    keys: tuple[str, ...]
    value: Callable[..., Any]
    """values of the keys and the context, in this order, None for one that is unset -> the option's value;
    it raises NotCarried or NotNeeded"""
    context: tuple[str, ...] = ()
    """keys that the value depends on and that another row accounts for"""
    note: str = ""
    """what the option does that the key does not"""
    note_on_default: bool = False
    """whether the note also belongs to a default of the tool"""
    is_essential: Callable[[Any], bool] = lambda value: False
    """whether without this value it would be another kind of training, so that the file is refused"""


@dataclass(frozen=True)
class Part:
    """A data file, and how many of its first rows are meant."""

    path: Path
    rows: int | None = None
    """None = all"""


@dataclass(frozen=True)
class Place:
    """Where the YAML lies, and where the TOML will, and the file that several data files are joined in."""

    file: Path
    target: Path
    joined: Path | None = None
    """data file to write; None = none may be written"""
    parts: list[Part] = field(default_factory=list)
    """what `joined` is made of: filled by `data`"""

    def existing(self, text: str) -> Path | None:
        """A path of the YAML, sought in the current folder, beside the file and in the folders above.

        The tools read paths relative to the folder that they are started in, which is often above.
        """
        path = Path(text).expanduser()
        for folder in (Path.cwd(), *self.file.resolve().parents):
            try:
                if (folder / path).exists():
                    return folder / path
            except (OSError, ValueError):  # too long for a path
                return None
        return None

    def for_target(self, path: Path) -> str:
        """The path as the TOML writes it: relative to the TOML where both have a folder in common."""
        folder, path = self.target.resolve().parent, path.resolve()
        common = Path(os.path.commonpath([folder, path]))  # more than / and /home
        return os.path.relpath(path, folder) if len(common.parts) > 2 else str(path)

    def base(self, value: Any) -> str:
        """A model: its folder as the TOML needs it, or its hub id."""
        found = self.existing(word(value))
        return self.for_target(found) if found else word(value)

    def data(self, parts: list[Part]) -> str:
        """The only data file as the TOML writes it, or `joined`, which is then to be made of the parts."""
        if len(parts) == 1 and parts[0].rows is None:
            return self.for_target(parts[0].path)
        if self.joined is None:
            listed = ", ".join(self.for_target(part.path) for part in parts)
            limits = [part.rows for part in parts if part.rows is not None]
            first = f"the first {max(limits)} rows of each of " if limits else ""
            raise NotCarried(
                f"edgeft reads all rows of one file; --data-out FILE.jsonl writes {first}{listed}"
            )
        self.parts[:] = parts
        return self.for_target(self.joined)


@dataclass(frozen=True)
class Tool:
    """A trainer: its defaults and its keys."""

    name: str
    defaults: Callable[[Mapping[str, Any]], dict[str, Any]]
    """the configuration -> the tool's defaults for keys that a row reads"""
    rows: Callable[[Place], list[Row]]
    refused: Callable[[Mapping[str, Any]], str]
    """the configuration -> why it is no training at all; "" where it is one"""
    not_needed: dict[str, str]
    """key without a row -> why it needs no option"""
    no_option: dict[str, str] = field(default_factory=dict)
    """key without a row -> why it is not carried over, where that is more than a missing option"""
    on_by_default: Collection[str] = ()
    """keys that are true where they are not in the file"""
    dataset_lists: Collection[str] = ()
    """keys whose value is a list of datasets with keys of their own"""
    dataset_keys: Collection[str] = ()
    """keys of such a dataset that a row reads"""


def number(value: Any) -> float:
    """A number; PyYAML reads 1e-4 as text. NotCarried for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise NotCarried(f"{shown(value)} is no number")
    try:
        return float(value)
    except ValueError:
        raise NotCarried(f"{shown(value)} is no number") from None


def whole(value: Any) -> int:
    """A whole number; NotCarried for anything else."""
    result = number(value)
    if not result.is_integer():
        raise NotCarried(f"{shown(value)} is no whole number")
    return int(result)


def switch(value: Any) -> bool:
    """True or false; NotCarried for anything else."""
    words = {"true": True, "false": False}
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    if not isinstance(value, bool):
        raise NotCarried(f"{shown(value)} is neither true nor false")
    return value


def flag(value: Any) -> bool:
    """True; NotNeeded where it is off, NotCarried for what is neither true nor false."""
    if not switch(value):
        raise NotNeeded("it is off")
    return True


def steps_between(value: Any, max_steps: Any) -> int:
    """Steps between two events; transformers takes a share of max_steps, too."""
    count = number(value)
    if count >= 1:
        return whole(value)
    total = number(max_steps or 0)
    if total <= 0:
        raise NotCarried("edgeft counts steps; the number of steps is not in the file")
    return max(1, round(count * total))


def word(value: Any) -> str:
    """A text; NotCarried for anything else."""
    if not isinstance(value, str):
        raise NotCarried(f"{shown(value)} is no text")
    return value


def names(value: Any) -> list[str]:
    """A list, or a text with commas, as a list of texts."""
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        raise NotCarried(f"{shown(value)} is no list of names")
    return [part.strip() for part in parts if part.strip()]


def positive(convert: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`convert`, where zero and less mean that the tool sets no bound."""

    def value(raw: Any) -> Any:
        result = convert(raw)
        if result <= 0:
            raise NotNeeded("it sets no bound")
        return result

    return value


def warmup_ratio(ratio: Any, steps: Any, max_steps: Any) -> float:
    """Share of the steps with a rising learning rate, of a share or a count of steps."""
    count = number(steps or 0)
    if not count:
        return number(ratio or 0)
    if count < 1:  # transformers reads it as a share
        return count
    total = number(max_steps or 0)
    if total <= 0:
        raise NotCarried(
            "edgeft knows a share of the steps; the number of steps is not in the file"
        )
    return min(count / total, 1.0)


def module_names(value: Any) -> list[str]:
    """Names of modules for --target-modules; NotCarried for a regular expression."""
    found = names(value)
    odd = [name for name in found if not name.replace("_", "").replace(".", "").isalnum()]
    if odd:
        raise NotCarried(f"{shown(odd[0])} is a regular expression; name the modules")
    return found


def optimizer(value: Any) -> str:
    """The name that edgeft has for an optimizer of transformers; NotCarried where it has none."""
    name = word(value).lower()
    if name not in OPTIMIZERS:
        raise NotCarried(f"edgeft has no optimizer {shown(value)}")
    return OPTIMIZERS[name]


OPTIMIZERS = {
    **dict.fromkeys(
        ("adamw", "adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_torch_xla"), "adamw"
    ),
    **dict.fromkeys(("adamw_8bit", "adamw_bnb_8bit", "adamw_torch_8bit"), "adamw-8bit"),
    "paged_adamw_8bit": "paged-adamw-8bit",
    "adafactor": "adafactor",
    "lion_32bit": "lion",
    "muon": "muon",
    "sgd": "sgd",
    "galore_adamw": "galore",
    "apollo_adamw": "apollo",
    "lomo": "lomo",
    "adalomo": "adalomo",
    "schedule_free_adamw": "schedule-free",
}
"""name of transformers -> edgeft's"""


def reporters(value: Any) -> list[str]:
    """Names of transformers' reporters; "none" is none."""
    found = [name for name in names(value) if name != "none"]
    if not found:
        raise NotNeeded("it is off")
    return found


ADAM_BETAS, ADAM_EPSILON = (0.9, 0.999), 1e-8
"""constants of Adam in torch, transformers and edgeft"""
WITHOUT_BETAS = {"adafactor", "muon", "sgd", "lomo", "adalomo"}
"""optimizers of edgeft that transformers gives no constants of Adam"""


def adam_constants(beta1: Any, beta2: Any, epsilon: Any, optimizer_name: Any) -> list[str]:
    """--optimizer-args for other constants than the usual ones; NotNeeded where an optimizer has none."""
    name = OPTIMIZERS.get(word(optimizer_name or "adamw").lower(), "adamw")
    if name in WITHOUT_BETAS:
        raise NotNeeded(f"{name} does not read it")
    pairs = zip((beta1, beta2), ADAM_BETAS, strict=True)
    betas = tuple(usual if value is None else number(value) for value, usual in pairs)
    eps = ADAM_EPSILON if epsilon is None else number(epsilon)
    words = [f"betas={betas}"] if betas != ADAM_BETAS else []
    if eps != ADAM_EPSILON and name != "lion":
        words.append(f"eps={eps}")
    if not words:
        raise NotNeeded("it is edgeft's, too")
    return words


def shown(value: Any) -> str:
    """A value in a message: at most MAX_SHOWN_CHARS, what is nested only by its kind."""
    if isinstance(value, dict):
        return f"a table of {len(value)}"
    if isinstance(value, list):
        if len(value) == 1 and isinstance(value[0], str):
            return shown(value[0])
        return f"a list of {len(value)}" if value else "off"
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= MAX_SHOWN_CHARS else text[: MAX_SHOWN_CHARS - 1] + "…"
