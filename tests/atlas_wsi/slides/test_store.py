"""A slide as a zarr store."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import zarr

from atlas_wsi.slides.store import SlideStore


@pytest.fixture
def group(slide):
    return zarr.open_group(SlideStore(slide), mode="r", zarr_format=3)


def test_every_level_is_an_array_with_named_axes(group, slide):
    assert sorted(group.array_keys()) == ["0", "1"]
    for index, shape in enumerate(slide.level_shapes):
        array = group[str(index)]
        assert array.shape == (*shape, 3)
        assert array.metadata.dimension_names == ("y", "x", "c")


def test_arrays_hold_the_slides_pixels(group, slide):
    np.testing.assert_array_equal(
        group["0"][500:700, 1900:], slide.read_region(500, 1900, 200, 200)
    )
    np.testing.assert_array_equal(group["1"][:], slide.levels[1].compute())


def test_chunks_may_be_read_in_parts(slide):
    from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
    from zarr.core.buffer import default_buffer_prototype
    from zarr.core.sync import sync

    store, prototype = SlideStore(slide), default_buffer_prototype()
    whole = sync(store.get("0/c/1/1/0", prototype)).to_bytes()
    assert len(whole) == 512 * 512 * 3
    parts = [
        (RangeByteRequest(10, 90), whole[10:90]),
        (OffsetByteRequest(500), whole[500:]),
        (SuffixByteRequest(77), whole[-77:]),
        (None, whole),
    ]
    read = sync(store.get_partial_values(prototype, [("0/c/1/1/0", part) for part, _ in parts]))
    assert [buffer.to_bytes() for buffer in read] == [expected for _, expected in parts]


@pytest.mark.parametrize("key", ["2/zarr.json", "0/c/9/0/0", "x", "0/c/0/0", "7/c/0/0/0"])
def test_there_is_nothing_else(slide, key):
    from zarr.core.buffer import default_buffer_prototype
    from zarr.core.sync import sync

    store = SlideStore(slide)
    assert not sync(store.exists(key))
    assert sync(store.get(key, default_buffer_prototype())) is None


def test_the_store_cannot_be_written_to(group, slide):
    with pytest.raises(ValueError, match="read-only"):
        group["0"][0, 0, 0] = 1
    with pytest.raises(ValueError, match="read-only"):
        zarr.create_group(SlideStore(slide), overwrite=True)


def test_the_store_pickles_by_the_slide(slide):
    store = SlideStore(slide)
    again = pickle.loads(pickle.dumps(store))
    assert again == store
    array = zarr.open_array(again, path="0", mode="r")
    np.testing.assert_array_equal(array[:50, :50], slide.read_region(0, 0, 50, 50))


def test_the_public_group_is_valid_ome_ngff(slide):
    from ome_zarr_models.v05.image import Image

    group = slide.zarr()
    image = Image.from_zarr(group)
    (multiscale,) = image.ome_attributes.multiscales
    assert [axis.name for axis in multiscale.axes] == ["c", "y", "x"]
    for index, dataset in enumerate(multiscale.datasets):
        scale = dataset.coordinateTransformations[0].scale
        expected = [d * um for d, um in zip(slide.downsamples[index], slide.mpp, strict=True)]
        np.testing.assert_allclose(scale, [1.0, *expected])
        pixels = np.moveaxis(group[dataset.path][:], 0, -1)
        np.testing.assert_array_equal(pixels, slide.levels[index].compute())


def test_the_public_group_survives_pickling(slide):
    again = pickle.loads(pickle.dumps(slide.zarr().store))
    array = zarr.open_array(again, path="1", mode="r")
    np.testing.assert_array_equal(array[:], np.moveaxis(slide.levels[1].compute(), -1, 0))
