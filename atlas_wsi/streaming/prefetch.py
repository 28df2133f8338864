"""Decode ahead of the encoder, in order, never more than a few pieces."""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

Item = TypeVar("Item")
Read = TypeVar("Read")

READ_THREADS = 4
"""Threads that decode, at most."""


def prefetch(
    read: Callable[[Item], Read], items: Sequence[Item], *, threads: int | None = None
) -> Iterator[tuple[Item, Read]]:
    """Read items in threads while the caller works on earlier ones."""
    threads = threads or min(READ_THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads, thread_name_prefix="atlas-wsi-read") as pool:
        waiting: deque[tuple[Item, Future[Read]]] = deque()
        try:
            for item in items:
                waiting.append((item, pool.submit(read, item)))
                if len(waiting) > threads + 1:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            for _, future in waiting:
                future.cancel()
