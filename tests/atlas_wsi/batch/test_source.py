"""Which slides an archive has, and where each result goes."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from atlas_wsi.batch.source import list_slides, name_slides
from atlas_wsi.errors import ArchiveError


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("a/one.svs", "a/two.SVS", "b/one.svs", "b/notes.txt", ".hidden/x.svs"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for store in ("c/three.ome.zarr/0/c/0", "out/one/heatmap.ome.zarr/0"):
        (tmp_path / store).mkdir(parents=True)
    (tmp_path / "d/four").mkdir(parents=True)
    (tmp_path / "d/four.mrxs").touch()
    (tmp_path / "d/four/Data0001.tif").touch()
    (tmp_path / "e").mkdir()
    for number in range(3):
        (tmp_path / f"e/{number}.dcm").touch()
    return tmp_path


def test_a_folder_is_searched_through_but_slides_of_many_files_are_one(folder):
    found = list_slides(folder, leave_out=folder / "out")
    assert [str(Path(p).relative_to(folder)) for p, _ in found] == [
        "a/one.svs",
        "a/two.SVS",
        "b/one.svs",
        "c/three.ome.zarr",
        "d/four.mrxs",
        "e",
    ]
    assert all(mpp is None for _, mpp in found)


def test_a_pattern_takes_any_name(folder):
    assert [Path(p).name for p, _ in list_slides(f"{folder}/**/*.txt")] == ["notes.txt"]


def test_one_slide_is_an_archive_too(folder):
    assert list_slides(folder / "a/one.svs") == [(str(folder / "a/one.svs"), None)]


@pytest.mark.parametrize("column", ["slide", "wsi"])
def test_a_csv_names_slides_beside_it_and_their_resolution(folder, column):
    table = folder / "a" / "list.csv"
    table.write_text(f"id, {column} ,mpp\n1,one.svs,0.25\n2,../b/one.svs,\n\n3,s3://x/y.svs,1\n")
    assert list_slides(table) == [
        (str(folder / "a/one.svs"), 0.25),
        (str(folder / "b/one.svs"), None),
        ("s3://x/y.svs", 1.0),
    ]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("file,mpp\nx,1\n", "'slide' or 'wsi'"),
        ("slide,gsd\nx,far\n", "line 2: gsd is 'far'"),
        ("slide,mpp,gsd\nx,1,1m\n", "line 2: both mpp and gsd"),
        ("slide,mpp\nx,fine\n", "line 2: mpp is 'fine'"),
    ],
)
def test_a_wrong_csv_is_told_with_its_line(tmp_path, text, what):
    table = tmp_path / "list.csv"
    table.write_text(text)
    with pytest.raises(ArchiveError, match=what):
        list_slides(table)


@pytest.mark.parametrize("source", ["nothing", "*.svs", "empty"])
def test_no_slide_is_an_error_that_says_where(tmp_path, source):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArchiveError, match=str(tmp_path)):
        list_slides(tmp_path / source)


def test_a_prefix_of_an_object_store_is_listed_by_its_protocol():
    store = fsspec.filesystem("memory")
    for name in ("/bucket/slides/a.svs", "/bucket/slides/deep/b.tif", "/bucket/slides/readme.md"):
        store.pipe(name, b"")
    found = [path for path, _ in list_slides("memory://bucket/slides")]
    assert found == ["memory:///bucket/slides/a.svs", "memory:///bucket/slides/deep/b.tif"]
    assert [p for p, _ in list_slides("memory://bucket/slides/*.svs")] == found[:1]


def test_slides_that_share_a_name_get_folders_of_their_own_and_keep_them():
    first = name_slides([("/a/x.svs", None), ("/b/X.svs", None), ("/b/y.svs", 0.5)], [])
    names = [slide.name for slide in first]
    assert len({name.casefold() for name in names}) == 3
    assert names[2] == "y"
    more = name_slides([("/c/y.svs", None), ("/a/x.svs", None)], first)
    assert more[:3] == first
    assert more[3].name.startswith("y~")
    assert name_slides([("/c/y.svs", None)], more) == more


def test_another_resolution_for_a_known_slide_is_refused():
    known = name_slides([("/a/x.svs", 0.5)], [])
    with pytest.raises(ArchiveError, match=r"mpp 0\.5 before"):
        name_slides([("/a/x.svs", 0.25)], known)
