"""Files from outside, which may claim that they go on for gigabytes."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class BoundedFile(io.BufferedReader):
    """A file to read that asks for no more memory than the file is large.

    Python makes room for all that `read` is asked for before it looks how much there is, and decoders
    ask for what a damaged header says.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self._size = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        """Read at most some bytes."""
        if size is None or size < 0:
            return super().read()
        return super().read(min(size, max(0, self._size - self.tell())))
