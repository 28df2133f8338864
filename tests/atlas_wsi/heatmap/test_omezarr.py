from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import ome_zarr_models
import ome_zarr_models.v05
import pytest
import zarr
from ome_zarr.io import parse_url
from ome_zarr.reader import Reader

from atlas_wsi.errors import CorruptResultError
from atlas_wsi.heatmap.formats.omezarr import read_omezarr, write_omezarr

if TYPE_CHECKING:
    from pathlib import Path

    from atlas_wsi.heatmap.heatmap import Heatmap


@pytest.fixture
def large(make_heatmap) -> Heatmap:
    """A result with three levels, the sides of which cannot all be halved."""
    return make_heatmap((517, 601), step=(64.0, 32.0), mpp=(0.5, 0.25))


@pytest.fixture
def path(large: Heatmap, tmp_path: Path) -> Path:
    write_omezarr(large, tmp_path / "heatmap.ome.zarr")
    return tmp_path / "heatmap.ome.zarr"


def test_the_file_is_valid_ome_zarr_0_5(path: Path) -> None:
    group = zarr.open_group(str(path), mode="r", zarr_format=3)
    image = ome_zarr_models.open_ome_zarr(group)
    assert isinstance(image, ome_zarr_models.v05.Image)
    assert image.labels is not None
    for name in image.labels.attributes.ome.labels:
        label = ome_zarr_models.v05.ImageLabel.from_zarr(group[f"labels/{name}"])
        assert len(label.attributes.ome.multiscales[0].datasets) == 3


def test_ome_zarr_py_shows_a_channel_a_class_with_name_and_range(
    path: Path, large: Heatmap
) -> None:
    image, _, classes, tissue = Reader(parse_url(str(path)))()
    assert [level.shape for level in image.data] == [(3, 517, 601), (3, 259, 301), (3, 130, 151)]
    assert image.data[0].dtype == np.float16
    assert image.metadata["channel_names"] == list(large.classes)
    assert image.metadata["contrast_limits"] == [[0, 1]] * 3
    assert len(classes.data) == len(tissue.data) == 3
    assert [p["class"] for p in classes.metadata["properties"].values()][1:] == list(large.classes)


@pytest.mark.parametrize("name", ["", "labels/classes", "labels/tissue"])
def test_every_level_lies_over_the_slide(path: Path, large: Heatmap, name: str) -> None:
    group = zarr.open_group(str(path / name), mode="r")
    multiscale = group.attrs["ome"]["multiscales"][0]
    assert [a.get("unit") for a in multiscale["axes"][-2:]] == ["micrometer"] * 2
    grid = large.tissue.grid if "tissue" in name else large.grid
    for number, dataset in enumerate(multiscale["datasets"]):
        scale, translation = dataset["coordinateTransformations"]
        cell = [s * 2**number * m for s, m in zip(grid.step_px, large.slide.mpp, strict=True)]
        assert scale["scale"][-2:] == pytest.approx(cell)
        # The corner of the first cell is the corner of the slide, half a pixel before its center.
        corner = [t - c / 2 for t, c in zip(translation["translation"][-2:], cell, strict=True)]
        assert corner == pytest.approx([-m / 2 for m in large.slide.mpp])
        array = group[dataset["path"]]
        assert list(array.metadata.dimension_names) == [a["name"] for a in multiscale["axes"]]


def test_coarse_values_are_means_of_what_is_known(path: Path, large: Heatmap) -> None:
    group = zarr.open_group(str(path), mode="r")
    fine, coarse = group["0"][...].astype(np.float32), group["1"][...]
    for row, col in [(0, 0), (100, 77), (258, 300), (17, 250), (200, 31)]:
        block = fine[:, 2 * row : 2 * row + 2, 2 * col : 2 * col + 2]
        known = ~np.isnan(block[0])
        if known.any():
            np.testing.assert_allclose(
                coarse[:, row, col], block[:, known].mean(1), rtol=2e-3, atol=1e-6
            )
        else:
            assert np.isnan(coarse[:, row, col]).all()
    assert np.isnan(coarse).any()


