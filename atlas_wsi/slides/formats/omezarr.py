"""OME-Zarr 0.4 and 0.5: folders, zip files and URLs."""

from __future__ import annotations

import itertools
import math
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import zarr
from zarr.storage import FsspecStore, LocalStore, ZipStore

from atlas_wsi.bounded import MAX_JSON_BYTES, BoundedStore
from atlas_wsi.errors import SlideError, UnreadableSlideError, UnsupportedFormatError
from atlas_wsi.slides.backend import Backend, Level, SlideMeta
from atlas_wsi.slides.blocks import whole_blocks
from atlas_wsi.slides.formats.ngff import NgffImage, ome_attributes, parse_images
from atlas_wsi.slides.images import choose_image, other_images
from atlas_wsi.slides.pyramid import true_downsample
from atlas_wsi.slides.registry import ZARR_FILES, SlideFormat, SlideSource
from atlas_wsi.slides.remote import explain, is_url, storage_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from zarr.abc.store import Store

    from atlas_wsi.grid import Box

_ROOT_FILES = ("zarr.json", ".zattrs", ".zgroup")
_JSON_FILES = (*_ROOT_FILES, ".zarray", ".zmetadata")
_MAX_CHUNK_BYTES = 2**28
_MAX_CHUNKS = 2**22  # in a shard
_MAX_CHANNELS = 4096
_MAX_IMAGES = 64  # of a collection
_MAX_SIDE_PX = 2**31 - 1


class OmeZarrBackend(Backend):
    """One multiscale image of a zarr store."""

    def __init__(self, where: str, group: zarr.Group, number: int | None = None) -> None:
        self._where = where
        self._store = group.store
        images = _images(group, where)
        extents = [one.extent for one in images]
        chosen = choose_image(extents, number)
        names = tuple(one.name for one in images)
        image = images[chosen].image
        notes = [
            *image.warnings,
            *([] if number is not None else other_images(names, extents, chosen)),
        ]
        self._arrays = _open_levels(images[chosen].group, image, where, notes)
        self._axes = image.axes
        self.meta = replace(_read_meta(self._arrays, image, notes), images=names)

    def read_block(self, level: int, box: Box) -> NDArray[Any]:
        """Read pixels `(rows, cols, channels)` of a stored level."""
        rows, cols = box.slices
        wanted = {"y": rows, "x": cols, "c": slice(None)}
        index = tuple(wanted.get(role, 0) for role in self._axes)
        try:
            stored = np.asarray(self._arrays[level][index])
        except Exception as error:  # whatever the codec or the network raises
            if is_url(self._where) and (explained := explain(error, self._where)):
                raise explained from error  # a chunk that was not fetched is no damaged chunk
            raise UnreadableSlideError(
                f"{self._where}: level {level}, rows {box.row} to {box.row_end}, columns "
                f"{box.col} to {box.col_end} cannot be read: {error}."
            ) from error
        kept = [role for role in self._axes if role in wanted]
        if "c" not in kept:
            kept.append("c")
            stored = stored[..., None]
        pixels = stored.transpose([kept.index(role) for role in "yxc"])
        return np.array(pixels, dtype=self.meta.dtype, order="C")

    def read_valid(self, level: int, box: Box, channels: Sequence[int] = ()) -> NDArray[np.bool_]:
        """Tell which pixels hold a number in channels."""
        if not self.meta.has_mask:
            return super().read_valid(level, box, channels)
        pixels = self.read_block(level, box)[..., list(channels) or slice(None)]
        return np.asarray(np.isfinite(pixels).all(axis=-1))

    def close(self) -> None:
        """Give the file back to the system."""
        self._store.close()


class _Image(NamedTuple):
    """One image of a store."""

    group: zarr.Group
    image: NgffImage
    name: str
    extent: int
    """Pixels of the finest level."""


