"""A workspace folder: paths that stay in it, uploads, renames, and deletes that can be undone.

    workspace = Workspace(Path("workspace"))
    path = workspace.save_name("../evil name.jsonl")        # workspace/data/evil name.jsonl
    entry = workspace.delete("out/q4_k_m.gguf")             # into .studio/trash
    workspace.restore(entry)

Everything that belongs to the studio lies in `.studio`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import shutil
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from edgeft import store
from edgeft.data.documents import TEXT_SUFFIXES
from edgeft.data.reading import COMPRESSED_SUFFIXES, ROW_SUFFIXES
from edgeft.errors import InputError, ResourceError, StaleError
from edgeft.files import format_bytes, read_json, write_text
from edgeft.studio.nouns import files_of
from edgeft.train.options import WORK_SUFFIX

STUDIO, TRASH, UPLOADS = ".studio", "trash", "data"
UPLOAD_SUFFIXES = (*ROW_SUFFIXES, *TEXT_SUFFIXES, *COMPRESSED_SUFFIXES)
MAX_NAME_BYTES = 120
SPARE_BYTES = 200_000_000
"""of the disk that an upload leaves free"""
KEY_BYTES = 24


class Workspace:
    def __init__(self, root: Path) -> None:
        """InputError where the folder cannot be made or written."""
        try:
            self.root = root.expanduser().resolve()
            self.studio.mkdir(parents=True, exist_ok=True)
            self._identity = _identity(self.studio)
            store.sweep(self.root / UPLOADS)
        except (OSError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(
                f"{root} is no folder to work in: {reason}", "check --workspace"
            ) from None

    @property
    def studio(self) -> Path:
        return self.root / STUDIO

    def check(self) -> None:
        """StaleError where the folder was moved, deleted or exchanged; a folder that is put back is the same."""
        with contextlib.suppress(OSError):
            if _identity(self.studio) == self._identity:
                return
        raise StaleError(
            f"the workspace {self.root} was moved or deleted",
            "put the folder back, or start the studio again",
        )

    @contextlib.contextmanager
    def opened(self, address: str) -> Iterator[None]:
        """Hold the workspace; StaleError where another studio has it. `address` is what that one's page is."""
        with (self.studio / "lock").open("a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                where = file.read().strip() or "another address"
                problem = f"another studio has {self.root} open, at {where}"
                raise StaleError(problem, "use that one, or end it first") from None
            file.truncate(0)
            file.write(address)
            file.flush()
            yield

    def key(self) -> str:
        """The key of this workspace's page, for its owner's eyes; a restart keeps it."""
        path = self.studio / "key"
        with contextlib.suppress(OSError):
            if len(text := path.read_text(encoding="ascii").strip()) >= KEY_BYTES:
                return text
        text = secrets.token_urlsafe(KEY_BYTES)
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
        return text

    def inside(self, text: str) -> Path:
        """The path of a noun by its name on a page. InputError for what is not there, or outside."""
        path = self.root / text
        try:
            parent = path.parent.resolve(strict=True)
            known = os.path.lexists(path) and path.name not in ("", ".", "..")
        except (OSError, ValueError):
            known = False
        parts = Path(text).parts
        hidden = any(part.startswith(".") for part in parts) or Path(text).is_absolute()
        if not known or hidden or not parent.is_relative_to(self.root) or path == self.root:
            raise InputError(f"there is no {text!r} in this workspace", "it was moved or deleted")
        return path

    def free_name(self, text: str) -> str:
        """`text`, with a number where something of this name is there: adapter -> adapter-2."""
        stem, dot, suffix = text.partition(".") if "/" not in text else (text, "", "")
        number, name = 1, text
        while os.path.lexists(self.root / name) or os.path.lexists(
            self.root / f"{name}{WORK_SUFFIX}"
        ):
            number += 1
            name = f"{stem}-{number}{dot}{suffix}"
        return name

    def save_name(self, name: str) -> Path:
        """Where an uploaded file goes, under a name that is free. InputError for what is no data file."""
        base = clean_name(name)
        path = Path(base)
        if path.suffix.lower() not in UPLOAD_SUFFIXES:
            known = " ".join((*ROW_SUFFIXES, *TEXT_SUFFIXES))
            raise InputError(f"{base} is no data file by its name", f"one of {known}, or packed")
        (self.root / UPLOADS).mkdir(exist_ok=True)
        number = 1
        stem, suffix = base.partition(".")[0], base.partition(".")[2]
        while os.path.lexists(self.root / UPLOADS / base):
            number += 1
            base = f"{stem}-{number}.{suffix}"
        return self.root / UPLOADS / base

    def check_room(self, size: int) -> None:
        """ResourceError where so many bytes do not fit beside what the disk needs free."""
        free = shutil.disk_usage(self.root).free
        if size + SPARE_BYTES > free:
            raise ResourceError(
                f"the file has {format_bytes(size)}, and {format_bytes(free)} of disk are free",
                "free some space",
            )

    def rename(self, text: str, name: str) -> str:
        """Give a noun another name in its folder; its new path. Its manifest goes with it."""
        path = self.inside(text)
        if path.name == "report.json":
            raise InputError("a report has its name from its folder", "rename the folder")
        clean = clean_name(name)
        if path.suffix in (".gguf", ".jsonl", ".txt") and Path(clean).suffix != path.suffix:
            clean += path.suffix
        moves = [
            (old, old.with_name(clean + old.name[len(path.name) :]))
            if old.name.startswith(path.name)
            else (old, old.with_name(Path(clean).stem + old.suffix))
            for old in files_of(path)
        ]
        for _, new in moves:
            if os.path.lexists(new):
                raise StaleError(f"{new.name} is there already", "choose another name")
        for old, new in moves:
            old.rename(new)
        return moves[0][1].relative_to(self.root).as_posix()

    def delete(self, text: str) -> str:
        """Move a noun to the trash; the entry for `restore`."""
        path = self.inside(text)
        entry = f"{time.time_ns()}"
        folder = self.studio / TRASH / entry
        folder.mkdir(parents=True)
        files = files_of(path)
        names = [file.relative_to(self.root).as_posix() for file in files]
        write_text(folder / "entry.json", json.dumps({"paths": names, "time": time.time()}))
        for number, file in enumerate(files):
            file.rename(folder / str(number))
        return entry

    def restore(self, entry: str) -> str:
        """Put back what `delete` moved; its path. StaleError where its place is taken."""
        folder = self.studio / TRASH / entry
        if not re.fullmatch(r"\d+", entry) or not (
            paths := read_json(folder / "entry.json").get("paths")
        ):
            raise InputError("this is not in the trash any more", "it was restored or emptied")
        for name in paths:
            if os.path.lexists(self.root / name):
                raise StaleError(f"{name} is there again", "rename that one first")
        for number, name in enumerate(paths):
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                (folder / str(number)).rename(self.root / name)
        shutil.rmtree(folder)
        return str(paths[0])

    def trash(self) -> list[dict[str, Any]]:
        """{entry, paths, time} of what was deleted, the newest first."""
        entries = []
        for folder in sorted((self.studio / TRASH).glob("*"), reverse=True):
            with contextlib.suppress(InputError):
                if facts := read_json(folder / "entry.json"):
                    entries.append({"entry": folder.name, **facts})
        return entries

    def empty_trash(self) -> None:
        shutil.rmtree(self.studio / TRASH, ignore_errors=True)


class Upload:
    """An uploaded file while its bytes come.

    with Upload(workspace, "chats.jsonl", max_bytes) as upload:
        upload.write(chunk)
    """

    def __init__(self, workspace: Workspace, name: str, max_bytes: int) -> None:
        self.target, self._name = workspace.save_name(name), name
        self._temp = self.target.with_name(f".{secrets.token_hex(6)}.partial-{os.getpid()}")
        self._workspace, self._max, self.size = workspace, max_bytes, 0

    def __enter__(self) -> Self:
        self._file = self._temp.open("xb")
        return self

    def write(self, data: bytes) -> None:
        """ResourceError above the limit, and where the disk is nearly full."""
        self.size += len(data)
        if self.size > self._max:
            raise ResourceError(
                f"the file has more than {format_bytes(self._max)}",
                "copy it into the workspace, or raise --max-upload",
            )
        if self.size % 2**26 < len(data):  # every 64 MiB
            self._workspace.check_room(len(data))
        self._file.write(data)

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()
        try:
            if exc is None:
                # A name that another upload took meanwhile is not overwritten.
                self.target = self._workspace.save_name(self._name)
                os.link(self._temp, self.target)
        finally:
            self._temp.unlink(missing_ok=True)


def clean_name(name: str) -> str:
    """A file name without folders, control characters and what a shell or a page could take for more.

    InputError where nothing is left of it.
    """
    base = unicodedata.normalize(
        "NFC", re.split(r"[/\\]", name.encode("utf-8", "replace").decode())[-1]
    )
    kept = "".join(c for c in base if c.isprintable() and c not in "<>:\"|?*`$&;'!")
    kept = re.sub(r"\s+", " ", kept).strip(" .-")
    stem, dot, suffix = kept.partition(".")
    while len(kept.encode()) > MAX_NAME_BYTES and stem:
        stem = stem[:-1]
        kept = f"{stem}{dot}{suffix}"
    if not stem or len(kept.encode()) > MAX_NAME_BYTES:
        raise InputError(f"{name[:60]!r} is no file name", "letters and digits")
    return kept


def _identity(folder: Path) -> tuple[int, int]:
    """Of a folder, whatever its name."""
    facts = folder.stat()
    return facts.st_dev, facts.st_ino
