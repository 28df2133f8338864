"""Files: written atomically, read within bounds, hashed and named."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import math
import os
import platform
import re
import secrets
import shutil
import time
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlas_wsi.errors import (
    AtlasError,
    DatasetError,
    DiskFullError,
    OutputNotWritableError,
    ResultExistsError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers by which a system reports that a file cannot grow."""
MAX_JSON_BYTES = 200 * 2**20
_MAX_TEXT = 1000
_STALE_S = 24 * 3600
_HIDDEN = re.compile(r"\.(.+)\.(partial|replaced)-([0-9a-f]{8})-(\d+)-[0-9a-f]{8}")


@contextmanager
def write_whole(path: str | os.PathLike[str], *, overwrite: bool = True) -> Iterator[Path]:
    """Write a file or folder that appears under its name only when it is complete.

    Parameters
    ----------
    path
        The file or folder to write; folders above it are made.
    overwrite
        Whether an existing file or folder is replaced. It is kept until the new one is complete.

    Yields
    ------
    Path
        A hidden neighbor of `path` to write to. It is renamed at the end, and removed on an error.

    Raises
    ------
    ResultExistsError
        If `path` exists at the end and `overwrite` is false.
    DiskFullError
        If the disk is full.
    OutputNotWritableError
        If the system refuses for another reason.
    """
    path = Path(path)
    partial = _hidden(path, "partial")
    with disk_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            _move(partial, path, overwrite=overwrite)
        finally:
            remove(partial)


def _move(partial: Path, path: Path, *, overwrite: bool) -> None:
    if not partial.is_dir():
        if not overwrite and os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        partial.replace(path)
    elif not (overwrite and path.exists()):
        partial.rename(path)
    else:
        old = _hidden(path, "replaced")
        path.rename(old)
        try:
            partial.rename(path)
        except BaseException:
            old.rename(path)
            raise
        remove(old)


def write_text(path: Path, text: str) -> None:
    """Write a small file whole, and let it reach the disk before it gets its name."""
    with write_whole(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table whole."""
    with write_whole(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def remove(path: Path) -> None:
    """Remove a file or folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what dead processes left of `write_whole`; restore what they were about to replace."""
    import psutil

    for path in folder.iterdir():
        match = _HIDDEN.fullmatch(path.name)
        if match is None:
            continue
        name, kind, owner, pid = match.groups()
        try:
            is_old = time.time() - path.stat().st_mtime > _STALE_S
        except FileNotFoundError:  # its owner removed it first
            continue
        if not is_old and (owner != machine() or psutil.pid_exists(int(pid))):
            continue
        if kind == "replaced" and not (folder / name).exists():
            path.rename(folder / name)
        else:
            remove(path)


def _hidden(path: Path, kind: str) -> Path:
    token = secrets.token_hex(4)
    return path.with_name(f".{path.name}.{kind}-{machine()}-{os.getpid()}-{token}")


def machine() -> str:
    """Identify the space in which a process id is unique."""
    space = Path("/proc/self/ns/pid")
    inside = space.readlink() if space.is_symlink() else ""
    return hashlib.sha256(f"{platform.node()} {inside}".encode()).hexdigest()[:8]


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the system's errors about an output file or folder into errors with a hint."""
    try:
        yield
    except AtlasError:
        raise
    except OSError as error:
        if error.errno in DISK_FULL:
            raise DiskFullError(
                f"The disk is full: {path} could not be written; nothing of it was kept.",
                hint="Free some space or choose another output folder.",
            ) from error
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST) and os.path.lexists(path):
            raise ResultExistsError(
                f"{path} was written by another process in the meantime.",
                hint="Replace it with --overwrite.",
            ) from error
        raise OutputNotWritableError(
            f"{path} cannot be written: {error.strerror or error}.",
            hint="Choose another output folder.",
        ) from error


def folder_name(name: str) -> str:
    """Make a slide's name safe as the name of a folder on any system."""
    safe = re.sub(r'[<>:"/\\|?*\x00-\x1f\x7f]', "_", name).strip(" ").rstrip(".").lstrip(".")
    if len(safe.encode()) > 150:
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        safe = safe.encode()[:140].decode(errors="ignore").rstrip(" .") + "~" + digest
    if re.fullmatch(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?", safe) or not safe.strip(" "):
        safe = f"slide_{safe}"
    return safe


class BoundedFile(io.BufferedReader):
    """A file that reserves no more memory than it is large, whatever a damaged header claims."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self._size = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        """Read at most `size` bytes."""
        if size is None or size < 0:
            return super().read()
        return super().read(min(size, max(0, self._size - self.tell())))


def sha256_of(path: Path) -> str:
    """Hash a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path, kind: str = "JSON", *, most: int = MAX_JSON_BYTES) -> Any:
    """Read a file of JSON."""
    try:
        if path.stat().st_size > most:
            raise DatasetError(f"{path} is larger than {most // 2**20} MiB.")
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path} is not {kind}: {error}.") from error


def printable(value: Any, most: int = 32) -> Any:
    """Convert a value from a file to JSON types that are safe to print."""
    if hasattr(value, "tolist"):  # numpy's arrays and numbers
        value = value.ravel()[:most].tolist() if value.ndim else value.tolist()
    if isinstance(value, bytes):
        value = value[: 4 * _MAX_TEXT].decode(errors="replace")
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {str(printable(str(k))): printable(v) for k, v in list(value.items())[:most]}
    if isinstance(value, set):
        value = sorted(value, key=str)
    if isinstance(value, (list, tuple)):
        return [printable(item) for item in list(value)[:most]]
    text = str(value)
    shown = "".join(
        c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text[:_MAX_TEXT]
    )
    return shown if len(text) <= _MAX_TEXT else f"{shown}..."


def read_csv(
    path: str | os.PathLike[str],
    columns: Sequence[str] = (),
    *,
    error: type[AtlasError] = DatasetError,
) -> tuple[list[str], list[dict[str, str]]]:
    """Read the column names and the rows of a CSV file or URL, stripped; empty lines are left out."""
    import fsspec

    try:
        remote = fsspec.open if "://" in str(path) else open
        with remote(os.fspath(path), "rb") as binary:
            text = binary.read()
        # what spreadsheets write as "Unicode text" begins with the mark of UTF-16
        is_utf16 = text[:2] in {b"\xff\xfe", b"\xfe\xff"}
        with io.StringIO(text.decode("utf-16" if is_utf16 else "utf-8-sig"), newline="") as file:
            reader = csv.reader(file)
            names = [name.strip() for name in next(reader, [])]
            cells = [[cell.strip() for cell in row] for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as cause:
        raise error(f"{path} cannot be read as a CSV table in UTF-8: {cause}.") from cause
    missing = [name for name in columns if name not in names]
    if missing:
        raise error(
            f"{path} lacks the column {', '.join(missing)}; it has {', '.join(names) or 'none'}."
        )
    blank = [""] * len(names)
    return names, [dict(zip(names, row + blank, strict=False)) for row in cells]


def require_extra(
    module: str, extra: str, *, to: str, error: type[AtlasError] = OutputNotWritableError
) -> Any:
    """Import an optional package, or name the command that installs it."""
    try:
        return import_module(module)
    except ImportError as cause:
        raise error(
            f"{to} needs {module.partition('.')[0]}, which is not installed ({cause}).",
            hint=f"pip install 'atlas-wsi[{extra}]'",
        ) from cause
