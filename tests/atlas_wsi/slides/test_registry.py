"""The table of slide formats is what every list of formats is made from."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import rasterio.shutil
import tifffile
import yaml

import atlas_wsi
from atlas_wsi.batch.source import list_slides
from atlas_wsi.slides.registry import slide_formats, slide_suffixes
from atlas_wsi.testing import make_ome_zarr, make_scene, make_svs

ROOT = Path(__file__).parents[3]


def test_formats_have_names_of_their_own_and_lower_case_suffixes():
    names = [kind.name for kind in slide_formats()]
    assert len(set(names)) == len(names)
    for suffix in slide_suffixes():
        assert re.fullmatch(r"(\.[a-z0-9]+)+", suffix)


def test_the_napari_manifest_has_the_suffixes_of_the_table():
    manifest = yaml.safe_load(
        (ROOT / "plugins/napari/napari_atlas_wsi/napari.yaml").read_text(encoding="utf-8")
    )
    (reader,) = manifest["contributions"]["readers"]
    assert reader["filename_patterns"] == [f"*{suffix}" for suffix in slide_suffixes()]


def test_the_page_on_reading_names_every_suffix():
    page = (ROOT / "docs/reading.md").read_text(encoding="utf-8")
    assert [s for s in slide_suffixes() if f"`{s}`" not in page] == []


@pytest.mark.parametrize("suffix", [s for s in slide_suffixes() if s != ".dcm"])
def test_a_folder_search_finds_every_suffix(tmp_path, suffix):
    (tmp_path / f"slide{suffix}").write_bytes(b"II*\0")
    (tmp_path / "notes.txt").write_text("no slide")
    assert [Path(path).name for path, _ in list_slides(tmp_path)] == [f"slide{suffix}"]


def scene(path):
    make_scene(path, (300, 300), overviews=False)


def tiff(path):
    pixels = np.random.default_rng(0).integers(0, 255, (300, 400, 3), np.uint8)
    tifffile.imwrite(path, pixels, photometric="rgb", tile=(128, 128))


def ome_zarr(path):
    make_ome_zarr(path, np.full((300, 400, 3), 200, np.uint8))


def jp2(path):
    scene(path.with_name("source.tiff"))
    rasterio.shutil.copy(path.with_name("source.tiff"), path, driver="JP2OpenJPEG")


def vrt(path):
    scene(path.with_name("source.tiff"))
    rasterio.shutil.copy(path.with_name("source.tiff"), path, driver="VRT")


MAKERS = {
    ".svs": lambda path: make_svs(path, (512, 512), levels=1),
    ".tif": scene,
    **dict.fromkeys((".tiff", ".btf", ".qptiff"), tiff),
    **dict.fromkeys((".zarr", ".zarr.zip"), ome_zarr),
    ".jp2": jp2,
    ".vrt": vrt,
}
OPENSLIDE_ONLY = {".bif", ".czi", ".dcm", ".mrxs", ".ndpi", ".scn", ".svslide", ".vms", ".vmu"}
"""Formats of scanners that nothing but a scanner writes; `test_openslide` reads what there is."""


def test_every_suffix_is_made_here_or_is_a_scanners():
    assert MAKERS.keys() | OPENSLIDE_ONLY == set(slide_suffixes())
    (openslide,) = [kind for kind in slide_formats() if kind.name == "openslide"]
    assert set(openslide.suffixes) - {".qptiff"} == OPENSLIDE_ONLY


@pytest.mark.parametrize("suffix", MAKERS)
def test_a_file_of_every_suffix_opens(tmp_path, suffix):
    path = tmp_path / f"slide{suffix}"
    MAKERS[suffix](path)
    with atlas_wsi.open_slide(path, mpp=0.5) as slide:
        assert slide.read_region(0, 0, 64, 64).shape == (64, 64, 3)
    assert str(path) in [source for source, _ in list_slides(tmp_path)]


def test_the_content_decides_not_the_name(tmp_path, pixels):
    make_svs(tmp_path / "svs.tif", (512, 512), levels=1)
    make_scene(tmp_path / "scene.svs", (300, 300))
    make_ome_zarr(tmp_path / "folder.tif", pixels)
    formats = {}
    for path in tmp_path.iterdir():
        with atlas_wsi.open_slide(path) as slide:
            formats[path.name] = slide.meta.format
    assert formats == {"svs.tif": "aperio", "scene.svs": "cog", "folder.tif": "ome-zarr 0.5"}


def test_a_broken_format_of_another_package_is_reported_and_skipped(tmp_path, svs):
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[atlas_wsi.slide_formats]\nbad = no_such_module:X\n")
    program = """
        import sys, warnings
        sys.path.insert(0, sys.argv[1])
        import atlas_wsi
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with atlas_wsi.open_slide(sys.argv[2]) as slide:
                print(slide.meta.format)
        print(*[w.message for w in caught if "broken" in str(w.message)])
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path), str(svs)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.splitlines()[0] == "aperio"
    assert "The slide format bad of broken cannot be loaded" in run.stdout
