"""Reading and splitting class folders."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from PIL import Image

from atlas_wsi.errors import DatasetError
from atlas_wsi.training.data.tile_folder import read_tiles
from atlas_wsi.training.split import split_two


def test_a_group_never_crosses_the_split(tile_folder):
    tiles = read_tiles(tile_folder)
    for seed in range(10):
        known, asked = split_two(tiles, fraction=0.25, seed=seed)
        assert not {tiles.groups[i] for i in known} & {tiles.groups[i] for i in asked}
        assert sorted([*known, *asked]) == list(range(len(tiles)))


def test_every_class_keeps_its_share_on_both_sides(tile_folder):
    tiles = read_tiles(tile_folder)
    _, asked = split_two(tiles, fraction=0.25, seed=0)
    assert np.bincount(tiles.labels[asked]).tolist() == [6, 6, 6]


def test_the_seed_decides_the_split(tile_folder):
    tiles = read_tiles(tile_folder)
    first, again, other = (split_two(tiles, fraction=0.25, seed=s)[1].tolist() for s in (0, 0, 1))
    assert first == again
    assert first != other


def test_tiles_keep_pixels_and_class(tile_folder):
    tiles = read_tiles(tile_folder)
    assert tiles.classes == ("dots", "lines", "plain")
    at = tiles.paths.index("lines/005.png")
    assert tiles.labels[at] == 1
    with Image.open(tile_folder / "lines/005.png") as image:
        assert np.array_equal(tiles.images[at], np.asarray(image))


def test_a_folder_without_class_folders_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(DatasetError, match="two or more class folders"):
        read_tiles(tmp_path)
    with pytest.raises(DatasetError, match="not a folder"):
        read_tiles(tmp_path / "a.png")


def test_a_class_with_too_few_tiles_is_named(make_folder):
    folder = make_folder(n=3)
    for path in sorted((folder / "lines").iterdir())[1:]:
        path.unlink()
    with pytest.raises(DatasetError, match=r"lines \(1 tiles\)"):
        read_tiles(folder)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n"])
def test_an_unreadable_tile_is_named(make_folder, content):
    folder = make_folder(n=3)
    (folder / "plain" / "001.png").write_bytes(content)
    with pytest.raises(DatasetError, match=r"plain/001\.png"):
        read_tiles(folder)


def test_a_truncated_tile_is_named(make_folder):
    path = make_folder(n=3) / "plain" / "001.png"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DatasetError, match=r"plain/001\.png"):
        read_tiles(path.parents[1])


def test_tiles_of_another_size_are_named(make_folder):
    folder = make_folder(n=3)
    Image.new("RGB", (96, 64)).save(folder / "plain" / "001.png")
    with pytest.raises(DatasetError, match=r"plain/001\.png has 64 x 96 pixels"):
        read_tiles(folder)


def test_too_few_groups_for_a_split_is_an_error(make_folder):
    tiles = read_tiles(make_folder(n=4, copies=4))
    with pytest.raises(DatasetError, match="1 groups"):
        split_two(tiles, fraction=0.5, seed=0)


def test_groups_of_several_classes_stay_whole_and_both_sides_have_every_class(make_folder):
    folder = make_folder(n=8)
    with (folder / "groups.csv").open("w", newline="") as file:
        rows = [
            (path.relative_to(folder).as_posix(), f"patient-{i % 4}")
            for name in ("dots", "lines", "plain")
            for i, path in enumerate(sorted((folder / name).iterdir()))
        ]
        csv.writer(file).writerows([("path", "group"), *rows])
    tiles = read_tiles(folder)
    parts = split_two(tiles, fraction=0.25, seed=0)
    known, asked = ({tiles.groups[i] for i in part} for part in parts)
    assert not known & asked
    assert len(asked) == 1
    assert all(len(set(tiles.labels[part])) == 3 for part in parts)


def test_a_tile_without_a_group_is_named(make_folder):
    folder = make_folder(n=4, copies=2)
    Image.new("RGB", (64, 64)).save(folder / "plain" / "new.png")
    with pytest.raises(DatasetError, match=r"no group for plain/new\.png"):
        read_tiles(folder)


def test_groups_without_their_columns_are_an_error(make_folder):
    folder = make_folder(n=3)
    (folder / "groups.csv").write_text("file,patient\n")
    with pytest.raises(DatasetError, match="lacks the column path, group"):
        read_tiles(folder)


def test_groups_saved_by_a_spreadsheet_are_read(make_folder):
    folder = make_folder(n=4, copies=2)
    path = folder / "groups.csv"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_tiles(folder).is_grouped


def test_groups_that_are_no_text_are_an_error(make_folder):
    folder = make_folder(n=3)
    (folder / "groups.csv").write_bytes(b"path,class,group\n\xff\xfe")
    with pytest.raises(DatasetError, match=r"groups\.csv cannot be read as a CSV table"):
        read_tiles(folder)


def test_a_tile_of_sixteen_bits_is_refused_not_clipped(make_folder):
    folder = make_folder(n=3)
    Image.fromarray(np.full((64, 64), 3000, np.uint16)).save(folder / "plain" / "001.png")
    with pytest.raises(DatasetError, match=r"plain/001\.png has more than 8 bits"):
        read_tiles(folder)


def test_a_picture_too_large_to_be_a_tile_is_named(make_folder):
    folder = make_folder(n=3)
    Image.new("1", (14000, 14000)).save(folder / "plain" / "001.png")
    with pytest.raises(DatasetError, match=r"plain/001\.png"):
        read_tiles(folder)
