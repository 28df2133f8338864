from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import atlas_wsi
from atlas_wsi.errors import (
    CorruptResultError,
    OutputNotWritableError,
    ResultExistsError,
)
from atlas_wsi.files import folder_name
from atlas_wsi.heatmap.formats import RESULT_FORMATS
from atlas_wsi.heatmap.result import (
    check_writable,
    find_damage,
    open_result,
    read_summary,
)
from atlas_wsi.testing.writers import make_heatmap as make

if TYPE_CHECKING:
    from atlas_wsi.heatmap.heatmap import Heatmap


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """The folder of a result that no test changes."""
    return make().write(tmp_path_factory.mktemp("written"))["json"].parent


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """The result's folder as it was written."""
    return shutil.copytree(written, tmp_path / written.name)


def content(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


# Whole results --------------------------------------------------------------------------------


def test_a_result_read_back_is_the_one_that_was_written(heatmap: Heatmap, folder: Path) -> None:
    result = atlas_wsi.open_result(folder)
    np.testing.assert_array_equal(result.probabilities, heatmap.probabilities.astype(np.float16))
    assert result.areas() == heatmap.areas()
    assert (result.slide, result.run, result.scores) == (heatmap.slide, heatmap.run, heatmap.scores)


def test_a_result_read_back_and_written_again_is_the_same(folder: Path, tmp_path: Path) -> None:
    open_result(folder).write(tmp_path / "again")
    first, second = content(folder), content(tmp_path / "again" / folder.name)
    assert first.keys() == second.keys()
    for name in first:
        if name.startswith("heatmap.ome.zarr"):
            assert first[name] == second[name]


@pytest.mark.slow
def test_slides_and_scenes_get_the_files_that_suit_them(heatmap, scene, tmp_path: Path) -> None:
    assert heatmap.write(tmp_path).keys() == {"ome-zarr", "png", "geojson", "json"}
    paths = scene.write(tmp_path)
    assert paths.keys() == {"ome-zarr", "geotiff", "png", "geojson", "json"}
    assert all(path.exists() for path in paths.values())
    assert {p.name for p in tmp_path.iterdir()} == {"slide-1", "scene-1"}


def test_an_empty_result_is_a_valid_result(make_heatmap, tmp_path: Path) -> None:
    make_heatmap(tissue=0).write(tmp_path, formats=tuple(RESULT_FORMATS))
    result = open_result(tmp_path)
    assert np.isnan(result.probabilities).all()
    assert result.scores == {}
    summary = json.loads((tmp_path / "slide-1" / "summary.json").read_text())
    assert summary["predicted_area"] == 0
    assert [c["score"] for c in summary["classes"]] == [None] * 3


def test_the_summary_says_what_was_found_and_how(heatmap: Heatmap, folder: Path) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["schema_version"] == 1
    assert summary["area_unit"] == "mm2"
    areas = {c["name"]: c["area"] for c in summary["classes"]}
    assert areas == heatmap.areas()
    assert sum(c["share"] for c in summary["classes"]) == pytest.approx(1)
    assert summary["run"]["model"] == {
        "name": "lung-he",
        "version": "1",
        "sha256": "ab" * 32,
        "reason": "only one",
    }
    assert summary["warnings"] == ["The magnification contradicts the resolution."]
    assert summary["run"]["mpp_used"] == [0.5, 0.5]
    written = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert summary["files"].keys() == written - {"summary.json"}


def test_the_folder_of_one_result_opens_and_that_of_two_says_which(
    heatmap, make_heatmap, tmp_path: Path
) -> None:
    heatmap.write(tmp_path)
    assert open_result(tmp_path).slide.name == "slide-1"
    make_heatmap(name="slide-2").write(tmp_path)
    with pytest.raises(CorruptResultError, match=r"2 results \(slide-1, slide-2\)"):
        open_result(tmp_path)
    assert open_result(tmp_path / "slide-2").slide.name == "slide-2"


def test_a_caller_is_told_how_many_files_are_written(heatmap: Heatmap, tmp_path: Path) -> None:
    reports = []
    heatmap.write(tmp_path, progress=lambda *report: reports.append(report))
    assert reports == [("write", done, 4) for done in range(5)]


def test_a_format_without_writer_is_refused(heatmap: Heatmap, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\['docx'\]"):
        heatmap.write(tmp_path, formats=("docx",))
    assert list(tmp_path.iterdir()) == []


# Never half a result --------------------------------------------------------------------------


class _Stop(BaseException):
    pass


def test_an_interrupted_write_leaves_nothing(heatmap: Heatmap, tmp_path: Path) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if done == 2:
            raise _Stop

    with pytest.raises(_Stop):
        heatmap.write(tmp_path, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_overwrite_keeps_the_old_result(
    folder: Path, make_heatmap, tmp_path: Path
) -> None:
    before = content(folder)

    def stop(what: str, done: int, total: int) -> None:
        if done == 3:
            raise _Stop

    with pytest.raises(_Stop):
        make_heatmap(seed=5).write(tmp_path, overwrite=True, progress=stop)
    assert content(folder) == before
    assert list(tmp_path.iterdir()) == [folder]


_KILLED = """
import os, signal, sys
from atlas_wsi.testing.writers import make_heatmap

def die(what, done, total):
    if done == 2:
        os.kill(os.getpid(), signal.SIGKILL)

make_heatmap().write(sys.argv[1], progress=die)
"""
_FULL = """
import sys
from atlas_wsi.errors import DiskFullError
from atlas_wsi.testing.writers import full_disk, make_heatmap
heatmap = make_heatmap((300, 300), is_scene=True)
try:
    with full_disk(int(sys.argv[2])):
        heatmap.write(sys.argv[1], formats=sys.argv[3:])
except DiskFullError as error:
    print(error, "|", type(error.__cause__).__name__)
    sys.exit(3)
"""


def run_script(code: str, *args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_what_a_killed_run_leaves_is_removed_by_the_next_one(
    heatmap: Heatmap, tmp_path: Path
) -> None:
    killed = run_script(_KILLED, tmp_path)
    assert killed.returncode == -9, killed.stderr
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".slide-1.partial-")
    assert any(left.iterdir())
    heatmap.write(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["slide-1"]


@pytest.mark.slow
@pytest.mark.parametrize("name", RESULT_FORMATS)
def test_a_full_disk_is_told_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    full = run_script(_FULL, out, 600, name)
    assert full.returncode == 3, full.stderr
    assert "The disk is full" in full.stdout
    assert list(out.iterdir()) == []


def test_what_others_are_writing_is_left_alone(heatmap, make_heatmap, tmp_path: Path) -> None:
    alive = tmp_path / ".slide-1.partial-01234567-1-89abcdef"  # of another machine
    alive.mkdir()
    mine = tmp_path / name_of_partial(make_heatmap, tmp_path)
    mine.mkdir()
    old = tmp_path / ".slide-9.partial-01234567-1-89abcdef"
    old.mkdir()
    os.utime(old, (time.time() - 90_000,) * 2)
    (tmp_path / ".hidden-thing").mkdir()
    heatmap.write(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {
        alive.name,
        mine.name,
        ".hidden-thing",
        "slide-1",
    }


def name_of_partial(make_heatmap, folder: Path) -> str:
    """Tell the hidden name under which this process writes."""
    seen: list[str] = []

    def look(what: str, done: int, total: int) -> None:
        seen.extend(p.name for p in (folder / "probe").iterdir())

    make_heatmap((4, 4)).write(folder / "probe", formats=(), progress=look)
    shutil.rmtree(folder / "probe")
    return seen[0]


def test_a_result_that_was_being_replaced_when_its_run_died_comes_back(
    heatmap: Heatmap, folder: Path, tmp_path: Path
) -> None:
    old = tmp_path / ".slide-1.replaced-01234567-1-89abcdef"
    before = content(folder)
    folder.rename(old)
    os.utime(old, (time.time() - 90_000,) * 2)
    with pytest.raises(ResultExistsError):
        heatmap.write(tmp_path)
    assert content(folder) == before


# What is there --------------------------------------------------------------------------------


def test_a_result_is_only_replaced_if_asked_for(folder: Path, make_heatmap) -> None:
    other = make_heatmap(seed=7)
    with pytest.raises(ResultExistsError, match="There is a result") as caught:
        other.write(folder.parent)
    assert "--overwrite" in caught.value.hint
    other.write(folder.parent, overwrite=True)
    np.testing.assert_array_equal(open_result(folder).argmax(), other.argmax())
    assert list(folder.parent.iterdir()) == [folder]


def test_a_folder_that_is_no_result_is_never_replaced(heatmap: Heatmap, tmp_path: Path) -> None:
    (tmp_path / "slide-1").mkdir()
    (tmp_path / "slide-1" / "thesis.txt").write_text("years of work")
    with pytest.raises(ResultExistsError, match="not a result"):
        heatmap.write(tmp_path, overwrite=True)
    assert (tmp_path / "slide-1" / "thesis.txt").read_text() == "years of work"


def test_of_two_runs_at_once_the_second_does_not_replace_the_first(
    make_heatmap, tmp_path: Path
) -> None:
    first, second = make_heatmap(seed=1), make_heatmap(seed=2)

    def meanwhile(what: str, done: int, total: int) -> None:
        if done == 1:
            first.write(tmp_path)

    with pytest.raises(ResultExistsError, match="in the meantime"):
        second.write(tmp_path, progress=meanwhile)
    np.testing.assert_array_equal(open_result(tmp_path).argmax(), first.argmax())
    assert [p.name for p in tmp_path.iterdir()] == ["slide-1"]


def test_whether_a_result_can_be_written_is_known_before_the_work(
    folder: Path, tmp_path: Path
) -> None:
    assert check_writable(tmp_path / "new" / "deep", "a") == tmp_path / "new" / "deep" / "a"
    assert (tmp_path / "new" / "deep").is_dir()
    with pytest.raises(ResultExistsError):
        check_writable(tmp_path, "slide-1")
    assert check_writable(tmp_path, "slide-1", overwrite=True) == folder


def test_an_output_folder_that_cannot_be_is_told(heatmap: Heatmap, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for out in (file, file / "below", Path("/proc/atlas-wsi")):
        with pytest.raises(OutputNotWritableError, match=r"is a file|cannot be written"):
            heatmap.write(out)


def test_the_summary_alone_can_be_written(heatmap: Heatmap, tmp_path: Path) -> None:
    written = heatmap.write(tmp_path, formats=["json"])
    assert written == {"json": tmp_path / "slide-1" / "summary.json"}


@given(st.text())
def test_any_name_makes_a_safe_folder_name(name: str) -> None:
    safe = folder_name(name)
    assert safe == folder_name(safe)
    assert Path(safe).name == safe
    assert safe not in {"", ".", ".."}
    assert not safe.startswith(".")
    assert len(safe.encode()) <= 160


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("CMU-1 (small) 😐", "CMU-1 (small) 😐"),
        ("../../etc/passwd", "_.._etc_passwd"),
        ("a:b*c?", "a_b_c_"),
        ("CON", "slide_CON"),
        ("", "slide_"),
        ("v1.2.", "v1.2"),
    ],
)
def test_names_stay_as_they_are_where_they_can(name: str, safe: str) -> None:
    assert folder_name(name) == safe


# Damage ---------------------------------------------------------------------------------------


def chunk(folder: Path) -> Path:
    return folder / "heatmap.ome.zarr" / "0" / "c" / "1" / "0" / "0"


def test_a_missing_part_is_named(folder: Path) -> None:
    chunk(folder).unlink()
    with pytest.raises(CorruptResultError, match="0/c/1/0/0 is missing"):
        open_result(folder)


def test_a_truncated_part_is_named_with_its_sizes(folder: Path) -> None:
    size = chunk(folder).stat().st_size
    os.truncate(chunk(folder), 100)
    with pytest.raises(CorruptResultError, match=f"0/c/1/0/0 has 100 bytes, expected {size}"):
        open_result(folder)


def test_a_changed_part_is_named(folder: Path) -> None:
    damaged = bytearray(chunk(folder).read_bytes())
    damaged[len(damaged) // 2] ^= 1
    chunk(folder).write_bytes(damaged)
    with pytest.raises(CorruptResultError, match="0/c/1/0/0 was changed"):
        open_result(folder)


def test_pictures_and_regions_may_be_edited(folder: Path) -> None:
    (folder / "regions.geojson").write_text("{}")
    (folder / "heatmap.png").unlink()
    assert open_result(folder).slide.name == "slide-1"
    assert find_damage(folder, read_summary(folder)) == (
        "heatmap.png is missing",
        f"regions.geojson has 2 bytes, expected {read_summary(folder).files['regions.geojson'].bytes}",
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.clear(), "slide: Field required"),
        (lambda s: s.update(schema_version=99), "schema_version: Input should be 1"),
        (lambda s: s["files"].update({"../../secret": next(iter(s["files"].values()))}), "inside"),
        (lambda s: s["slide"].update(shape=[-1, 5]), r"slide\.shape\.0"),
    ],
)
def test_a_summary_that_is_not_ours_is_refused(folder: Path, change, message: str) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    change(summary)
    (folder / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(CorruptResultError, match=message):
        open_result(folder)


def test_a_summary_that_is_no_json_or_endless_is_refused(folder: Path) -> None:
    (folder / "summary.json").write_text("{")
    with pytest.raises(CorruptResultError, match="the whole file"):
        open_result(folder)
    os.truncate(folder / "summary.json", 1 << 30)
    with pytest.raises(CorruptResultError, match="bytes long"):
        open_result(folder)


def test_a_folder_without_result_is_told(tmp_path: Path) -> None:
    with pytest.raises(CorruptResultError, match="is not a result"):
        open_result(tmp_path)
    with pytest.raises(CorruptResultError, match="not a folder"):
        open_result(tmp_path / "missing")


def test_a_result_without_its_array_says_how_to_get_it(heatmap, tmp_path: Path) -> None:
    heatmap.write(tmp_path, formats=("png",))
    with pytest.raises(CorruptResultError, match=r"without heatmap\.ome\.zarr") as caught:
        open_result(tmp_path)
    assert "ome-zarr" in caught.value.hint