def _images(group: zarr.Group, where: str) -> list[_Image]:
    """List the images of a group: its own, or those of a collection of bioformats2raw."""
    ome = ome_attributes(group.attrs.asdict())
    if "bioformats2raw.layout" in ome and "multiscales" not in ome:
        numbers = itertools.takewhile(lambda n: str(n) in group, range(_MAX_IMAGES))
        groups = {str(number): group[str(number)] for number in numbers}
        if not groups:
            raise UnreadableSlideError(
                f"{where} is a bioformats2raw collection without an image 0."
            )
    else:
        groups = {"": group}
    found = []
    for path, one in groups.items():
        if not isinstance(one, zarr.Group):
            raise UnreadableSlideError(f"{where}: {path} of the collection is no group.")
        for image in parse_images(one.attrs.asdict(), where):
            array = one.get(image.paths[0])
            shape = array.shape if isinstance(array, zarr.Array) else ()
            sides = [n for role, n in zip(image.axes, shape, strict=False) if role in "yx"]
            size = f"{' x '.join(map(str, sides))} px"
            name = ", ".join(part for part in (path, image.name) if part)
            found.append(_Image(one, image, f"{name} ({size})" if name else size, math.prod(sides)))
    return found


def open_omezarr(path: str | Path, image: int | None = None) -> OmeZarrBackend:
    """Open an image of an OME-Zarr, by default the largest."""
    where = str(path)
    store: Store | None = None
    try:
        inner, prefix = _open_store(where)
        store = BoundedStore(inner)
        group = zarr.open_group(store, path=prefix, mode="r", use_consolidated=False)
        return OmeZarrBackend(where, group, image)
    except BaseException as error:
        if store is not None:
            store.close()
        if isinstance(error, SlideError) or not isinstance(error, Exception):
            raise
        if isinstance(error, FileNotFoundError):
            raise UnsupportedFormatError(f"{where} holds no OME-Zarr image.") from error
        if is_url(where) and (explained := explain(error, where)):
            raise explained from error
        raise UnreadableSlideError(f"{where} cannot be opened as OME-Zarr: {error}.") from error


def _open_store(where: str) -> tuple[Store, str]:
    """Return the store and the path of the root group in it."""
    if is_url(where):
        return FsspecStore.from_url(
            where, storage_options=storage_options(where), read_only=True
        ), ""
    path = Path(where)
    if path.is_dir():
        return LocalStore(path, read_only=True), ""
    if not zipfile.is_zipfile(path):
        raise UnsupportedFormatError(f"{where} is neither a zarr folder nor a zip file.")
    return ZipStore(path, mode="r", read_only=True), _root_in_zip(path)


def _root_in_zip(path: Path) -> str:
    """Return the folder of a zip file's topmost zarr group."""
    with zipfile.ZipFile(path) as archive:
        names = [info.filename for info in archive.infolist()]
        for info in archive.infolist():
            is_json = info.filename.rpartition("/")[2] in _JSON_FILES
            is_packed = info.compress_type != zipfile.ZIP_STORED
            most = MAX_JSON_BYTES if is_json else _MAX_CHUNK_BYTES
            if info.file_size > most and (is_json or is_packed):  # a shard may be larger as it is
                raise UnsupportedFormatError(
                    f"{path}: {info.filename} has {info.file_size} bytes, at most {most} are read."
                )
    roots = [name for name in names if name.rpartition("/")[2] in _ROOT_FILES]
    if not roots:
        raise UnsupportedFormatError(f"{path} is a zip file without a zarr group.")
    return min(roots, key=lambda name: name.count("/")).rpartition("/")[0]


def _open_levels(
    group: zarr.Group, image: NgffImage, where: str, notes: list[str]
) -> list[zarr.Array[Any]]:
    arrays: list[zarr.Array[Any]] = []
    for path in image.paths:
        array = group.get(path)
        if not isinstance(array, zarr.Array):
            if not arrays:
                raise UnreadableSlideError(
                    f"{where}: the array {path!r} of the finest level is missing.",
                    hint="The copy may be incomplete: compare it with the original.",
                )
            notes.append(f"The level {path!r} is missing; the others are read.")
            continue
        _check_array(array, image, f"{where}/{path}")
        if arrays and not _is_coarser(array, arrays, image.axes):
            notes.append(f"The level {path!r} is no reduced copy of the first; it is ignored.")
            continue
        arrays.append(array)
    for role, size in zip(image.axes, arrays[0].shape, strict=True):
        if role not in {"y", "x", "c"} and size > 1:
            notes.append(f"Of {size} positions along {role} the first is read.")
    return arrays


