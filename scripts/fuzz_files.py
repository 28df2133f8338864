"""Small valid files of every kind, and the public functions that read them."""

from __future__ import annotations

import json
import shutil
import zipfile
import zlib
from typing import TYPE_CHECKING, Any

import numcodecs
import numpy as np
import tifffile
from fuzz_slides import list_slides, make_slides, read_slide

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_CODECS: dict[str, dict[str, Any]] = {
    **{name: {} for name in ("blosc", "bz2", "gzip", "lz4", "lzma", "zlib", "zstd")},
    "delta": {"dtype": "|u1"},
    "fletcher32": {},
    "packbits": {},
    "shuffle": {"elementsize": 2},
}
_RESULT = {
    "summary.json": "summary.json",
    "group.json": "heatmap.ome.zarr/zarr.json",
    "array.json": "heatmap.ome.zarr/0/zarr.json",
}
_ARCHIVE = {
    "slides.jsonl": ".batch/slides.jsonl",
    "options.json": ".batch/options.json",
    "row.json": ".batch/rows/*.json",
    "lease.json": ".batch/leases/*.1",
}


def make_seeds(folder: Path) -> dict[str, list[Path]]:
    """Write valid files of every kind to an empty folder; return them by target."""
    import geopandas
    import h5py
    import rasterio
    import shapely
    import torch
    from PIL import Image
    from rasterio.transform import from_origin
    from safetensors.torch import save_file

    import atlas_wsi
    from atlas_wsi.models.registry import load_model
    from atlas_wsi.slides.synthetic import make_svs

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (128, 96, 3), dtype=np.uint8)
    make_svs(folder / "a.svs", (128, 128), tile=64, levels=1)
    tifffile.imwrite(folder / "a.tif", pixels, tile=(64, 64), compression="deflate")
    tifffile.imwrite(folder / "b.tif", pixels, bigtiff=True, photometric="rgb")
    tifffile.imwrite(folder / "a.ome.tif", pixels, metadata={"axes": "YXS"}, photometric="rgb")
    with rasterio.open(
        folder / "geo.tif", "w", driver="GTiff", width=96, height=128, count=3, dtype="uint8",
        crs="EPSG:32633", transform=from_origin(5e5, 5e6, 10, 10),
    ) as raster:  # fmt: skip
        raster.write(pixels.transpose(2, 0, 1))
    with rasterio.open(
        folder / "labels.tif", "w", driver="GTiff", width=12, height=16, count=1, dtype="uint8",
        crs="EPSG:32633", transform=from_origin(5e5, 5e6, 80, 80), nodata=255,
    ) as raster:  # fmt: skip
        raster.write(pixels[:16, :12, 0] // 86, 1)
    for name in ("a.png", "a.jpg", "a.bmp"):
        Image.fromarray(pixels).save(folder / name)
    Image.fromarray(pixels[..., 0]).resize((128, 128)).save(folder / "mask.png")
    ring = [[5, 5], [100, 5], [100, 100], [5, 100], [5, 5]]
    feature = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"classification": {"name": "tumor", "color": [1, 2, 3]}},
    }
    whole = {"type": "FeatureCollection", "features": [feature, feature]}
    (folder / "a.geojson").write_text(json.dumps(whole))
    areas = {"class": ["tumor"], "geometry": [shapely.box(5e5, 4.999e6, 5.01e5, 5e6)]}
    geopandas.GeoDataFrame(areas, crs="EPSG:32633").to_file(folder / "a.gpkg")
    with h5py.File(folder / "a.h5", "w") as file:
        file["coords"] = np.array([[0, 0], [64, 64]])
        file["coords"].attrs.update(patch_size=64, patch_level=0)
        file["features"] = np.ones((2, 4), np.float32)
    (folder / "list.csv").write_text("slide,regions,group\na.svs,a.geojson,p1\nb.tif,a.geojson,\n")
    (folder / "batch.csv").write_text("slide,mpp\na.svs,0.5\nb.tif,\n")
    names = [f"{c}/{n}.png" for c in "ab" for n in (0, 1)]
    rows = "".join(f"{name},{name[0]},p{k}\n" for k, name in enumerate(names))
    (folder / "groups.csv").write_text(f"path,class,group\n{rows}")
    tensors = {"w": torch.ones(3, 4), "b": torch.zeros(3)}
    save_file(tensors, folder / "a.safetensors", metadata={"format": "pt"})
    torch.save(tensors, folder / "a.pth")
    model = load_model("atlas_test")
    model.save(folder / "model.safetensors")
    atlas_wsi.predict(atlas_wsi.open_slide(folder / "a.svs"), model).write(folder)
    for name, part in _RESULT.items():
        shutil.copy(folder / "a" / part, folder / name)
    steps: list[Any] = [
        {"name": "Resize", "arguments": {"size": 64}},
        {"name": "ToTensor"},
        {"name": "Normalize", "arguments": {"mean": [0.5] * 3, "std": [0.5] * 3}},
    ]
    config = {
        "num_classes": 2, "class_names": ["a", "b"], "patch_size_pixels": 64,
        "spacing_um_px": 0.5, "architecture": "resnet", "transform": steps,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    multiscale = {
        "version": "0.4",
        "axes": [{"name": n, "type": "channel" if n == "c" else "space"} for n in "cyx"],
        "datasets": [
            {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1, 0.5, 0.5]}]}
        ],
    }
    zattrs = {"multiscales": [multiscale]}
    zarray = {
        "zarr_format": 2, "shape": [3, 64, 64], "chunks": [3, 64, 64], "dtype": "|u1",
        "compressor": None, "fill_value": 0, "order": "C", "filters": None,
    }  # fmt: skip
    (folder / "zattrs.json").write_text(json.dumps(zattrs))
    (folder / "zarray.json").write_text(json.dumps(zarray))
    for codec, settings in _CODECS.items():
        encode = numcodecs.get_codec({"id": codec} | settings).encode
        packed = encode(np.arange(3 * 64 * 64, dtype=np.uint8))
        (folder / f"chunk.{codec}").write_bytes(bytes(packed))
    _make_zip(folder)
    make_slides(folder, pixels, multiscale)
    _make_archive(folder)
    xml = tifffile.tiffcomment(folder / "a.ome.tif")
    (folder / "ome.xml").write_text(xml)
    targets = {
        "tiff": ("a.svs", "a.tif", "b.tif", "a.ome.tif"),
        "omexml": ("ome.xml",),
        "geotiff": ("geo.tif",),
        "image": ("a.png", "a.jpg", "a.bmp"),
        "omezarr": ("zattrs.json", "zarray.json"),
        "chunks": tuple(f"chunk.{codec}" for codec in _CODECS),
        "zip": ("a.zarr.zip",),
        "areas": ("a.geojson",),
        "regions": ("a.geojson",),
        "labels": ("labels.tif", "a.gpkg"),
        "mask": ("mask.png",),
        "tiles": ("a.h5",),
        "list": ("list.csv",),
        "groups": ("groups.csv",),
        "batch": ("batch.csv",),
        "archive": tuple(_ARCHIVE),
        "model": ("model.safetensors",),
        "result": tuple(_RESULT),
        "weights": ("a.safetensors", "a.pth"),
        "config": ("config.json",),
        "inspect": (
            "a.svs", "geo.tif", "a.png", "a.geojson", "a.h5", "list.csv", "a.safetensors", "a.pth",
            "config.json", "a.zarr.zip",
        ),
    }  # fmt: skip
    found = {target: [folder / name for name in names] for target, names in targets.items()}
    return found | list_slides(folder)


