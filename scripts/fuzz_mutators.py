"""Damage files, by their structure if it is known."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import re
import struct
import warnings
import zipfile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import random

_NASTY = (0, 1, -1, 2**31 - 1, 2**32, 2**63, 10**400, 1e308, -0.5, None, True, "", "x", [], {})
_NASTY_TEXT = ("NaN", "Infinity", "-1e999", "[" * 5000, "\x00", "\\ud83d")


def mutate(data: bytes, name: str, rng: random.Random) -> bytes:
    """Damage a file."""
    if name.startswith("cut_"):
        data = data[: rng.randrange(1, len(data))]
        if rng.random() < 0.8:
            return data
    if name.startswith("tile_") and rng.random() < 0.6:
        return _mutate_tile(data, rng)
    if name.startswith("sparse_") and rng.random() < 0.6:
        return _mutate_table(data, rng)
    if name.endswith(("json",)) and rng.random() < 0.8:
        return _mutate_json(data, rng)
    is_whole = not name.startswith("cut_")
    if is_whole and name.endswith((".tif", ".svs")) and rng.random() < 0.7:
        return _mutate_tiff(data, rng)
    if name.endswith(".xml"):
        return _mutate_xml(data.decode(), rng).encode("utf-8", "replace")
    if name.endswith(".h5") and rng.random() < 0.6:
        return _mutate_hdf5(data, rng)
    if is_whole and name.endswith(".zip") and rng.random() < 0.7:
        return _mutate_zip(data, rng)
    return _mutate_bytes(data, rng)


def _mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.randrange(len(found) + 1)
        # Headers are worth more than pixels.
        at = min(at, rng.choice((at, 64, 512)))
        match rng.randrange(5):
            case 0 if at < len(found):
                found[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(found):
                found[at] = rng.choice((0, 255, 127, 128, rng.randrange(256)))
            case 2:
                del found[max(1, rng.randrange(len(found) + 1)) :]
            case 3:
                found[at:at] = rng.randbytes(rng.choice((1, 4, 64)))
            case _:
                found[at:at] = found[at : at + rng.choice((4, 32, 512))]
    return bytes(found) or b"\0"


def _mutate_json(data: bytes, rng: random.Random) -> bytes:
    whole = json.loads(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        places: list[tuple[Any, Any]] = []
        _places(whole, places)
        if not places:
            break
        parent, key = rng.choice(places)
        match rng.randrange(5):
            case 0:
                del parent[key]
            case 1 if isinstance(parent, dict):
                parent[rng.choice(("extra", "type", "crs", "\x00"))] = parent[key]
            case 2:
                deep: Any = parent[key]
                for _ in range(rng.choice((1, 20, 100))):
                    deep = [deep]
                parent[key] = deep
            case _:
                parent[key] = copy.copy(rng.choice(_NASTY))
    if rng.random() < 0.1:
        whole = rng.choice((whole, [whole], 0, None, "x", [], {}))
    text = json.dumps(whole, allow_nan=True)
    if rng.random() < 0.15:
        text = text.replace(rng.choice("0123456789"), rng.choice(_NASTY_TEXT), 1)
    return text.encode("utf-8", "replace")


def _places(value: Any, found: list[tuple[Any, Any]]) -> None:
    if isinstance(value, dict):
        items: Any = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    else:
        return
    for key, child in items:
        found.append((value, key))
        _places(child, found)


def _mutate_tiff(data: bytes, rng: random.Random) -> bytes:
    """Change the type, count or value of tags of a directory."""
    found = bytearray(data)
    is_big = found[2:4] == b"+\0"
    head, n_form, size, at = ("<Q", "<Q", 20, 8) if is_big else ("<I", "<H", 12, 4)
    directories: list[tuple[int, int]] = []  # first tag, number of tags
    while (where := struct.unpack_from(head, found, at)[0]) and len(directories) < 16:
        (n_tags,) = struct.unpack_from(n_form, found, where)
        directories.append((where + struct.calcsize(n_form), n_tags))
        at = directories[-1][0] + size * n_tags
    first, n_tags = rng.choice((directories[0], *directories))
    if rng.random() < 0.05:  # the next directory: any, also one that was there
        struct.pack_into(head, found, at, rng.choice((first, where, 8, rng.randrange(len(data)))))
    for _ in range(rng.choice((1, 1, 2, 3))):
        tag = first + size * rng.randrange(n_tags)
        value = rng.choice((0, 1, 2, 255, 65535, 2**24, 2**31, 2**32 - 1, rng.randrange(2**32)))
        match rng.randrange(5):
            case 0:
                struct.pack_into(
                    "<H", found, tag, rng.choice((value & 65535, 256, 258, 277, 34735))
                )
            case 1:
                struct.pack_into("<H", found, tag + 2, rng.randrange(20))
            case 2:
                struct.pack_into("<I", found, tag + 4, value)
            case 3:
                struct.pack_into("<H", found, tag + size - 4 - 4 * is_big, value & 65535)
            case _:
                struct.pack_into("<I", found, tag + size - 4 - 4 * is_big, value)
    return bytes(found)


def _mutate_tile(data: bytes, rng: random.Random) -> bytes:
    """Change bytes of an encoded tile, most of them in its header."""
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as tif:
        page = tif.pages.first
        at = rng.randrange(len(page.dataoffsets))
        start, n_bytes = page.dataoffsets[at], page.databytecounts[at]
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        place = start + min(rng.randrange(n_bytes), rng.choice((15, 47, n_bytes)))
        match rng.randrange(4):
            case 0:
                found[place] ^= 1 << rng.randrange(8)
            case 1:
                found[place] = rng.choice((0, 255, 127, 128, rng.randrange(256)))
            case 2:
                found[place : place + 4] = rng.choice(
                    (b"\xff\xff\xff\x7f", b"\0\0\xff\xff", b"\0" * 4)
                )
            case _:
                found[place : start + n_bytes] = bytes(start + n_bytes - place)
    return bytes(found[: len(data)])


def _mutate_table(data: bytes, rng: random.Random) -> bytes:
    """Change entries of the tables of where tiles lie: tiles that are absent, empty, or elsewhere."""
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as tif:
        tables = [tag for tag in tif.pages.first.tags if tag.code in {273, 279, 324, 325}]
        places = [
            (tag.valueoffset + k * tag.valuebytecount // tag.count, tag.valuebytecount // tag.count)
            for tag in tables
            for k in range(tag.count)
        ]
    found = bytearray(data)
    for at, n_bytes in rng.sample(places, rng.randrange(1, len(places) + 1)):
        value = rng.choice((0, 0, 1, len(data) - 8, 2**31, 2**64 - 1, rng.randrange(len(data))))
        found[at : at + n_bytes] = value.to_bytes(8, "little")[:n_bytes]
    return bytes(found)


def _mutate_xml(text: str, rng: random.Random) -> str:
    """Nest, drop and repeat elements; put other values into attributes."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        tags = list(re.finditer(r"<[^>]*>", text))
        values = list(re.finditer(r'"[^"]*"', text))
        if not tags:
            break
        tag = rng.choice(tags)
        match rng.randrange(5):
            case 0:
                text = text[: tag.start()] + text[tag.end() :]
            case 1:
                text = (
                    text[: tag.end()] + tag.group() * rng.choice((1, 40, 4000)) + text[tag.end() :]
                )
            case 2:
                text = (
                    text[: tag.start()] + '<!ENTITY a "aaaa">&a;&b;<![CDATA[' + text[tag.start() :]
                )
            case _ if values:
                value = rng.choice(values)
                new = str(rng.choice((*_NASTY, *_NASTY_TEXT, "9" * 400, "µm", "-0", "1e-320")))
                text = text[: value.start() + 1] + new + text[value.end() - 1 :]
    return text


