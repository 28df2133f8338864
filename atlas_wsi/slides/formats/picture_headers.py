"""Sizes that encoded pictures say they have, read without decoding."""

from __future__ import annotations

import math
import re
import struct

_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15, without DHT, JPG and DAC
_BARE = {0x01, *range(0xD0, 0xD9)}  # markers without a length
_SCAN = 0xDA
_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG_2000 = b"\xff\x4f\xff\x51"  # start of the codestream, and of its sizes
LERC_MAGIC = (b"Lerc2 ", b"CntZImage ")
_LERC = re.compile(b"|".join(LERC_MAGIC))
_JPEG_XR, _JPEG_XR_STREAM = b"II\xbc", b"WMPHOTO\0"
_BOXES = (b"\0\0\0\x0cjP  ", b"\0\0\0\x0cJXL ")
_JXL_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
_HEADER_BYTES = 64  # more than sizes in codestreams take
_MAX_BOXES = 4096

Size = tuple[int, ...]


def picture_size(encoded: bytes) -> Size | None:
    """Read the rows, columns and, if they may be many, samples of a picture; None if cut short.

    ITU-T T.81 B, T.800 A.5.1, T.832 8.3 and A; ISO/IEC 18181-1 D.2; PNG 1.2, 11.2.2; RFC 9649;
    Esri LERC.
    """
    try:
        if encoded.startswith(b"\xff\xd8"):
            return _jpeg_size(encoded)
        if encoded.startswith(_PNG):
            cols, rows = struct.unpack_from(">II", encoded, 16)
            return rows, cols
        if encoded.startswith(b"RIFF"):
            return _webp_size(encoded)
        if encoded.startswith(_JPEG_XR):
            return _jpeg_xr_size(encoded)
        if encoded.startswith(LERC_MAGIC):
            return _lerc_size(encoded)
        if encoded.startswith(_BOXES):
            encoded = _stream(encoded)
        if encoded.startswith(b"\xff\x0a"):
            return _jpeg_xl_size(encoded)
        if not encoded.startswith(_JPEG_2000):
            return None
        right, bottom, left, top = struct.unpack_from(">IIII", encoded, 8)
        (n_samples,) = struct.unpack_from(">H", encoded, 40)
    except (struct.error, IndexError):  # cut short: the decoder says so better
        return None
    return max(0, bottom - top), max(0, right - left), n_samples


def _jpeg_size(encoded: bytes) -> Size | None:
    """Return the largest frame before the first scan."""
    found: Size | None = None
    at = 2
    while (at := encoded.find(b"\xff", at)) >= 0:
        while encoded[at] == 0xFF:
            at += 1
        marker = encoded[at]
        at += 1
        if marker == _SCAN:
            break
        if marker in _FRAMES:
            found = max(found or (0,), struct.unpack_from(">HHB", encoded, at + 3), key=math.prod)
        if marker not in _BARE and marker != 0:
            at += struct.unpack_from(">H", encoded, at)[0]
    return found


def _webp_size(encoded: bytes) -> Size | None:
    match encoded[12:16]:
        case b"VP8X":
            sides = int.from_bytes(encoded[24:30], "little")  # less one, 24 bits each
            return (sides >> 24) + 1, (sides & 0xFFFFFF) + 1
        case b"VP8L":
            (bits,) = struct.unpack_from("<I", encoded, 21)
            return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
        case b"VP8 ":
            cols, rows = struct.unpack_from("<HH", encoded, 26)
            return rows & 0x3FFF, cols & 0x3FFF
    return None


def _jpeg_xr_size(encoded: bytes) -> Size:
    """Return the largest of the sizes in the container and in its streams: color and alpha."""
    (at,) = struct.unpack_from("<I", encoded, 4)
    sizes = {0xBC80: 0, 0xBC81: 0}
    for tag in range(struct.unpack_from("<H", encoded, at)[0]):
        number, kind, _, value = struct.unpack_from("<HHII", encoded, at + 2 + 12 * tag)
        if number in sizes:
            sizes[number] = value & (0xFFFF if kind == 3 else 0xFFFFFFFF)
    rows, cols = sizes[0xBC81], sizes[0xBC80]
    for stream in re.finditer(_JPEG_XR_STREAM, encoded):
        form = ">HH" if encoded[stream.end() + 2] & 0x80 else ">II"
        right, bottom = struct.unpack_from(form, encoded, stream.end() + 4)
        rows, cols = max(rows, bottom + 1), max(cols, right + 1)
    return rows, cols


def _lerc_size(encoded: bytes) -> Size:
    """Return the largest size, and the samples of all blobs."""
    rows = cols = n_samples = 0
    for blob in _LERC.finditer(encoded):
        at, depth = blob.end(), 1
        (version,) = struct.unpack_from("<i", encoded, at)
        is_second = blob.group() == b"Lerc2 "
        at += 4 + 4 * (version >= 3) if is_second else 8
        height, width = struct.unpack_from("<II", encoded, at)
        if is_second and version >= 4:
            (depth,) = struct.unpack_from("<I", encoded, at + 8)
        rows, cols, n_samples = max(rows, height), max(cols, width), n_samples + depth
    return rows, cols, n_samples


def _stream(encoded: bytes) -> bytes:
    """Return the start of the codestream in the boxes of a JPEG 2000 or JPEG XL file."""
    found, at = b"", 0
    for _ in range(_MAX_BOXES):
        n_bytes, kind = struct.unpack_from(">I4s", encoded, at)
        start = at + 8
        if n_bytes == 1:
            (n_bytes,) = struct.unpack_from(">Q", encoded, start)
            start += 8
        end = max(at + n_bytes, start) if n_bytes else len(encoded)
        if kind in (b"jp2c", b"jxlc", b"jxlp"):
            start += 4 * (kind == b"jxlp")  # its number
            found += encoded[start : min(end, start + _HEADER_BYTES)]
        if len(found) >= _HEADER_BYTES or end >= len(encoded):
            return found
        at = end
    raise ValueError(f"its picture does not begin in {_MAX_BOXES} boxes")


def _jpeg_xl_size(encoded: bytes) -> Size:
    header, at = int.from_bytes(encoded[2:_HEADER_BYTES], "little"), 0

    def bits(n: int) -> int:
        nonlocal at
        at += n
        return header >> (at - n) & ((1 << n) - 1)

    def choice(*kinds: tuple[int, int]) -> int:
        least, n_bits = kinds[bits(2)]
        return least + bits(n_bits)

    def side(*, is_small: int) -> int:
        if is_small:
            return 8 * (bits(5) + 1)
        return choice((1, 9), (1, 13), (1, 18), (1, 30))

    def size() -> tuple[int, int]:
        is_small = bits(1)
        rows, ratio = side(is_small=is_small), bits(3)
        if not ratio:
            return rows, side(is_small=is_small)
        wide, high = _JXL_RATIOS[ratio - 1]
        return rows, rows * wide // high

    rows, cols = size()
    n_extra = 0
    if not bits(1):  # not all of the metadata is as usual
        if bits(1):
            bits(3)  # orientation
            if bits(1):
                size()  # meant for display
            if bits(2):
                raise ValueError("a preview or an animation in JPEG XL is not read")
        if bits(1):
            choice((32, 0), (16, 0), (24, 0), (1, 6))
            bits(4)
        else:
            choice((8, 0), (10, 0), (12, 0), (1, 6))
        bits(1)
        n_extra = choice((0, 0), (1, 0), (2, 4), (1, 12))
    return rows, cols, 3 + n_extra
