"""Damaged and odd files: what was not read is nothing, and nothing is taken for what it is not."""

from __future__ import annotations

import json
import os
import struct

import numpy as np
import pytest
import rasterio
import tifffile
import zarr
from rasterio.enums import ColorInterp
from rasterio.windows import Window
from typer.testing import CliRunner

import atlas_wsi
from atlas_wsi.cli.app import app
from atlas_wsi.slides.synthetic import make_svs
from atlas_wsi.slides.tile_reader import NO_DATA, UNREADABLE

UM = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}  # 0.5 um per pixel


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def predict(*arguments):
    return run("predict", *arguments, "--model", "atlas_test", "--precision", "float32")


def draw(shape, seed=0):
    """Pink tissue with purple nuclei on glass."""
    rng = np.random.default_rng(seed)
    rows, cols = shape
    y, x = np.mgrid[:rows, :cols]
    image = np.full((*shape, 3), (243, 242, 244), np.uint8)
    inside = np.hypot((y - rows / 2) / (rows * 0.4), (x - cols / 2) / (cols * 0.4)) < 1
    image[inside] = (222, 150, 190)
    image[inside & (rng.random(shape) < 0.1)] = (96, 60, 140)
    return image


def scene(path, bands, **options):
    count, rows, cols = bands.shape
    where = rasterio.transform.from_origin(500_000, 5_000_000, 10, 10)
    extra = {"tiled": True, "blockxsize": 256, "blockysize": 256, **options}
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=count,
        height=rows,
        width=cols,
        dtype=bands.dtype.name,
        crs="EPSG:32633",
        transform=where,
        **extra,
    ) as raster:
        raster.write(bands)
    return path


def fields(shape=(3, 768, 768), seed=0):
    return np.random.default_rng(seed).integers(30, 150, shape, dtype=np.uint8)


def mosaic(path, sources, shape=(768, 768)):
    """Write a VRT of `(file, first column, columns)`; files need not exist."""
    rows, cols = shape
    bands = ""
    for band, color in enumerate(("Red", "Green", "Blue"), start=1):
        parts = "".join(
            f'<SimpleSource><SourceFilename relativeToVRT="1">{file}</SourceFilename>'
            f"<SourceBand>{band}</SourceBand>"
            f'<SourceProperties RasterXSize="{n}" RasterYSize="{rows}" DataType="Byte" '
            'BlockXSize="256" BlockYSize="256"/>'
            f'<SrcRect xOff="0" yOff="0" xSize="{n}" ySize="{rows}"/>'
            f'<DstRect xOff="{first}" yOff="0" xSize="{n}" ySize="{rows}"/></SimpleSource>'
            for file, first, n in sources
        )
        interpretation = f"<ColorInterp>{color}</ColorInterp>"
        bands += (
            f'<VRTRasterBand dataType="Byte" band="{band}">{interpretation}{parts}</VRTRasterBand>'
        )
    path.write_text(
        f'<VRTDataset rasterXSize="{cols}" rasterYSize="{rows}"><SRS>EPSG:32633</SRS>'
        f"<GeoTransform>500000,10,0,5000000,0,-10</GeoTransform>{bands}</VRTDataset>"
    )
    return path


def spoil(path, numbers, page=0):
    with tifffile.TiffFile(path) as tif:
        places = [
            (tif.pages[page].dataoffsets[n], tif.pages[page].databytecounts[n]) for n in numbers
        ]
    with path.open("r+b") as file:
        for offset, size in places:
            file.seek(offset)
            file.write(b"\xff" * size)


# Pixels that were not read -----------------------------------------------------------------