def test_labels_are_the_classes_and_the_tissue(path: Path, large: Heatmap) -> None:
    group = zarr.open_group(str(path), mode="r")
    np.testing.assert_array_equal(group["labels/classes/0"][...], large.argmax() + 1)
    np.testing.assert_array_equal(group["labels/tissue/0"][...], large.tissue.mask)
    label = group["labels/classes"].attrs["ome"]["image-label"]
    assert label["colors"][1] == {"label-value": 1, "rgba": [0xC8, 0x32, 0x32, 255]}
    assert label["colors"][0]["rgba"][3] == 0
    assert label["source"] == {"image": "../../"}


def test_scenes_are_measured_in_meters(scene: Heatmap, tmp_path: Path) -> None:
    write_omezarr(scene, tmp_path / "s.ome.zarr")
    multiscale = zarr.open_group(str(tmp_path / "s.ome.zarr"), mode="r").attrs["ome"][
        "multiscales"
    ][0]
    assert multiscale["axes"][1]["unit"] == "meter"
    assert multiscale["datasets"][0]["coordinateTransformations"][0]["scale"] == [1, 640, 640]


def test_what_is_read_is_what_was_written(path: Path, large: Heatmap) -> None:
    result = read_omezarr(path)
    np.testing.assert_array_equal(result.probabilities, large.probabilities.astype(np.float16))
    np.testing.assert_array_equal(result.argmax(), large.argmax())
    np.testing.assert_array_equal(result.tissue.mask, large.tissue.mask)
    for name in ("grid", "classes", "colors", "scores", "slide", "run", "mpp"):
        assert getattr(result, name) == getattr(large, name)
    assert result.tissue.grid == large.tissue.grid
    assert result.areas() == large.areas()


def edit(path: Path, change) -> None:
    meta = json.loads(path.read_text())
    change(meta)
    path.write_text(json.dumps(meta))


def test_metadata_that_make_no_sense_name_the_place(path: Path) -> None:
    def change(meta) -> None:
        meta["attributes"]["atlas"]["cells"]["shape"][0] = -3

    edit(path / "zarr.json", change)
    with pytest.raises(CorruptResultError, match=r"cells\.shape\.0: Input should be greater"):
        read_omezarr(path)


def test_an_array_that_contradicts_the_metadata_is_not_read(path: Path) -> None:
    def change(meta) -> None:
        meta["attributes"]["atlas"]["cells"]["shape"] = [10**6, 10**6]

    edit(path / "zarr.json", change)
    with pytest.raises(CorruptResultError, match=r"should be an array float16 \(3, 1000000"):
        read_omezarr(path)


def test_an_array_too_large_to_be_a_heatmap_is_not_read(path: Path) -> None:
    def grow(meta) -> None:
        meta["attributes"]["atlas"]["cells"]["shape"] = [10**6, 10**6]

    def grow_array(meta) -> None:
        meta["shape"] = [3, 10**6, 10**6]

    edit(path / "zarr.json", grow)
    edit(path / "0" / "zarr.json", grow_array)
    with pytest.raises(CorruptResultError, match="bytes are read"):
        read_omezarr(path)


@pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning")
def test_copies_of_metadata_do_not_replace_those_that_are_checked(path: Path) -> None:
    zarr.consolidate_metadata(str(path))

    def change(meta) -> None:
        meta["consolidated_metadata"]["metadata"]["0"]["codecs"] = [{"name": "vlen-bytes"}]

    edit(path / "zarr.json", change)
    assert read_omezarr(path).probabilities.shape[1:] == (517, 601)


def test_a_zarr_of_somebody_else_is_not_a_result(tmp_path: Path) -> None:
    zarr.create_group(str(tmp_path / "other.zarr"), zarr_format=3)
    with pytest.raises(CorruptResultError, match=r"attributes\.atlas"):
        read_omezarr(tmp_path / "other.zarr")
    with pytest.raises(CorruptResultError, match="cannot be read"):
        read_omezarr(tmp_path / "missing.zarr")
