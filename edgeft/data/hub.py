"""A data set on the hub, as `owner/name@revision:config:split` -> its data files in the hub's cache.

id = hub_id(Path("owner/name:main"))
pinned(id)                          # owner/name@1fe59…:main, the commit that the name means today
hub_files(id, "train")              # [~/.cache/huggingface/hub/datasets--owner--name/snapshots/1fe59…/…]

Revision, config and split may be left out. Only data files and README.md are downloaded; code is not.
README.md says which files a config and its splits have, as on the hub's own page; without it, their names do
(https://huggingface.co/docs/hub/datasets-manual-configuration). `HF_ENDPOINT` and `HF_HUB_OFFLINE` count.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import glob
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeft.data.reading import holds_rows
from edgeft.data.split_names import Split, of_split, split_of
from edgeft.errors import InputError, require
from edgeft.files import format_bytes
from edgeft.progress import quiet_libraries, say_once

ID = re.compile(
    r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w./-]+))?((?P<words>(:[\w.+ -]+){1,2}))?"
)
CARD = "README.md"
DEFAULT = "default"
"""config that is meant where an id names none"""
Configs = dict[str, dict[str, list[str]]]
"""config -> split -> patterns of its files; the split is "" where their names tell it"""


@dataclass(frozen=True)
class HubId:
    """The name of a data set."""

    repo: str
    revision: str = ""
    """branch, tag or commit; "" = the newest"""
    words: tuple[str, ...] = ()
    """config and split, or one of them"""

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return ":".join((self.repo + revision, *self.words))


@dataclass(frozen=True)
class Listing:
    """The files of a data set at a commit."""

    folder: Path
    """of the commit in the hub's cache"""
    sizes: Mapping[str, int]
    """name of each file -> bytes, 0 where they are not known"""

    @property
    def commit(self) -> str:
        return self.folder.name


def hub_id(path: Path) -> HubId | None:
    """The data set that a path names where it can be no file: nothing begins like it on this machine."""
    match = ID.fullmatch(str(path))
    if not match or path.exists() or Path(path.parts[0]).exists() or holds_rows(path):
        return None
    words = tuple(word for word in (match["words"] or "").split(":") if word)
    return HubId(match["repo"], match["revision"] or "", words)


def pinned(path: Path) -> Path:
    """A hub id with the commit that it means today; another path as it is. InputError as `hub_files`."""
    name = hub_id(path)
    return Path(str(dataclasses.replace(name, revision=_listing(name).commit))) if name else path


def hub_files(name: HubId, split: Split | None, suffixes: Sequence[str] = ()) -> list[Path]:
    """The files of `split`, or of the split that the id names; None = of all splits. Downloads them.

    `suffixes`: of files that count beside those of rows. InputError for a data set, revision, config or split
    that does not exist, and where the hub cannot be asked and the cache does not hold the files.
    """
    listing = _listing(name)
    at_commit = dataclasses.replace(name, revision=listing.commit)
    card = listing.folder / CARD
    names = sorted(
        file
        for file in listing.sizes
        if holds_rows(Path(file)) or Path(file).suffix.lower() in suffixes
    )
    chosen = chosen_files(name, names, _configs(card) if card.is_file() else {}, split)
    size = sum(listing.sizes[file] for file in chosen)
    say_once(
        f"{name}: {len(chosen)} file{'s'[: len(chosen) != 1]} at {listing.commit[:12]}"
        + (f", {format_bytes(size)}" if size else "")
        + f": {', '.join(chosen[:10])}{', …' if len(chosen) > 10 else ''}"
    )
    folder = _snapshot(at_commit, chosen)
    if missing := [file for file in chosen if not (folder / file).is_file()]:
        raise InputError(f"the cache does not hold {missing[0]} of {name}", "download it once")
    return [folder / file for file in chosen]


def chosen_files(
    name: HubId, names: Sequence[str], configs: Configs, split: Split | None
) -> list[str]:
    """The names that belong to the config and the split of an id. InputError where none does.

    `names`: all data files. `split`: the one that is meant where the id names none; None = all.
    """
    config, wanted = _config_and_split(name, names, configs)
    patterns = configs.get(config, {})
    splits = [key for key in patterns if key]
    if splits:
        keys = _chosen_splits(splits, wanted, split)
        files = _matching(names, [pattern for key in keys for pattern in patterns[key]])
    else:
        here = _matching(names, patterns[""]) if patterns else _within(names, config)
        splits = sorted({str(split_of(file)) for file in here} - {""})
        files = _named_split(here, wanted) if wanted else of_split(here, split) if split else here
    if not files:
        raise _no_files(name, names, config, wanted or split or "", splits)
    return files


def _no_files(
    name: HubId, names: Sequence[str], config: str, split: str, splits: Sequence[str]
) -> InputError:
    if not names:
        return InputError(f"{name} holds no data files", "JSONL, JSON, CSV, Parquet or Arrow")
    words = (*([config] if config not in ("", DEFAULT) else []), *splits[:1])
    others = f", but {', '.join(splits)}" if splits else ""
    example = dataclasses.replace(name, words=words)
    return InputError(f"{name} has no split {split}{others}", f"--data {example}")


