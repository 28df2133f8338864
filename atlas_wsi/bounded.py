"""Untrusted Zarr: chunks are decoded to no more than their array has room for."""

from __future__ import annotations

import asyncio
import bz2
import gzip
import io
import json
import lzma
import math
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import imagecodecs
import numcodecs
import numpy as np
from numcodecs.abc import Codec
from numcodecs.compat import ensure_bytes
from zarr.abc.codec import BytesBytesCodec
from zarr.abc.store import Store
from zarr.registry import register_codec
from zarr.storage import WrapperStore

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

    from zarr.abc.store import ByteRequest
    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import Buffer, BufferPrototype

MAX_JSON_BYTES = 32 * 2**20
_NAME = "atlas_wsi.bounded"
_PACKERS = ("blosc", "bz2", "gzip", "lz4", "lzma", "zlib", "zstd")
_V3 = {name: name for name in ("blosc", "gzip", "zstd")} | {f"numcodecs.{n}": n for n in _PACKERS}
_LZMA_MEMORY = 2**28
_ANY_ITEM = 16  # bytes of the largest number


class BoundedStore(WrapperStore[Store]):
    """A store that names bounded codecs in its metadata: zarr itself decodes a chunk of any size."""

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read a value."""
        data: Buffer | None = await self._store.get(key, prototype, byte_range)
        name = key.rpartition("/")[2]
        if data is None or byte_range is not None or name not in ("zarr.json", ".zarray"):
            return data
        if len(data) > MAX_JSON_BYTES:
            raise ValueError(f"{key} has {len(data)} bytes, at most {MAX_JSON_BYTES} are read")
        try:
            facts = json.loads(data.to_bytes())
        except (ValueError, RecursionError):
            return data  # zarr reports the fault
        if not isinstance(facts, dict):
            return data
        if name == ".zarray":
            facts = _bound_v2(facts)
        elif isinstance(facts.get("codecs"), list):
            facts |= {"codecs": [_bounded_codec(codec) for codec in facts["codecs"]]}
        changed: Buffer = prototype.buffer.from_bytes(json.dumps(facts).encode())
        return changed


@dataclass(frozen=True)
class _BoundedV3(BytesBytesCodec):
    """A codec of Zarr 3 that stops at twice the size of its chunk."""

    of: str
    """Name among numcodecs."""
    config: Mapping[str, Any] = field(default_factory=dict)

    is_fixed_size = False

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        return cls(**data["configuration"])

    def to_dict(self) -> dict[str, Any]:
        return {"name": _NAME, "configuration": {"of": self.of, "config": dict(self.config)}}

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer:
        size = math.prod(chunk_spec.shape) * chunk_spec.dtype.to_native_dtype().itemsize
        packed = chunk_bytes.to_bytes()
        data = await asyncio.to_thread(_decode, self.of, self.config, packed, _most(size))
        return chunk_spec.prototype.buffer.from_bytes(data)

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        raise NotImplementedError("the decoded size is not known in advance")


class _BoundedV2(Codec):  # type: ignore[misc]
    """A codec of Zarr 2 that stops at twice the size of its chunk."""

    codec_id = _NAME

    def __init__(self, of: str, config: Mapping[str, Any], most: int) -> None:
        self.of, self.config, self.most = of, config, most

    def encode(self, buf: Any) -> Any:
        raise NotImplementedError("this codec reads only")

    def decode(self, buf: Any, out: Any = None) -> Any:
        data = _decode(self.of, self.config, ensure_bytes(buf), self.most)
        return data if out is None else numcodecs.compat.ndarray_copy(data, out)


register_codec(_NAME, _BoundedV3)
numcodecs.registry.register_codec(_BoundedV2)


def _most(size: int) -> int:
    """Return how much a chunk may be before its last codecs: sums, and shards that do not pack."""
    return 2 * size + 2**16


def _bounded_codec(given: Any) -> Any:
    """Replace a codec of Zarr 3, and those in a codec of shards."""
    codec = {"name": given} if isinstance(given, str) else given
    if not isinstance(codec, dict):
        return given
    config = codec.get("configuration", {})
    if codec.get("name") in _V3 and isinstance(config, dict):
        return {"name": _NAME, "configuration": {"of": _V3[codec["name"]], "config": config}}
    if codec.get("name") == "sharding_indexed" and isinstance(config, dict):
        inner = {
            key: [_bounded_codec(inside) for inside in config[key]]
            for key in ("codecs", "index_codecs")
            if isinstance(config.get(key), list)
        }
        return codec | {"configuration": config | inner}
    return given


def _bound_v2(facts: dict[str, Any]) -> dict[str, Any]:
    """Put bounded codecs into the metadata of an array of Zarr 2."""
    try:
        n_items = math.prod(int(n) for n in facts["chunks"])
        n_bytes = n_items * np.dtype(facts["dtype"]).itemsize
    except (KeyError, TypeError, ValueError):
        return facts  # zarr reports the fault
    filters = facts.get("filters")
    most = _most(n_items * _ANY_ITEM if filters else n_bytes)  # filters may change the type

    def bounded(codec: Any) -> Any:
        if not isinstance(codec, dict) or codec.get("id") not in _PACKERS:
            return codec
        config = {key: value for key, value in codec.items() if key != "id"}
        return {"id": _NAME, "of": codec["id"], "config": config, "most": most}

    changed: dict[str, Any] = {"compressor": bounded(facts.get("compressor"))}
    if isinstance(filters, list):
        changed["filters"] = [bounded(codec) for codec in filters]
    return facts | changed


def _decode(codec: str, config: Mapping[str, Any], packed: bytes, most: int) -> bytes:
    """Decode bytes, and refuse more than some."""
    data: bytes
    match codec:
        case "gzip":
            data = gzip.GzipFile(fileobj=io.BytesIO(packed)).read(most + 1)
        case "bz2":
            data = bz2.BZ2File(io.BytesIO(packed)).read(most + 1)
        case "zlib":
            data = _whole(zlib.decompressobj(), packed, most)
        case "lzma":
            form = int(config.get("format", lzma.FORMAT_XZ))
            if form == lzma.FORMAT_RAW:
                raise ValueError("raw lzma does not state its size and is not supported")
            data = _whole(lzma.LZMADecompressor(form, memlimit=_LZMA_MEMORY), packed, most)
        case "zstd":
            data = bytes(imagecodecs.zstd_decode(packed, out=most))
        case "blosc" | "lz4":
            start = 4 if codec == "blosc" else 0
            size = int.from_bytes(packed[start : start + 4], "little")
            if size > most:
                raise _too_much(codec, size, most)
            if codec == "blosc" and int.from_bytes(packed[12:16], "little") > len(packed):
                raise ValueError("a chunk of blosc ends early")  # the library reads on
            data = ensure_bytes(numcodecs.get_codec({"id": codec}).decode(packed))
    if len(data) > most:
        raise _too_much(codec, len(data), most)
    return data


def _whole(decoder: Any, packed: bytes, most: int) -> bytes:
    data: bytes = decoder.decompress(packed, most + 1)
    if len(data) <= most and not decoder.eof:
        raise ValueError("a compressed chunk ends early")
    return data


def _too_much(codec: str, size: int, most: int) -> ValueError:
    return ValueError(f"a chunk of {codec} grows to {size} bytes or more, expected at most {most}")
