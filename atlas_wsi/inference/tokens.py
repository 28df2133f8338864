"""Where the fine tokens lie between passes: in memory, or in a temporary file."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING

import numpy as np
import torch

from atlas_wsi.errors import DiskFullError

if TYPE_CHECKING:
    from types import TracebackType


class TokenStore:
    """Tokens of all active windows.

    The file has no name: the system frees it when the process ends, however it ends.

    Parameters
    ----------
    shape
        Windows, tokens a window, channels.
    dtype
        Type of the stored numbers.
    in_ram
        Whether to keep the tokens in memory.
    """

    def __init__(self, shape: tuple[int, int, int], *, dtype: torch.dtype, in_ram: bool) -> None:
        self._file = None
        if in_ram:
            self._tokens = torch.empty(shape, dtype=dtype)
            return
        n_bytes = int(np.prod(shape)) * dtype.itemsize
        self._file = tempfile.TemporaryFile(prefix="atlas-wsi-tokens-")  # noqa: SIM115
        try:
            # taken now, so that a full disk is an error here and not a bus error later
            _allocate(self._file.fileno(), n_bytes)
        except OSError as error:
            self._file.close()
            raise DiskFullError(
                f"The temporary folder {tempfile.gettempdir()} has no room for "
                f"{n_bytes / 2**30:.1f} GiB of tokens: {error.strerror}.",
                hint="Set TMPDIR to a larger disk, or raise --memory.",
            ) from error
        raw = np.memmap(self._file, dtype=np.uint8, mode="r+", shape=(n_bytes,))
        self._tokens = torch.from_numpy(raw).view(dtype).view(shape)

    def read(self, windows: slice) -> torch.Tensor:
        """Return the tokens of some windows.

        Parameters
        ----------
        windows
            Which windows.

        Returns
        -------
        torch.Tensor
            `(n, T, C)`, not to be written to.
        """
        return self._tokens[windows]

    def write(self, windows: slice | torch.Tensor, x_NTC: torch.Tensor) -> None:
        """Keep the tokens of some windows.

        Parameters
        ----------
        windows
            Which windows.
        x_NTC
            Their tokens, on any device.
        """
        self._tokens[windows] = x_NTC.to("cpu", self._tokens.dtype)

    def close(self) -> None:
        """Free the memory or the file."""
        self._tokens = torch.empty(0)
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> TokenStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _allocate(descriptor: int, n_bytes: int) -> None:
    import os

    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, n_bytes)
    else:  # pragma: no cover - macOS and Windows
        os.ftruncate(descriptor, n_bytes)
