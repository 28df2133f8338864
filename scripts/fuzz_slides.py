"""Small slides in every codec, of several images, and with absent tiles; and how slides are read."""

from __future__ import annotations

import json
import random
import shutil
import zipfile
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile

from atlas_wsi.grid import Box
from atlas_wsi.slides.open import open_slide

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_CODECS = (
    *("deflate", "jpeg", "jpeg2000", "jpegxl", "jpegxr", "lerc", "lerc_deflate", "lerc_zstd"),
    *("lzma", "lzw", "packbits", "png", "webp", "zstd"),
)
_SIDE = 64
_IMAGES = (*(None,) * 12, 0, 1, 2, 9, -1)


def make_slides(folder: Path, pixels: NDArray[np.uint8], multiscale: dict[str, Any]) -> None:
    """Write the slides; `pixels` has 128 rows and 96 columns."""
    options: dict[str, Any] = {"photometric": "rgb", "tile": (_SIDE, _SIDE)}
    for name in _CODECS:
        codec, _, second = name.partition("_")
        settings = {"compression": second} if second else {}
        path = folder / f"tile_{name}.tif"
        tifffile.imwrite(path, pixels, compression=codec, compressionargs=settings, **options)
    square = pixels[:_SIDE, :_SIDE]
    absent = iter([square, None, None, square])
    shape = (2 * _SIDE, 2 * _SIDE, 3)
    tifffile.imwrite(
        folder / "sparse_a.tif", absent, shape=shape, dtype="u1", compression="zstd", **options
    )
    _make_scenes(folder, pixels)
    with tifffile.TiffWriter(folder / "images.ome.tif", ome=True) as file:
        for image in (pixels, pixels[:64], pixels[..., 0]):
            is_gray = image.ndim == 2
            file.write(image, photometric="minisblack" if is_gray else "rgb", tile=(64, 64))
    with tifffile.TiffWriter(folder / "images.tif") as file:
        file.write(pixels, subifds=1, **options)
        file.write(pixels[::2, ::2], subfiletype=1, **options)
        file.write(pixels[:100, :50].astype(np.uint16), photometric="rgb")
        file.write(pixels[:, :, 0], photometric="minisblack")
    _make_zarrs(folder, pixels, multiscale)
    for name in ("a.svs", "a.tif", "b.tif", "geo.tif", "a.png", "a.jpg", "a.bmp", "images.ome.tif",
                 "images.tif", "tile_webp.tif", "tile_jpegxl.tif", "images.zarr.zip"):  # fmt: skip
        shutil.copy(folder / name, folder / f"cut_{name}")


def _make_scenes(folder: Path, pixels: NDArray[np.uint8]) -> None:
    import rasterio
    from rasterio.transform import from_origin
    from rasterio.windows import Window

    options: dict[str, Any] = {
        "driver": "GTiff", "width": 128, "height": 128, "count": 3, "dtype": "uint8",
        "crs": "EPSG:32633", "transform": from_origin(5e5, 5e6, 10, 10),
        "tiled": True, "blockxsize": 64, "blockysize": 64,
    }  # fmt: skip
    window = Window(0, 0, 64, 64)
    with rasterio.open(folder / "sparse_geo.tif", "w", SPARSE_OK=True, **options) as raster:
        raster.write(pixels[:64, :64].transpose(2, 0, 1), window=window)
    for number in (1, 2):
        options["APPEND_SUBDATASET"] = number > 1
        with rasterio.open(folder / "images_geo.tif", "w", **options) as raster:
            raster.write(pixels[:64, :64].transpose(2, 0, 1), window=window)


def _make_zarrs(folder: Path, pixels: NDArray[np.uint8], multiscale: dict[str, Any]) -> None:
    facts = {
        "zarr_format": 2, "shape": [3, 128, 128], "chunks": [3, 64, 64], "dtype": "|u1",
        "compressor": {"id": "zlib"}, "fill_value": 0, "order": "C", "filters": None,
    }  # fmt: skip
    image = {
        ".zgroup": '{"zarr_format": 2}',
        ".zattrs": json.dumps({"multiscales": [multiscale]}),
        "0/.zarray": json.dumps(facts),
        **{f"0/0.{n}": zlib.compress(pixels[:64, :64].tobytes()) for n in ("0.0", "1.1")},
    }
    collection = {".zgroup": image[".zgroup"], ".zattrs": '{"bioformats2raw.layout": 3}'}
    for number in (0, 1):
        collection |= {f"{number}/{name}": data for name, data in image.items()}
    for name, members in (("sparse.zarr.zip", image), ("images.zarr.zip", collection)):
        with zipfile.ZipFile(folder / name, "w") as archive:
            for member, data in members.items():
                archive.writestr(member, data)


def list_slides(folder: Path) -> dict[str, list[Path]]:
    """Return the slides by target."""
    return {
        "codecs": sorted(folder.glob("tile_*")),
        "sparse": sorted(folder.glob("sparse*")),
        "images": sorted(folder.glob("images*")),
        "truncated": sorted(folder.glob("cut_*")),
    }


def read_slide(path: Path) -> None:
    """Open a slide and read of it, as its bytes choose."""
    files = [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.is_file())
    rng = random.Random(b"".join(file.read_bytes() for file in files))
    is_strict = rng.random() < 0.5
    options: dict[str, Any] = {"strict": is_strict, "allow_truncated": rng.random() < 0.5}
    with open_slide(path, image=rng.choice(_IMAGES), **options) as slide:
        rows, cols = (min(_SIDE, n) for n in slide.shape)
        slide.read_region(0, 0, rows, cols)
        row, col = (rng.randrange(-_SIDE, min(n, 4096)) for n in slide.shape)
        slide.read_masked(row, col, _SIDE, _SIDE)
        slide.read_valid(row, col, _SIDE, _SIDE)
        level = rng.randrange(len(slide.meta.levels))  # coarser ones are made of all of it
        slide.read_level(level, Box(row=0, col=0, rows=_SIDE, cols=_SIDE))
        if any("unable to allocate" in lost.reason.lower() for lost in slide.unreadable):
            raise MemoryError(slide.unreadable)  # a block without memory is white
