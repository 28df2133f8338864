"""Where the fine tokens lie between passes: in memory, in a temporary file, or in one that stays."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import tempfile
import zlib
from typing import IO, TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from atlas_wsi.errors import DiskFullError, OutputNotWritableError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


class TokenStore(Protocol):
    """Tokens of all windows of a share."""

    def read(self, windows: slice | torch.Tensor) -> torch.Tensor:
        """Return the tokens `(n, T, C)` of some windows, not to be written to."""

    def write(self, windows: slice | torch.Tensor, x_NTC: torch.Tensor) -> None:
        """Store the tokens of some windows."""

    def close(self) -> None:
        """Free what the store holds."""


class RamTokens:
    """Tokens in memory."""

    def __init__(self, shape: tuple[int, int, int], *, dtype: torch.dtype) -> None:
        self._tokens = torch.empty(shape, dtype=dtype)

    def read(self, windows: slice | torch.Tensor) -> torch.Tensor:
        """Return the tokens of some windows: `(n, T, C)`, not to be written to."""
        return self._tokens[windows]

    def write(self, windows: slice | torch.Tensor, x_NTC: torch.Tensor) -> None:
        """Store the tokens of some windows."""
        self._tokens[windows] = x_NTC.to("cpu", self._tokens.dtype)

    def close(self) -> None:
        """Free the memory."""
        self._tokens = torch.empty(0)


class FileTokens:
    """Tokens in a file, read and written by position, so that they take no memory.

    The default file has no name: the system frees it when the process ends, however it ends.
    """

    def __init__(
        self, shape: tuple[int, int, int], *, dtype: torch.dtype, file: IO[bytes] | None = None
    ) -> None:
        self._shape, self._dtype = shape, dtype
        self._stride = shape[1] * shape[2] * dtype.itemsize
        where = tempfile.gettempdir() if file is None else file.name
        self._file = file or tempfile.TemporaryFile(  # noqa: SIM115
            prefix="atlas-wsi-tokens-", buffering=0
        )
        n_bytes = max(1, shape[0] * self._stride)
        try:
            # taken now, so that a full disk is an error here and not after hours
            _allocate(self._file.fileno(), n_bytes)
        except OSError as error:
            self._file.close()
            raise DiskFullError(
                f"{where} has no room for {n_bytes / 2**30:.1f} GiB of tokens: {error.strerror}.",
                hint="Set TMPDIR to a larger disk, or raise --memory.",
            ) from error

    def read(self, windows: slice | torch.Tensor) -> torch.Tensor:
        """Return the tokens of some windows: `(n, T, C)`."""
        places = self._places(windows)
        raw = torch.empty(len(places) * self._stride, dtype=torch.uint8)
        view = _bytes_of(raw)
        for at, first, n in _runs(places):
            self._file.seek(first * self._stride)
            _read_into(self._file, view[at * self._stride : (at + n) * self._stride])
        return raw.view(self._dtype).view(len(places), *self._shape[1:])

    def write(self, windows: slice | torch.Tensor, x_NTC: torch.Tensor) -> None:
        """Store the tokens of some windows."""
        places = self._places(windows)
        raw = _bytes_of(x_NTC.to("cpu", self._dtype))
        for at, first, n in _runs(places):
            self._file.seek(first * self._stride)
            _write_all(self._file, raw[at * self._stride : (at + n) * self._stride])

    def close(self) -> None:
        """Close the file; a nameless one is gone then."""
        self._file.close()

    def _places(self, windows: slice | torch.Tensor) -> NDArray[np.int64]:
        if isinstance(windows, slice):
            return np.arange(*windows.indices(self._shape[0]))
        return windows.numpy()


class StoredTokens(FileTokens):
    """Tokens that outlive the process, so that an interrupted run resumes.

    A window counts as stored if the checksum of its tokens, which is written after them, is right.
    """

    def __init__(
        self,
        folder: Path,
        key: dict[str, Any],
        shape: tuple[int, int, int],
        *,
        dtype: torch.dtype,
    ) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "tokens.bin").touch()
            file = (folder / "tokens.bin").open("r+b", buffering=0)
        except OSError as error:
            raise OutputNotWritableError(
                f"{folder} cannot be written: {error.strerror}."
            ) from error
        try:
            _lock(file, folder)
            text = json.dumps(key, sort_keys=True, indent=1)
            known = folder / "key.json"
            if not known.is_file() or known.read_text(encoding="utf-8") != text:
                (folder / "sums.bin").unlink(missing_ok=True)
                file.truncate(0)
                known.write_text(text, encoding="utf-8")
            super().__init__(shape, dtype=dtype, file=file)
            self._sums = _open_sums(folder / "sums.bin", shape[0])
        except BaseException:
            file.close()
            raise
        self.stored = self._find_stored()

    def write(self, windows: slice | torch.Tensor, x_NTC: torch.Tensor) -> None:
        """Store the tokens of some windows, for the next run as well."""
        x_NTC = x_NTC.to("cpu", self._dtype)
        super().write(windows, x_NTC)
        for place, tokens in zip(self._places(windows), x_NTC, strict=True):
            self._sums.seek(4 * int(place))
            _write_all(self._sums, _sum_of(_bytes_of(tokens)).to_bytes(4, "little"))

    def close(self) -> None:
        """Close the files; they stay."""
        super().close()
        self._sums.close()

    def discard(self) -> None:
        """Close the files and remove the folder."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _find_stored(self) -> torch.Tensor:
        self._sums.seek(0)
        sums = np.frombuffer(self._sums.read(4 * self._shape[0]), dtype="<u4")
        stored = [
            place
            for place in np.flatnonzero(sums)
            if _sum_of(_bytes_of(self.read(slice(int(place), int(place) + 1)))) == sums[place]
        ]
        return torch.tensor(stored, dtype=torch.long)


