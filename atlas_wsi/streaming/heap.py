"""Keep freed memory for the next map instead of giving it back to the system after each.

The maps of a stem are tens of megabytes. glibc asks the system for each of them again, and the
system clears every page again: for small models that takes longer than the convolutions. While a
pass runs, freed memory is kept; when the last pass ends, it is given back.
"""

from __future__ import annotations

import ctypes
import platform
import threading
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h
_KEEP, _KEEP_MMAPS = 2**31 - 1, 0
_DEFAULT_TRIM, _DEFAULT_MMAPS = 128 * 1024, 65536

_lock = threading.Lock()
_users = 0


@contextmanager
def retained_heap() -> Iterator[None]:
    """Keep freed memory while the block runs; without glibc, do nothing."""
    global _users
    libc = _glibc()
    with _lock:
        _users += 1
        if libc is not None and _users == 1:
            libc.mallopt(_M_MMAP_MAX, _KEEP_MMAPS)
            libc.mallopt(_M_TRIM_THRESHOLD, _KEEP)
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if libc is not None and _users == 0:
                libc.mallopt(_M_MMAP_MAX, _DEFAULT_MMAPS)
                libc.mallopt(_M_TRIM_THRESHOLD, _DEFAULT_TRIM)
                libc.malloc_trim(0)


@cache
def _glibc() -> ctypes.CDLL | None:
    if platform.libc_ver()[0] != "glibc":
        return None
    return ctypes.CDLL("libc.so.6")