def _make_zip(folder: Path) -> None:
    with zipfile.ZipFile(folder / "a.zarr.zip", "w") as archive:
        archive.writestr(".zgroup", '{"zarr_format": 2}')
        archive.write(folder / "zattrs.json", ".zattrs")
        archive.write(folder / "zarray.json", "0/.zarray")
        archive.writestr("0/0.0.0", bytes(3 * 64 * 64))


def _make_archive(folder: Path) -> None:
    """Write the records of an archive with one slide done, one running and one waiting."""
    import atlas_wsi
    from atlas_wsi.batch.journal import Journal, Row, now
    from atlas_wsi.batch.lease import take
    from atlas_wsi.batch.start_run import begin

    for name in ("1.svs", "2.svs", "3.svs"):
        (folder / "slides").mkdir(exist_ok=True)
        shutil.copy(folder / "a.svs", folder / "slides" / name)
    journal = Journal(folder / "archive")
    begin(journal, folder / "slides", atlas_wsi.BatchOptions())
    done, begun, _ = journal.read_slides()
    journal.write_row(Row(name=done.name, source=done.source, state="done", ended=now()))
    take(journal.leases_folder, begun.name)
    for name, part in _ARCHIVE.items():
        (found,) = (folder / "archive").glob(part)
        shutil.copy(found, folder / name)