def test_unreadable_tiles_are_in_no_class_area_or_score(tmp_path):
    whole, hurt = tmp_path / "whole.tif", tmp_path / "hurt.tif"
    pixels = draw((1024, 1024))
    tifffile.imwrite(whole, pixels, tile=(256, 256), compression="jpeg", photometric="rgb", **UM)
    hurt.write_bytes(whole.read_bytes())
    spoil(hurt, [5, 6])
    assert predict(whole, "-o", tmp_path).exit_code == 0
    done = predict(hurt, "-o", tmp_path)
    assert done.exit_code == 4
    sound, found = (atlas_wsi.open_result(tmp_path / name) for name in ("whole", "hurt"))
    lost = (slice(2, 4), slice(2, 6))  # cells of 64 px at 1 um per pixel
    assert np.isnan(found.probabilities[(slice(None), *lost)]).all()
    kept = ~np.isnan(sound.probabilities[0])
    kept[lost] = False
    assert not np.isnan(found.probabilities[:, kept]).any()
    tile_mm2 = (256 * 0.5e-3) ** 2
    less = sum(sound.areas().values()) - sum(found.areas().values())
    assert less == pytest.approx(2 * tile_mm2, rel=0.05)
    assert found.run.unreadable_fraction == pytest.approx(2 / 16, rel=0.1)
    assert found.run.is_incomplete
    summary = json.loads((tmp_path / "hurt" / "summary.json").read_text())
    assert summary["run"]["n_unreadable"] == 2


def test_an_archive_tells_which_results_are_incomplete(tmp_path):
    path = tmp_path / "slides" / "hurt.tif"
    path.parent.mkdir()
    pixels = draw((768, 768))
    tifffile.imwrite(path, pixels, tile=(256, 256), compression="jpeg", photometric="rgb", **UM)
    spoil(path, [4])
    out = tmp_path / "out"
    status = atlas_wsi.predict_archive(
        path.parent, out, options=atlas_wsi.BatchOptions(model="atlas_test", precision="float32")
    )
    assert (status.count("done"), status.n_incomplete) == (1, 1)
    assert "incomplete" in run("status", out).stdout
    assert run("report", out).exit_code == 0
    for page in ("index.html", "slides/hurt/index.html"):
        assert "incomplete" in (out / "report" / page).read_text()
    assert "<b>1</b>incomplete" in (out / "report" / "index.html").read_text()


def test_what_was_found_unreadable_before_is_not_forgotten(tmp_path):
    path = scene(
        tmp_path / "hurt.tif", fields((3, 512, 512)), interleave="pixel", compress="deflate"
    )
    spoil(path, [1])
    with atlas_wsi.open_slide(path) as slide:
        first, second = (atlas_wsi.predict(slide, "atlas_test").run for _ in range(2))
    assert first.unreadable_fraction == pytest.approx(0.25, rel=0.05)
    assert second.unreadable_fraction == pytest.approx(0.25, rel=0.05)
    spoil(path, [0, 2, 3])
    with atlas_wsi.open_slide(path) as slide:
        for _ in range(2):
            with pytest.raises(atlas_wsi.UnreadableSlideError):
                atlas_wsi.predict(slide, "atlas_test")


def test_a_mosaic_without_its_files_is_an_error(tmp_path):
    path = mosaic(tmp_path / "gone.vrt", [("gone.tif", 0, 768)])
    done = predict(path, "-o", tmp_path / "out")
    assert done.exit_code == 2
    assert "could be read" in done.stderr
    assert not (tmp_path / "out" / "gone").exists()


def test_half_of_a_mosaic_is_predicted(tmp_path):
    scene(tmp_path / "west.tif", fields((3, 768, 384)))
    path = mosaic(tmp_path / "half.vrt", [("west.tif", 0, 384), ("gone.tif", 384, 384)])
    assert predict(path, "-o", tmp_path).exit_code == 4
    found = atlas_wsi.open_result(tmp_path / "half")
    # GDAL reads blocks of 128 px: those that reach over the middle are lost with it
    assert not np.isnan(found.probabilities[0][:, :4]).any()
    assert np.isnan(found.probabilities[0][:, 6:]).all()


def test_a_truncated_file_is_refused_or_read_as_far_as_it_goes(tmp_path):
    path = tmp_path / "cut.tif"
    pixels = draw((1024, 1024))
    tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb", **UM)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refused = predict(path, "-o", tmp_path / "out")
    assert refused.exit_code == 2
    assert "truncated" in refused.stderr
    assert "--allow-truncated" in refused.stderr
    assert predict(path, "-o", tmp_path / "out", "--allow-truncated").exit_code == 4
    found = atlas_wsi.open_result(tmp_path / "out" / "cut")
    assert np.isnan(found.probabilities[0][6:]).all()
    assert not np.isnan(found.probabilities[0][2, 4])