def _open_sums(path: Path, n_windows: int) -> IO[bytes]:
    path.touch()
    file = path.open("r+b", buffering=0)
    file.truncate(4 * n_windows)
    return file


def _lock(file: IO[bytes], folder: Path) -> None:
    """Refuse to work where another process does; the lock ends with the process."""
    try:
        import fcntl
    except ImportError:  # pragma: no cover - Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise OutputNotWritableError(
            f"Another run is working in {folder}.", hint="Wait for it, or stop it."
        ) from error


def _sum_of(raw: memoryview) -> int:
    """Return a checksum that is never 0, which stands for a window that is not there."""
    return zlib.crc32(raw) or 1


def _bytes_of(x: torch.Tensor) -> memoryview:
    raw: NDArray[np.uint8] = x.contiguous().view(-1).view(torch.uint8).numpy()
    return raw.data


def _runs(places: NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """Return where runs of neighbors start: place in the list, window, how many."""
    breaks = np.flatnonzero(np.diff(places) != 1) + 1
    starts = [0, *breaks.tolist(), len(places)]
    return [(a, int(places[a]), b - a) for a, b in itertools.pairwise(starts) if b > a]


def _read_into(file: IO[bytes], view: memoryview) -> None:
    done = 0
    while done < len(view):
        got = file.readinto(view[done:])  # type: ignore[attr-defined]
        if not got:
            raise EOFError("the file of tokens is truncated")
        done += got


def _write_all(file: IO[bytes], raw: bytes | memoryview) -> None:
    view, done = memoryview(raw), 0
    try:
        while done < len(view):
            done += file.write(view[done:])
    except OSError as error:
        raise DiskFullError(
            f"{file.name} could not be written: {error.strerror}.",
            hint="Set TMPDIR to a larger disk, or raise --memory.",
        ) from error


def _allocate(descriptor: int, n_bytes: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, n_bytes)
    else:  # pragma: no cover - macOS and Windows
        os.ftruncate(descriptor, n_bytes)