def _check_array(array: zarr.Array[Any], image: NgffImage, where: str) -> None:
    if array.ndim != len(image.axes):
        raise UnreadableSlideError(
            f"{where} has {array.ndim} dimensions, its axes are {image.axes}."
        )
    if not all(0 < n <= _MAX_SIDE_PX for n in array.shape):
        raise UnreadableSlideError(f"{where} has the shape {array.shape}, which no image has.")
    if array.dtype.kind not in "uif":
        raise UnsupportedFormatError(
            f"{where} has samples of type {array.dtype}; integers and real numbers are read."
        )
    n_bytes = int(np.prod([float(n) for n in array.chunks])) * array.dtype.itemsize
    if n_bytes > _MAX_CHUNK_BYTES:
        raise UnsupportedFormatError(
            f"{where} is stored in chunks of {array.chunks} ({n_bytes / 2**30:.1f} GiB), each of "
            "which must be decoded whole.",
            hint="Write it again in chunks of about 512 x 512 pixels.",
        )
    shard = array.shards or array.chunks
    n_chunks = math.prod(-(-n // k) for n, k in zip(shard, array.chunks, strict=True))
    if n_chunks > _MAX_CHUNKS:
        raise UnsupportedFormatError(
            f"{where} has {n_chunks} chunks in a shard, at most {_MAX_CHUNKS} are read."
        )
    if "c" in image.axes and array.shape[image.axes.index("c")] > _MAX_CHANNELS:
        raise UnsupportedFormatError(f"{where} has more than {_MAX_CHANNELS} channels.")


def _is_coarser(
    array: zarr.Array[Any], finer: list[zarr.Array[Any]], axes: tuple[str, ...]
) -> bool:
    pairs = dict(zip(axes, zip(array.shape, finer[-1].shape, strict=True), strict=True))
    channels = pairs.get("c", (1, 1))
    return (
        array.dtype == finer[0].dtype
        and channels[0] == channels[1]
        and all(pairs[role][0] <= pairs[role][1] for role in "yx")
        and any(pairs[role][0] < pairs[role][1] for role in "yx")
    )


def _read_meta(arrays: list[zarr.Array[Any]], image: NgffImage, notes: list[str]) -> SlideMeta:
    y, x = image.axes.index("y"), image.axes.index("x")
    full = arrays[0].shape[y], arrays[0].shape[x]
    levels = []
    for array in arrays:
        shape = array.shape[y], array.shape[x]
        chunk = array.chunks[y], array.chunks[x]
        downsample = true_downsample(full[0], shape[0]), true_downsample(full[1], shape[1])
        tile = whole_blocks(chunk, shape)
        levels.append(Level(shape=shape, downsample=downsample, tile=tile, stored=chunk))
    n_channels = arrays[0].shape[image.axes.index("c")] if "c" in image.axes else 1
    dtype = arrays[0].dtype.newbyteorder("=")
    is_rgb = image.is_rgb(n_channels, dtype.name)
    white = float(np.iinfo(dtype).max) if dtype.kind in "iu" else 1.0
    properties = {"ome.version": image.version, "axes": ",".join(image.axes)}
    if is_rgb:
        properties["colorinterp"] = "red,green,blue"
    if image.colors:
        properties["channel_colors"] = ",".join(image.colors)
    return SlideMeta(
        format=f"ome-zarr {image.version}",
        backend="omezarr",
        levels=tuple(levels),
        n_channels=n_channels,
        dtype=dtype.name,
        channel_names=image.channel_names(n_channels, dtype.name),
        background=(white if is_rgb else 0.0,) * n_channels,
        mpp=image.mpp,
        mpp_source="OME-Zarr scale" if image.mpp else "",
        has_mask=dtype.kind == "f",
        properties=properties,
        warnings=tuple(notes),
    )


def _is_zarr(source: SlideSource) -> bool:
    if source.url is not None:
        return ".zarr" in source.address and not source.address.endswith(".zip")
    if source.is_folder:
        return any((source.local / name).exists() for name in ZARR_FILES)
    return source.is_zip


FORMATS = (
    SlideFormat(
        name="ome-zarr",
        title="OME-Zarr 0.4 and 0.5",
        suffixes=(".zarr", ".zarr.zip"),
        rank=5,
        recognizes=_is_zarr,
        open=lambda source: open_omezarr(source.url or source.local, source.image),
    ),
)