def test_nodata_in_one_band_changes_nothing_elsewhere(tmp_path):
    full = fields().astype(np.int16) * 20
    gap = full.copy()
    gap[0, :, 640:] = -9999
    maps = []
    for name, bands in (("full", full), ("gap", gap)):
        path = scene(tmp_path / f"{name}.tif", bands, nodata=-9999, photometric="RGB")
        assert predict(path, "-o", tmp_path, "--scale", "0,3000").exit_code == 0
        maps.append(atlas_wsi.open_result(tmp_path / name))
        with atlas_wsi.open_slide(path, scale=(0, 3000)) as slide:
            state = slide.read_masked(0, 0, *slide.shape)[1]
    assert (state[:, 640:] == NO_DATA).all()
    assert not state[:, :640].any()
    assert np.isnan(maps[1].probabilities[0][:, 10:]).all()
    assert not np.isnan(maps[1].probabilities[0][:, :10]).any()
    assert maps[1].run.unreadable_fraction == 0


def test_absent_blocks_of_a_sparse_scene_are_not_read(tmp_path, monkeypatch):
    path = tmp_path / "sparse.tif"
    side = 20_480
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=3,
        height=side,
        width=side,
        dtype="uint8",
        nodata=0,
        crs="EPSG:32633",
        transform=rasterio.transform.from_origin(0, 0, 1, 1),
        tiled=True,
        blockxsize=512,
        blockysize=512,
        SPARSE_OK="TRUE",
    ) as raster:
        raster.write(fields((3, 1024, 512)), window=Window(10_240, 5_120, 512, 1024))
    from atlas_wsi.slides.formats.raster import RasterBackend

    read = []
    original = RasterBackend.read_block
    monkeypatch.setattr(
        RasterBackend, "read_block", lambda self, *at: read.append(at) or original(self, *at)
    )
    with atlas_wsi.open_slide(path) as slide:
        mask = atlas_wsi.tissue_mask(slide)
        small = slide.thumbnail(512)
    assert mask.fraction == pytest.approx(1024 * 512 / side**2, rel=0.1)
    assert small[140:150, 258:266].any()
    assert {(box.row, box.col) for _, box in read} == {(5_120, 10_240), (5_632, 10_240)}


def test_a_pixel_says_why_it_is_missing(tmp_path):
    path = tmp_path / "hurt.tif"
    tifffile.imwrite(path, draw((512, 512)), tile=(256, 256), compression="jpeg", **UM)
    spoil(path, [0])
    with atlas_wsi.open_slide(path) as slide:
        state = slide.read_masked(-10, -10, 300, 300)[1]
    assert (state[:10] == NO_DATA).all()
    assert (state[10:266, 10:266] == UNREADABLE).all()
    assert not state[266:, 10:].any()


# Colors ------------------------------------------------------------------------------------


def test_color_spaces_are_converted_or_refused_by_name(tmp_path):
    from skimage.color import rgb2lab

    rgb = draw((256, 320))
    lab = rgb2lab(rgb)
    signed = [lab[..., k].round().astype(np.int8).view(np.uint8) for k in (1, 2)]
    lab = np.stack([(lab[..., 0] * 2.55).round().astype(np.uint8), *signed], -1)
    f = rgb.astype(float)
    y = 0.299 * f[..., 0] + 0.587 * f[..., 1] + 0.114 * f[..., 2]
    ycc = np.stack([y, 128 + 0.564 * (f[..., 2] - y), 128 + 0.713 * (f[..., 0] - y)], -1)
    ycc = ycc.round().clip(0, 255).astype(np.uint8)
    cmyk = np.concatenate([255 - rgb, np.zeros_like(rgb[..., :1])], -1)
    options = {"tile": (256, 256), "compression": "zlib", **UM}
    tifffile.imwrite(tmp_path / "lab.tif", lab, photometric="cielab", **options)
    tifffile.imwrite(tmp_path / "cmyk.tif", cmyk, photometric="separated", **options)
    subsampling = [(530, 3, 2, (1, 1), True)]
    tifffile.imwrite(tmp_path / "ycc.tif", ycc, photometric="rgb", extratags=subsampling, **options)
    relabel(tmp_path / "ycc.tif", 6)
    for name in ("lab", "cmyk", "ycc"):
        with atlas_wsi.open_slide(tmp_path / f"{name}.tif") as slide:
            assert slide.meta.channel_names == ("red", "green", "blue")
            read = slide.read_region(0, 0, 256, 320).astype(int)
        assert np.abs(read - rgb).max() <= 6, name
    relabel(tmp_path / "ycc.tif", 10)
    with pytest.raises(atlas_wsi.UnsupportedFormatError, match="ITULAB"):
        atlas_wsi.open_slide(tmp_path / "ycc.tif")