def _mutate_hdf5(data: bytes, rng: random.Random) -> bytes:
    """Replace arrays, links and attributes by others."""
    import h5py

    buffer = io.BytesIO(data)
    with h5py.File(buffer, "r+") as file:
        for _ in range(rng.choice((1, 1, 2, 3))):
            name = rng.choice((*file, "coords"))
            with contextlib.suppress(
                LookupError, ArithmeticError, RuntimeError, ValueError, TypeError, OSError
            ):
                _mutate_member(file, name, rng)
    return buffer.getvalue()


def _mutate_member(file: Any, name: str, rng: random.Random) -> None:
    import h5py
    import numpy as np

    shapes = ((), (0,), (0, 2), (1,), (3, 2), (2, 2, 2), (2**40, 2), (2**20, 2**10))
    kinds = ("i1", "u8", "i8", "f4", "f8", "S5", "b1", "c8", h5py.string_dtype())
    what = rng.randrange(4)
    if what == 0:
        keys = (*file[name].attrs, "patch_size", "patch_level", "unit")
        values = (*_NASTY[:9], "x", "9" * 400, np.zeros(3), float("nan"))
        file[name].attrs[rng.choice(keys)] = rng.choice(values)
        return
    file.pop(name, None)
    match what:
        case 1:
            links = (h5py.ExternalLink("other.h5", "/x"), h5py.SoftLink(f"/{name}"))
            file[name] = rng.choice(links)
        case 2:
            file.create_group(name)
        case _:
            shape, kind = rng.choice(shapes), rng.choice(kinds)
            chunks = (1024, 2) if len(shape) == 2 and shape[0] > 2**10 else None
            fill = rng.choice((-1, 0, 1, 127)) if kind in ("i1", "i8", "f8") else None
            file.create_dataset(name, shape, kind, chunks=chunks, fillvalue=fill)


def _mutate_zip(data: bytes, rng: random.Random) -> bytes:
    """Damage, drop, repeat or rename a member."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    at = rng.randrange(len(members))
    name, content = members[at]
    match rng.randrange(6):
        case 0:
            del members[at]
        case 1:
            names = ("../x", "/etc/x", "a/" * 500, "", "zarr.json", ".zattrs", "0", "0/.zarray/x")
            members[at] = (rng.choice(names), content)
        case 2:
            members[at] = (name, b" " * rng.choice((2**20, 40 * 2**20)))
        case _ if name.endswith(("json", ".zattrs", ".zarray", ".zgroup")):
            members[at] = (name, _mutate_json(content, rng))
        case _:
            members[at] = (name, _mutate_bytes(content, rng) if content else b"x")
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        warnings.simplefilter("ignore")
        for name, content in members:
            archive.writestr(name or "x", content)
    return buffer.getvalue()