def _config_and_split(name: HubId, names: Sequence[str], configs: Configs) -> tuple[str, str]:
    """What the words of an id mean; without a config the only or the default one."""
    folders = {part for file in names for part in Path(file).parent.parts}
    first, second = (*name.words, "", "")[:2]
    is_config = first in configs or not configs and first in folders and not split_of(first)
    config, wanted = (first, second) if second or is_config else ("", first)
    if config and config not in (configs or folders):
        raise InputError(
            f"{name} has no config {config}", f"configs: {', '.join(configs) or 'none'}"
        )
    if config or not configs:
        return config, wanted
    if len(configs) > 1 and DEFAULT not in configs:
        example = dataclasses.replace(name, words=(next(iter(configs)), *name.words))
        raise InputError(f"{name} has several configs: {', '.join(configs)}", f"--data {example}")
    return (DEFAULT if DEFAULT in configs else next(iter(configs))), wanted


def _chosen_splits(splits: Sequence[str], wanted: str, split: Split | None) -> list[str]:
    """Of the splits of a config the one that is meant; [] for none, or where several could be."""
    if wanted:
        return [wanted] if wanted in splits else []
    if split is None or split in splits:
        return [split] if split else list(splits)
    matching = of_split(splits, split)
    return matching if len(matching) == 1 else []


def _within(names: Sequence[str], folder: str) -> list[str]:
    """The files with a folder of this name above them; "" = all."""
    return [name for name in names if not folder or folder in Path(name).parent.parts]


def _named_split(names: Sequence[str], split: str) -> list[str]:
    """The files whose path has the name of a split before its number."""
    word = re.compile(rf"(^|[/_.-]){re.escape(split)}([/_.-]|$)")
    return [name for name in names if split_of(name) == split or word.search(name)]


def _matching(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """The names that a pattern of README.md matches; `*` also matches a slash."""
    plain = [pattern.removeprefix("./").replace("**/", "*") for pattern in patterns]
    return [name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in plain)]


def _configs(card: Path) -> Configs:
    """What the header of README.md says of configs and their files; {} where it says nothing."""
    metadata = require("huggingface_hub.repocard", "data").metadata_load(card) or {}
    entries = [e for e in metadata.get("configs") or [] if isinstance(e, dict)]
    entries.sort(key=lambda entry: not entry.get("default"))
    configs = {
        str(entry.get("config_name", DEFAULT)): _patterns(entry)
        for entry in entries
        if entry.get("data_files") or entry.get("data_dir")
    }
    if entries and entries[0].get("default") and len(configs) > 1:
        configs = {DEFAULT: next(iter(configs.values()))} | configs
    return configs


def _patterns(entry: dict[str, Any]) -> dict[str, list[str]]:
    """split -> patterns, of an entry of `configs`."""
    folder = str(entry.get("data_dir") or "").strip("/")
    listed = entry.get("data_files") or ["**/*"]
    if isinstance(listed, dict):
        listed = [{"split": split, "path": path} for split, path in listed.items()]
    patterns: dict[str, list[str]] = {}
    for item in listed if isinstance(listed, list) else [listed]:
        split, path = (
            (item.get("split", ""), item.get("path", "")) if isinstance(item, dict) else ("", item)
        )
        for pattern in path if isinstance(path, list) else [path]:
            patterns.setdefault(str(split), []).append(
                "/".join(filter(None, [folder, str(pattern)]))
            )
    return patterns


@functools.cache
def _listing(name: HubId) -> Listing:
    """The files at the revision of an id: the hub's, or where it cannot be asked those in the cache."""
    folder = _snapshot(name, [CARD])
    try:
        api = require("huggingface_hub", "data").HfApi()
        info = api.dataset_info(name.repo, revision=folder.name, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings}
    except Exception:  # noqa: BLE001
        # The hub's client raises a dozen unrelated types; all mean that it did not answer.
        say_once(f"{name}: the hub cannot be asked, the files in its cache are taken")
        files = (file for file in folder.rglob("*") if file.is_file())
        sizes = {file.relative_to(folder).as_posix(): 0 for file in files}
    return Listing(folder, sizes)


def _snapshot(name: HubId, files: Sequence[str]) -> Path:
    """The folder of a commit in the cache, which is its name; downloads these of its files.

    InputError for what does not exist, and where it is neither in the cache nor to be had.
    """
    hub, errors = (require(f"huggingface_hub{part}", "data") for part in ("", ".errors"))
    patterns, revision = [glob.escape(file) for file in files], name.revision or None
    try:
        with quiet_libraries():
            folder = hub.snapshot_download(
                name.repo, repo_type="dataset", revision=revision, allow_patterns=patterns
            )
        return Path(folder)
    except errors.RevisionNotFoundError:
        problem = f"{name.repo} has no revision {name.revision}"
        raise InputError(problem, "a branch, a tag or a commit") from None
    except errors.RepositoryNotFoundError:
        raise InputError(
            f"no such file: {name}, and the hub has no such data set",
            "check the path; a private or gated data set needs `hf auth login`",
        ) from None
    except Exception as error:  # noqa: BLE001
        # As in `_listing`.
        reason = str(error.__cause__ or error).strip().partition("\n")[0] or type(error).__name__
        raise InputError(
            f"cannot get {name} from the hub: {reason}",
            "name a file or a folder; HF_ENDPOINT names a mirror",
        ) from None
