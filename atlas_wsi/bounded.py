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
_FILTERS = (
    *("adler32", "crc32", "crc32c", "fletcher32", "jenkins_lookup3"),
    *("astype", "bitround", "delta", "fixedscaleoffset", "packbits", "quantize", "shuffle"),
)
_V3 = {name: name for name in ("blosc", "gzip", "zstd")} | {f"numcodecs.{n}": n for n in _PACKERS}
_PLAIN_V3 = ("bytes", "endian", "crc32c", "transpose", *(f"numcodecs.{name}" for name in _FILTERS))
_TYPES = ("dtype", "astype", "decode_dtype", "encode_dtype")  # what filters call types of numbers
_MOST_BYTES = 2**28  # of a chunk between two codecs
_LZMA_MEMORY = 2**28


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
        elif "codecs" in facts:
            facts |= {"codecs": _bounded_codecs(facts["codecs"], may_shard=True)}
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
        _check_between(size, size)
        packed = chunk_bytes.to_bytes()
        data = await asyncio.to_thread(decode_bytes, self.of, self.config, packed, most_bytes(size))
        return chunk_spec.prototype.buffer.from_bytes(data)

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        raise NotImplementedError("the decoded size is not known in advance")


class _BoundedV2(Codec):  # type: ignore[misc]
    """A codec of Zarr 2 that takes and makes no more than twice what its chunk needs."""

    codec_id = _NAME

    def __init__(self, of: str, config: Mapping[str, Any], most: int, most_packed: int) -> None:
        self.of, self.config, self.most, self.most_packed = of, config, most, most_packed

    def encode(self, buf: Any) -> Any:
        raise NotImplementedError("this codec reads only")

    def decode(self, buf: Any, out: Any = None) -> Any:
        if self.of in _FILTERS:
            n_bytes = numcodecs.compat.ensure_ndarray_like(buf).nbytes
            if n_bytes > self.most_packed:
                raise _too_much(self.of, n_bytes, self.most_packed)
            return numcodecs.get_codec({"id": self.of, **self.config}).decode(buf, out)
        data = decode_bytes(self.of, self.config, ensure_bytes(buf), self.most)
        return data if out is None else numcodecs.compat.ndarray_copy(data, out)


register_codec(_NAME, _BoundedV3)
numcodecs.registry.register_codec(_BoundedV2)


def most_bytes(size: int) -> int:
    """Return how much a chunk may be before its last codecs: sums, and shards that do not pack."""
    return 2 * size + 2**16


def _bounded_codecs(given: Any, *, may_shard: bool = False) -> list[Any]:
    """Replace codecs of Zarr 3, and those in a codec of shards."""
    if not isinstance(given, list):
        raise TypeError(f"the codecs are {given!r}, expected a list")
    found = []
    for one in given:
        codec = {"name": one} if isinstance(one, str) else one
        name = str(codec.get("name")) if isinstance(codec, dict) else repr(codec)
        config = codec.get("configuration") or {} if isinstance(codec, dict) else None
        if not isinstance(config, dict):
            raise TypeError(f"the codec {name} has the settings {config!r}")
        if name in _V3:
            codec = {"name": _NAME, "configuration": {"of": _V3[name], "config": config}}
        elif name == "sharding_indexed" and may_shard:
            inner = {
                key: _bounded_codecs(config[key])
                for key in ("codecs", "index_codecs")
                if key in config
            }
            codec = codec | {"configuration": config | inner}
        elif name not in _PLAIN_V3:
            raise ValueError(f"the codec {name} is not read")
        _check_types(config)
        found.append(codec)
    return found


def _bound_v2(facts: dict[str, Any]) -> dict[str, Any]:
    """Put bounded codecs into the metadata of an array of Zarr 2."""
    try:
        whole = math.prod(int(n) for n in facts["chunks"]) * np.dtype(facts["dtype"]).itemsize
        filters = list(facts.get("filters") or ())
    except (KeyError, TypeError, ValueError, OverflowError, SyntaxError) as error:
        raise ValueError(f"the chunks, type or filters make no sense: {error}") from error
    size = whole
    packer = facts.get("compressor")
    found: list[Any] = []
    for codec in filters + [packer] * (packer is not None):
        if not isinstance(codec, dict) or codec.get("id") not in (*_PACKERS, *_FILTERS):
            name = codec.get("id") if isinstance(codec, dict) else codec
            raise ValueError(f"the codec {name} is not read")
        config = {key: value for key, value in codec.items() if key != "id"}
        packed = _encoded_size(codec["id"], _check_types(config), size)
        _check_between(packed, whole)
        limits = {"most": most_bytes(size), "most_packed": most_bytes(packed)}
        found.append({"id": _NAME, "of": codec["id"], "config": config, **limits})
        size = packed
    last = None if packer is None else found.pop()
    return facts | {"filters": found or None, "compressor": last}


def _check_types(config: dict[str, Any]) -> dict[str, int]:
    """Return the bytes of the numbers that a filter takes and makes; text grows without end."""
    found = {key: np.dtype(config[key]) for key in _TYPES if config.get(key)}
    for dtype in found.values():
        if dtype.kind not in "biufc":
            raise ValueError(f"a filter makes {dtype}, which is no number")
    return {key: dtype.itemsize for key, dtype in found.items()}


def _encoded_size(name: str, types: Mapping[str, int], size: int) -> int:
    """Return the bytes that a filter of Zarr 2 makes of a chunk; about as many if it packs."""
    if name == "packbits":
        return size // 8 + 1
    plain = types.get("decode_dtype", types.get("dtype", 1))
    return size * types.get("encode_dtype", types.get("astype", plain)) // plain


def _check_between(size: int, whole: int) -> None:
    if size > max(_MOST_BYTES, whole):
        raise ValueError(f"a chunk of {whole} bytes has {size} between its codecs")


def decode_bytes(codec: str, config: Mapping[str, Any], packed: bytes, most: int) -> bytes:
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