def door_of(target: str, seeds: Path) -> Callable[[Path], object]:
    """Return the function that reads a target's files."""
    from atlas_wsi import archive_status, open_result
    from atlas_wsi.batch.source import list_slides
    from atlas_wsi.interop.inspection import inspect_file
    from atlas_wsi.models.checkpoints import read_weights
    from atlas_wsi.models.registry import load_model
    from atlas_wsi.models.wsinfer import read_config
    from atlas_wsi.slides.open import open_slide
    from atlas_wsi.tissue.areas import read_areas, read_tissue
    from atlas_wsi.training.data.labeled_areas import areas_by_class
    from atlas_wsi.training.data.region_table import read_regions
    from atlas_wsi.training.data.tile_folder import read_tiles

    doors: dict[str, Callable[[Path], object]] = {
        "list": read_regions, "result": lambda path: open_result(path).areas(), "batch": list_slides, "model": load_model, "weights": read_weights,
        "config": lambda path: read_config(path.parent), "inspect": inspect_file,
        "groups": lambda path: read_tiles(path.parent), "archive": archive_status,
    }  # fmt: skip
    if target in doors:
        return doors[target]
    if target in ("areas", "regions", "labels", "mask", "tiles"):
        slide = open_slide(seeds / ("geo.tif" if target == "labels" else "a.svs"))
        doors = {"areas": read_areas, "regions": areas_by_class, "labels": areas_by_class}
        read = doors.get(target, read_tissue)
        return lambda path: read(path, slide)
    return read_slide


def lay_out(target: str, name: str, data: bytes, folder: Path) -> Path:
    """Write an input where its reader expects it; return the path to open."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if target in ("omezarr", "chunks"):
        valid = make_zarr_files(folder.parent / "seeds")
        place = folder / "a.zarr"
        (place / "0").mkdir(parents=True)
        (place / ".zgroup").write_text('{"zarr_format": 2}')
        for key, file in (("zattrs.json", ".zattrs"), ("zarray.json", "0/.zarray")):
            (place / file).write_bytes(data if key == name else valid[key])
        if zlib.crc32(data) % 4:
            (place / "0" / "0.0.0").write_bytes(bytes(3 * 64 * 64))
        if target == "chunks":
            _pack(place / "0", name.removeprefix("chunk."), data)
        return place
    if target == "result":
        shutil.copytree(folder.parent / "seeds" / "a", folder / "a")
        (folder / "a" / _RESULT[name]).write_bytes(data)
        return folder / "a"
    if target == "archive":
        shutil.copytree(folder.parent / "seeds" / "archive", folder / "archive")
        (found,) = (folder / "archive").glob(_ARCHIVE[name])
        found.write_bytes(data)
        return folder / "archive"
    if target == "omexml":
        path = folder / "a.ome.tif"
        pixels = np.zeros((64, 64, 3), np.uint8)
        tifffile.imwrite(path, pixels, photometric="rgb", description=data.replace(b"\0", b""))
        return path
    _put_beside(target, folder)
    path = folder / name
    path.write_bytes(data)
    return path


def _put_beside(target: str, folder: Path) -> None:
    """Make the files that an input refers to."""
    if target == "config":
        (folder / "torchscript_model.pt").write_bytes(b"PK")
    if target == "list":
        for one in ("a.svs", "b.tif", "a.geojson"):
            (folder / one).touch()
    if target == "groups":
        for one in "ab":
            (folder / one).mkdir()
            for k in (0, 1):
                shutil.copy(folder.parent / "seeds" / "a.png", folder / one / f"{k}.png")


def _pack(array: Path, codec: str, chunk: bytes) -> None:
    """Declare the chunk of an array as compressed."""
    facts = json.loads((array / ".zarray").read_text())
    (array / ".zarray").write_text(
        json.dumps(facts | {"compressor": {"id": codec} | _CODECS[codec]})
    )
    (array / "0.0.0").write_bytes(chunk)


def make_zarr_files(seeds: Path) -> dict[str, bytes]:
    """Return the valid metadata of an OME-Zarr by name."""
    return {name: (seeds / name).read_bytes() for name in ("zattrs.json", "zarray.json")}
