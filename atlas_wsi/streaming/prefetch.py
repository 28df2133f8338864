"""Decode ahead of the encoder, in order, never more than a few pieces."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

Item = TypeVar("Item")
Read = TypeVar("Read")


def prefetch(
    read: Callable[[Item], Read], items: Sequence[Item], *, threads: int, ahead: int
) -> Iterator[tuple[Item, Read]]:
    """Read items in threads while the caller works on earlier ones."""
    with ThreadPoolExecutor(threads, thread_name_prefix="atlas-wsi-read") as pool:
        waiting: deque[tuple[Item, Future[Read]]] = deque()
        try:
            for item in items:
                waiting.append((item, pool.submit(read, item)))
                if len(waiting) > ahead:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            for _, future in waiting:
                future.cancel()
