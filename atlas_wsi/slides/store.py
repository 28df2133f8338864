"""A slide as a read-only zarr 3 store: one array per level, decoded when a chunk is asked for."""

from __future__ import annotations

import asyncio
import json
import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    Store,
    SuffixByteRequest,
)

from atlas_wsi.grid import Box

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from zarr.core.buffer import Buffer, BufferPrototype

    from atlas_wsi.slides.slide import Slide

_CHUNK_PX = 512
_CHUNK_KEY = {
    False: re.compile(r"(\d+)/c/(\d+)/(\d+)/0"),
    True: re.compile(r"(\d+)/c/0/(\d+)/(\d+)"),
}


class SlideStore(Store):
    """A slide's levels as arrays ``"0"``, ``"1"``, ..., axes y, x, c or, `channels_first`, c, y, x."""

    supports_writes = False
    supports_deletes = False
    supports_listing = True

    def __init__(self, slide: Slide, *, channels_first: bool = False) -> None:
        super().__init__(read_only=True)
        self._slide = slide
        self._channels_first = channels_first
        # Not zarr's own threads: a slide that is a zarr itself needs those to answer from here.
        self._decoders = ThreadPoolExecutor(thread_name_prefix="atlas-wsi-decode")

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), channels_first=self._channels_first), (self._slide,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SlideStore) and (
            other._slide.path == self._slide.path and other._channels_first == self._channels_first
        )

    def __hash__(self) -> int:
        return hash(self._slide.path)

    def __str__(self) -> str:
        return f"slide://{self._slide.path}"

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return metadata or the pixels of a chunk."""
        loop = asyncio.get_running_loop()
        value = await loop.run_in_executor(self._decoders, self._value, key)
        if value is None:
            return None
        return prototype.buffer.from_array_like(value[_slice(byte_range, value.size)])

    async def get_partial_values(
        self,
        prototype: BufferPrototype,
        key_ranges: Iterable[tuple[str, ByteRequest | None]],
    ) -> list[Buffer | None]:
        """Return parts of several values."""
        return list(await asyncio.gather(*(self.get(k, prototype, r) for k, r in key_ranges)))

    async def exists(self, key: str) -> bool:
        """Tell whether there is a value."""
        return self._chunk_box(key) is not None or self._metadata(key) is not None

    async def set(self, key: str, value: Buffer) -> None:  # noqa: ARG002
        """Refuse: a slide is not written to."""
        raise ValueError(f"A slide is read-only: {self}/{key} cannot be written.")

    async def delete(self, key: str) -> None:
        """Refuse: a slide is not written to."""
        raise ValueError(f"A slide is read-only: {self}/{key} cannot be deleted.")

    async def list(self) -> AsyncIterator[str]:
        """List all keys."""
        yield "zarr.json"
        for level, shape in enumerate(self._slide.level_shapes):
            yield f"{level}/zarr.json"
            rows, cols = (-(-n // _CHUNK_PX) for n in shape)
            for row in range(rows):
                for col in range(cols):
                    first = self._channels_first
                    yield f"{level}/c/0/{row}/{col}" if first else f"{level}/c/{row}/{col}/0"

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """List the keys that begin with a prefix."""
        async for key in self.list():
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """List what lies directly under a prefix."""
        start = prefix.rstrip("/") + "/" if prefix else ""
        seen: set[str] = set()
        async for key in self.list_prefix(start):
            name = key[len(start) :].split("/")[0]
            if name not in seen:
                seen.add(name)
                yield name

    def _value(self, key: str) -> np.ndarray[Any, np.dtype[np.uint8]] | None:
        chunk = self._chunk_box(key)
        if chunk is not None:
            pixels = self._slide.read_level(*chunk)
            return np.frombuffer(pixels, dtype=np.uint8)
        metadata = self._metadata(key)
        if metadata is None:
            return None
        return np.frombuffer(json.dumps(metadata).encode(), dtype=np.uint8)

    def _chunk_box(self, key: str) -> tuple[int, Box] | None:
        match = _CHUNK_KEY[self._channels_first].fullmatch(key)
        if match is None:
            return None
        level, row, col = (int(text) for text in match.groups())
        shapes = self._slide.level_shapes
        box = Box(row=row * _CHUNK_PX, col=col * _CHUNK_PX, rows=_CHUNK_PX, cols=_CHUNK_PX)
        if level >= len(shapes) or box.clip(shapes[level]).is_empty:
            return None
        return level, box

    def _metadata(self, key: str) -> dict[str, Any] | None:
        if key == "zarr.json":
            attributes = {"ome": self._ome()} if self._channels_first else {}
            return {"zarr_format": 3, "node_type": "group", "attributes": attributes}
        level, _, rest = key.partition("/")
        shapes = self._slide.level_shapes
        if rest != "zarr.json" or not level.isdecimal() or int(level) >= len(shapes):
            return None
        channels, dtype = self._slide.n_channels, self._slide.dtype
        shape, chunk = [*shapes[int(level)], channels], [_CHUNK_PX, _CHUNK_PX, channels]
        axes = ["y", "x", "c"]
        codecs: list[dict[str, Any]] = [
            {"name": "bytes", "configuration": {"endian": _endian(dtype)}}
        ]
        if self._channels_first:  # chunks stay as they are read; the codec turns them
            shape, chunk, axes = [channels, *shape[:2]], [channels, *chunk[:2]], ["c", "y", "x"]
            codecs.insert(0, {"name": "transpose", "configuration": {"order": [1, 2, 0]}})
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": shape,
            "data_type": dtype.name,
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": chunk},
            },
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": 0,
            "codecs": codecs,
            "dimension_names": axes,
            "attributes": {},
        }

    def _ome(self) -> dict[str, Any]:
        """Return the OME-NGFF 0.5 metadata of the pyramid."""
        base = self._slide.mpp or (1.0, 1.0)
        unit = {} if self._slide.mpp is None else {"unit": "micrometer"}
        space = ({"name": axis, "type": "space", **unit} for axis in "yx")
        axes = [{"name": "c", "type": "channel"}, *space]
        datasets = [
            {
                "path": str(index),
                "coordinateTransformations": [
                    {"type": "scale", "scale": [1.0, base[0] * y, base[1] * x]}
                ],
            }
            for index, (y, x) in enumerate(self._slide.downsamples)
        ]
        image = {"name": self._slide.name, "axes": axes, "datasets": datasets}
        return {"version": "0.5", "multiscales": [image]}


def _endian(dtype: np.dtype[Any]) -> str:
    return "little" if dtype.newbyteorder("<") == dtype else "big"


def _slice(byte_range: ByteRequest | None, size: int) -> slice:
    match byte_range:
        case RangeByteRequest(start=start, end=end):
            return slice(start, end)
        case OffsetByteRequest(offset=offset):
            return slice(offset, None)
        case SuffixByteRequest(suffix=suffix):
            return slice(max(0, size - suffix), None)
    return slice(None)