def relabel(path, photometric):
    with tifffile.TiffFile(path) as tif:
        place = tif.pages[0].tags[262].valueoffset
    with path.open("r+b") as file:
        file.seek(place)
        file.write(struct.pack("<H", photometric))


def test_tables_and_inverted_samples_of_any_depth(tmp_path):
    table = np.stack([np.arange(256), np.arange(256)[::-1], np.full(256, 7)]).astype(np.uint16)
    index = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    for factor in (1, 257):
        path = tmp_path / f"table-{factor}.tif"
        tifffile.imwrite(
            path, index, photometric="palette", colormap=table * np.uint16(factor), **UM
        )
        with atlas_wsi.open_slide(path) as slide:
            np.testing.assert_array_equal(slide.read_region(0, 0, 64, 64), table.T[index])
    stored = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    most = [(281, 3, 1, 4095, True)]
    path = tmp_path / "white.tif"
    tifffile.imwrite(path, stored, photometric="miniswhite", extratags=most, **UM)
    with atlas_wsi.open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read_region(0, 0, 64, 64)[..., 0], 4095 - stored)


def test_a_fourth_band_is_no_opacity(tmp_path):
    bands = fields((4, 512, 512))
    bands[3] = 120
    bands[3, 100:300, 100:300] = 0  # deep water reflects no near infrared
    path = scene(tmp_path / "rgbn.tif", bands)
    with rasterio.open(path) as raster:
        assert raster.colorinterp[3] is ColorInterp.alpha
    with atlas_wsi.open_slide(path) as slide:
        assert slide.n_channels == 4
        assert slide.read_valid(0, 0, 512, 512).all()
        assert "alpha" in slide.meta.warnings[0]
    bands[3] = np.where(bands[3], 255, 0)
    with atlas_wsi.open_slide(scene(tmp_path / "rgba.tif", bands)) as slide:
        assert slide.n_channels == 3
        assert not slide.read_valid(0, 0, 512, 512)[100:300, 100:300].any()


def test_named_channels_in_rgb_colors_are_no_photograph(tmp_path):
    group = zarr.open_group(tmp_path / "if.zarr", mode="w", zarr_format=2)
    group.create_array("0", data=np.ones((3, 64, 64), np.uint8), chunks=(1, 64, 64))
    axes = [{"name": "c", "type": "channel"}]
    axes += [{"name": n, "type": "space", "unit": "micrometer"} for n in "yx"]
    scale = [{"type": "scale", "scale": [1, 0.5, 0.5]}]
    dataset = {"path": "0", "coordinateTransformations": scale}
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": [dataset]}]
    named = zip(("Cy5", "FITC", "DAPI"), ("FF0000", "00FF00", "0000FF"), strict=True)
    group.attrs["omero"] = {"channels": [{"label": n, "color": c} for n, c in named]}
    with atlas_wsi.open_slide(tmp_path / "if.zarr") as slide:
        assert slide.meta.channel_names == ("Cy5", "FITC", "DAPI")
        assert slide.background == (0, 0, 0)


# Which image, and its resolution -----------------------------------------------------------


