"""Sizes that encoded pictures say they have, read without decoding."""

from __future__ import annotations

import struct

_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15, without DHT, JPG and DAC
_BARE = {0x01, *range(0xD0, 0xD9)}  # markers without a length
_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG_2000 = b"\xff\x4f\xff\x51"  # start of the codestream, and of its sizes


def picture_size(encoded: bytes) -> tuple[int, int] | None:
    """Read the size of a JPEG, JPEG 2000 or PNG (ITU-T T.81 B; T.800 A.5.1; PNG 1.2, 11.2.2)."""
    try:
        if encoded.startswith(b"\xff\xd8"):
            return _jpeg_size(encoded)
        if encoded.startswith(_PNG):
            cols, rows = struct.unpack_from(">II", encoded, 16)
            return rows, cols
        at = encoded.find(_JPEG_2000)
        if at < 0:
            return None
        right, bottom, left, top = struct.unpack_from(">IIII", encoded, at + 8)
    except (struct.error, IndexError):  # cut short: the decoder says so better
        return None
    return max(0, bottom - top), max(0, right - left)


def _jpeg_size(encoded: bytes) -> tuple[int, int] | None:
    at = 2
    while True:
        at = encoded.find(b"\xff", at)
        if at < 0:
            return None
        while encoded[at] == 0xFF:
            at += 1
        marker = encoded[at]
        at += 1
        if marker in _FRAMES:
            rows, cols = struct.unpack_from(">HH", encoded, at + 3)
            return rows, cols
        if marker not in _BARE and marker != 0:
            at += struct.unpack_from(">H", encoded, at)[0]