def test_images_of_a_file_are_listed_and_chosen(tmp_path):
    path = tmp_path / "two.ome.tif"
    sections = [draw((512, 512), seed) for seed in (0, 1)]
    with tifffile.TiffWriter(path, ome=True) as tif:
        for number, section in enumerate(sections):
            facts = {"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
            facts["Name"] = f"section {number + 1}"
            tif.write(section, tile=(256, 256), photometric="rgb", metadata=facts)
    told = json.loads(run("info", path, "--json").stdout)
    assert [name.split(" (")[0] for name in told["images"]] == ["section 1", "section 2"]
    assert "--image" in told["warnings"][0]
    for number, section in enumerate(sections):
        with atlas_wsi.open_slide(path, image=number) as slide:
            np.testing.assert_array_equal(slide.read_region(0, 0, 512, 512), section)
            assert not slide.meta.warnings
    wrong = run("info", path, "--image", 2)
    assert wrong.exit_code == 2
    assert "holds 2" in wrong.stderr


def test_a_file_of_one_image_has_no_other(tmp_path):
    make_svs(tmp_path / "slide.svs", shape=(512, 512))
    assert run("info", tmp_path / "slide.svs", "--image", 0).exit_code == 0
    wrong = run("info", tmp_path / "slide.svs", "--image", 1)
    assert wrong.exit_code == 2
    assert "holds 1" in wrong.stderr


def test_an_export_shows_the_image_that_was_predicted(tmp_path):
    path = tmp_path / "two.ome.tif"
    dark = np.full((512, 512, 3), 120, np.uint8)
    with tifffile.TiffWriter(path, ome=True) as tif:
        for section in (draw((512, 512)), dark):
            facts = {"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
            tif.write(section, tile=(256, 256), photometric="rgb", metadata=facts)
    assert predict(path, "-o", tmp_path / "out", "--image", 1).exit_code == 0
    slide = atlas_wsi.open_result(tmp_path / "out").slide
    assert slide.image == 1
    with atlas_wsi.open_slide(slide.path, **slide.opening) as again:
        np.testing.assert_array_equal(again.read_region(0, 0, 512, 512), dark)


def test_the_resolution_is_that_of_the_image_read(tmp_path):
    here, gone = "1" * 8 + "-1111-1111-1111-" + "1" * 12, "2" * 8 + "-2222-2222-2222-" + "2" * 12

    def image(number, shape, mpp, file, uuid):
        return (
            f'<Image ID="Image:{number}" Name="i{number}"><Pixels ID="Pixels:{number}" '
            f'DimensionOrder="XYCZT" Type="uint8" SizeX="{shape[1]}" SizeY="{shape[0]}" SizeC="3" '
            f'SizeZ="1" SizeT="1" PhysicalSizeX="{mpp}" PhysicalSizeY="{mpp}">'
            f'<Channel ID="Channel:{number}:0" SamplesPerPixel="3"/><TiffData IFD="0" '
            f'PlaneCount="1"><UUID FileName="{file}">urn:uuid:{uuid}</UUID></TiffData></Pixels></Image>'
        )

    xml = (
        '<?xml version="1.0" encoding="UTF-8"?><OME '
        f'xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:{here}">'
        + image(0, (128, 160), 4.0, "overview.ome.tif", gone)
        + image(1, (256, 320), 0.25, "scan.ome.tif", here)
        + "</OME>"
    )
    path = tmp_path / "scan.ome.tif"
    options = {"photometric": "rgb", "description": xml, "metadata": None}
    tifffile.imwrite(path, draw((256, 320)), tile=(256, 256), **options)
    with atlas_wsi.open_slide(path) as slide:
        assert slide.mpp == (0.25, 0.25)


def test_a_slide_with_focal_planes_opens_at_its_first(tmp_path):
    path = tmp_path / "planes.svs"
    planes = [draw((512, 512)), draw((512, 512)) // 2]

    def facts(side):
        return (
            f"Aperio Image Library v11.2.1 \r\n{side}x{side} [0,0 {side}x{side}] (256x256) "
            "JPEG/RGB Q=70|AppMag = 40|MPP = 0.2500"
        )

    with tifffile.TiffWriter(path) as tif:
        for plane in planes:
            for step in (1, 4):
                part = plane[::step, ::step].copy()
                tif.write(
                    part,
                    tile=(256, 256),
                    photometric="rgb",
                    description=facts(512 // step),
                    metadata=None,
                )
    with atlas_wsi.open_slide(path) as slide:
        assert slide.mpp == (0.25, 0.25)
        np.testing.assert_array_equal(slide.read_region(0, 0, 512, 512), planes[0])


@pytest.mark.parametrize("dpi", [72, 350, 400, 500, 1000, 2400, 9600])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_print_densities_are_not_believed(tmp_path, dpi, suffix):
    from PIL import Image

    path = tmp_path / f"photo.{suffix}"
    Image.fromarray(draw((256, 256))).save(path, dpi=(dpi, dpi))
    done = predict(path, "-o", tmp_path / "out")
    assert done.exit_code == 2
    assert "--mpp" in done.stderr


def test_the_unit_of_imagej_is_read(tmp_path):
    path = tmp_path / "imagej.tif"
    tifffile.imwrite(path, draw((64, 64)), imagej=True, resolution=(2, 2), metadata={"unit": "um"})
    with atlas_wsi.open_slide(path) as slide:
        assert slide.mpp == (0.5, 0.5)


# Names and ends ----------------------------------------------------------------------------


def test_two_slides_of_one_name_get_two_folders(tmp_path):
    paths = [tmp_path / folder / "slide.tif" for folder in "ab"]
    paths += [tmp_path / f"core?{n}.tif" for n in (1, 2)]
    for seed, path in enumerate(paths):
        path.parent.mkdir(exist_ok=True)
        tifffile.imwrite(path, draw((256, 256), seed), tile=(256, 256), photometric="rgb", **UM)
    done = predict(*paths, "-o", tmp_path / "out", "--overwrite", "--json")
    assert done.exit_code == 0, done.output
    folders = {result["slide"]: result["folder"] for result in json.loads(done.stdout)}
    assert len(set(folders.values())) == 4
    for path, folder in folders.items():
        assert atlas_wsi.open_result(folder).slide.path == path


def test_pipes_and_loops_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.svs")
    (tmp_path / "loop.svs").symlink_to(tmp_path / "loop.svs")
    for name, reason in (("pipe", "no regular file"), ("loop", "cannot be read")):
        done = run("info", tmp_path / f"{name}.svs")
        assert done.exit_code == 2
        assert reason in done.stderr


def test_lists_in_utf_16_and_with_variables_are_read(tmp_path, monkeypatch):
    from atlas_wsi.batch.source import list_slides

    monkeypatch.setenv("SLIDES", str(tmp_path))
    table = tmp_path / "list.csv"
    table.write_text("slide,mpp\n$SLIDES/one.svs,0.5\n", encoding="utf-16")
    assert list_slides(table) == [(str(tmp_path / "one.svs"), 0.5)]
    table.write_text("slide,mpp\none.svs,0.5\none.svs,0.25\n")
    with pytest.raises(atlas_wsi.ArchiveError, match="line 3"):
        list_slides(table)


# Areas -------------------------------------------------------------------------------------


def thin_cores():
    tissue = np.zeros((1400, 2600), bool)
    for row in range(123, 1300, 360):
        tissue[row : row + 160, 107:2500] = True  # 80 um thick
    return tissue


def a_round_piece():
    y, x = np.mgrid[:1400, :1400]
    return np.hypot(y - 705, x - 694) < 400


def an_oblique_core():
    y, x = np.mgrid[:1400, :1400]
    return (abs(y - x - 37) < 110) & (abs(x - 680) < 500)


@pytest.mark.parametrize("shape", [thin_cores, an_oblique_core, a_round_piece])
@pytest.mark.parametrize("has_roi", [False, True], ids=["whole", "roi"])
def test_areas_are_those_drawn_whatever_the_cell(tmp_path, shape, has_roi):
    path, roi = tmp_path / "slide.tif", tmp_path / "roi.geojson"
    tissue = shape()
    image = np.full((*tissue.shape, 3), (243, 242, 244), np.uint8)
    image[tissue] = (205, 120, 175)
    tifffile.imwrite(path, image, tile=(256, 256), photometric="rgb", **UM)
    if has_roi:
        square = [[470, 590], [960, 590], [960, 1080], [470, 1080], [470, 590]]
        roi.write_text(json.dumps({"type": "Polygon", "coordinates": [square]}))
        tissue = tissue[590:1080, 470:960]
    drawn = tissue.sum() * 0.25e-6
    for cell in (16, 32, 64):
        out, inside = tmp_path / str(cell), ["--roi", roi] if has_roi else []
        assert predict(path, "-o", out, "--cell-px", cell, *inside).exit_code == 0
        assert sum(atlas_wsi.open_result(out).areas().values()) == pytest.approx(drawn, rel=0.05)
