"""The command line as a user meets it: files in, files out, one message, an exit code."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image
from typer.testing import CliRunner

import atlas_wsi
from atlas_wsi.cli.app import app
from atlas_wsi.slides.synthetic import make_svs

STORED_OPTIONS = Path(__file__).with_name("options.json")


def run(*arguments: object):
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def slide(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("slides") / "tissue.svs"
    make_svs(path, shape=(1500, 2100), mpp=0.5, tissue=0.5)
    return path


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("scenes") / "fields.tif"
    pixels = np.random.default_rng(0).integers(20, 120, (3, 700, 900), dtype=np.uint8)
    where = rasterio.transform.from_origin(500_000, 5_000_000, 10, 10)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=900,
        height=700,
        count=3,
        dtype="uint8",
        crs="EPSG:32633",
        transform=where,
    ) as raster:
        raster.write(pixels)
    return path


def predict(*arguments: object):
    return run("predict", *arguments, "--model", "atlas_test", "--precision", "float32")


def test_predict_writes_every_output_and_says_where(slide, tmp_path):
    done = predict(slide, "-o", tmp_path)
    assert done.exit_code == 0, done.output
    folder = tmp_path / "tissue"
    for name in ("heatmap.ome.zarr", "heatmap.png", "regions.geojson", "summary.json"):
        assert (folder / name).exists()
        assert str(folder / name) in done.stdout
    assert {p.name for p in tmp_path.iterdir()} == {"tissue"}
    result = atlas_wsi.open_result(folder)
    assert result.run.model.name == "atlas_test"
    assert np.isfinite(result.probabilities).any()


def test_a_scene_also_gets_a_geotiff(scene, tmp_path):
    done = predict(scene, "-o", tmp_path)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "fields" / "heatmap.tif").exists()
    assert "made for slides, this is a scene" in done.stderr


def test_a_repeated_run_says_that_it_is_done_and_leaves_the_files_alone(slide, tmp_path):
    assert predict(slide, "-o", tmp_path).exit_code == 0
    before = (tmp_path / "tissue" / "summary.json").stat().st_mtime_ns
    again = predict(slide, "-o", tmp_path)
    assert again.exit_code == 0
    assert "already done" in again.stdout
    assert (tmp_path / "tissue" / "summary.json").stat().st_mtime_ns == before


@pytest.mark.slow
def test_another_result_at_the_same_place_is_an_error_until_overwritten(slide, tmp_path):
    assert predict(slide, "-o", tmp_path).exit_code == 0
    other = predict(slide, "-o", tmp_path, "--cell-px", 32)
    assert other.exit_code == 2
    assert "--overwrite" in other.stderr
    assert predict(slide, "-o", tmp_path, "--cell-px", 32, "--overwrite").exit_code == 0


def test_json_is_the_only_thing_on_the_standard_output(slide, tmp_path):
    done = predict(slide, "-o", tmp_path, "--json")
    (found,) = json.loads(done.stdout)
    assert found["area_unit"] == "mm2"
    assert set(found["areas"]) == {"red", "green", "blue"}
    assert Path(found["files"]["png"]).exists()


def test_one_bad_slide_does_not_stop_the_others(slide, tmp_path):
    bad = tmp_path / "bad.svs"
    bad.write_text("not a slide")
    done = predict(bad, slide, "-o", tmp_path / "out")
    assert done.exit_code == 2
    assert "bad.svs" in done.stderr
    assert (tmp_path / "out" / "tissue" / "heatmap.png").exists()


def test_glass_without_tissue_gives_a_valid_empty_result_and_a_warning(tmp_path):
    path = tmp_path / "glass.svs"
    make_svs(path, shape=(1024, 1024), tissue=0)
    done = predict(path, "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "No tissue was found" in done.stderr
    result = atlas_wsi.open_result(tmp_path / "out" / "glass")
    assert np.isnan(result.probabilities).all()
    assert sum(result.areas().values()) == 0
    geojson = json.loads((tmp_path / "out" / "glass" / "regions.geojson").read_text())
    assert geojson["features"] == []


def test_a_missing_resolution_names_the_flag_and_the_flag_helps(tmp_path):
    path = tmp_path / "picture.png"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 200, (600, 500, 3), dtype=np.uint8)).save(path)
    without = predict(path, "-o", tmp_path / "out")
    assert without.exit_code == 2
    assert "--mpp" in without.stderr
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())
    assert predict(path, "-o", tmp_path / "out", "--mpp", 0.5).exit_code == 0


@pytest.mark.parametrize("kind", ["missing", "text", "folder", "empty", "truncated"])
def test_what_is_no_slide_is_one_message_and_exit_code_2(kind, slide, tmp_path):
    path = tmp_path / "x.svs"
    if kind == "text":
        path.write_text("hello")
    elif kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    elif kind == "truncated":
        path.write_bytes(slide.read_bytes()[:3000])
    done = run("info", path)
    assert done.exit_code == 2
    assert "x.svs" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 3


def test_an_output_that_cannot_be_written_fails_before_the_work(slide, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    done = predict(slide, "-o", blocked / "out")
    assert done.exit_code == 2
    assert "encode" not in done.stderr


def test_unreadable_tiles_are_counted_and_strict_fails(slide, tmp_path):
    path = tmp_path / "hurt.svs"
    shutil.copy(slide, path)
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        offset, size = tiff.pages[0].dataoffsets[30], tiff.pages[0].databytecounts[30]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * size)
    done = predict(path, "-o", tmp_path / "out")
    assert done.exit_code == 4, done.output
    assert "could not be read" in done.stderr
    allowed = predict(path, "-o", tmp_path / "allowed", "--max-unreadable", 0.1)
    assert allowed.exit_code == 0, allowed.output
    result = atlas_wsi.open_result(tmp_path / "out" / "hurt")
    assert result.run.n_unreadable >= 1
    assert result.run.unreadable[0].level == 0
    strict = predict(path, "-o", tmp_path / "strict", "--strict")
    assert strict.exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--model", "no-such-model"), "no-such-model"),
        (("--model", "no/such/file.safetensors"), "no/such/file.safetensors"),
        (("--memory", "plenty"), "plenty"),
        (("--cell-px", "48"), "48"),
        (("--device", "abacus"), "abacus"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else None,
)
def test_a_wrong_argument_is_named(arguments, expected, slide, tmp_path):
    done = run("predict", slide, "-o", tmp_path, "--precision", "float32", *arguments)
    assert done.exit_code == 2
    assert expected in done.stderr
    assert not any(tmp_path.iterdir())


def test_info_prints_json(slide):
    facts = json.loads(run("info", slide, "--json").stdout)
    assert (facts["rows"], facts["cols"]) == (1500, 2100)
    assert facts["mpp"] == [0.5, 0.5]
    assert facts["vendor"] == "aperio"
    assert facts["levels"][0]["tile"] == [256, 256]


def test_tissue_writes_a_mask(slide, tmp_path):
    done = run("tissue", slide, "-o", tmp_path / "mask.png", "--json")
    assert done.exit_code == 0, done.output
    mask = np.asarray(Image.open(tmp_path / "mask.png"))
    share = json.loads(done.stdout)["tissue_fraction"]
    assert 0.2 < share < 0.8
    assert (mask > 0).mean() == pytest.approx(share)


def test_models_and_their_cards_are_shown():
    listed = json.loads(run("models", "--json").stdout)
    assert {card["domain"] for card in listed} == {"slide", "scene"}
    for card in listed:
        shown = run("models", "show", card["name"])
        assert "Research use only" in shown.stdout


def test_doctor_finds_a_whole_installation():
    done = run("doctor", "--json")
    assert done.exit_code == 0, done.output
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    assert checks["openslide"]["state"] == checks["rasterio"]["state"] == "ok"


def test_the_program_runs_and_stops_with_a_clear_message(tmp_path):
    """Through the real entry point, in a process of its own."""
    command = [sys.executable, "-m", "atlas_wsi.cli.app", "info", str(tmp_path / "none.svs")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    traced = subprocess.run([*command, "--debug"], capture_output=True, text=True, check=False)
    assert "Traceback" in traced.stderr


@pytest.mark.slow
def test_ctrl_c_leaves_nothing_half_written(tmp_path):
    slide = tmp_path / "large.svs"
    make_svs(slide, shape=(8000, 8000), tissue=0.6)
    command = [sys.executable, "-m", "atlas_wsi.cli.app", "predict", str(slide)]
    command += ["-o", str(tmp_path / "out"), "--model", "lung-he"]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ
    )
    assert process.stdout is not None
    process.stdout.readline()  # the model was chosen; the work begins
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Stopped" in errors
    assert not list(tmp_path.rglob("heatmap.*"))


def test_the_list_of_options_is_a_decision():
    import typer

    def options(command) -> dict:
        nested = getattr(command, "commands", None)
        if nested:
            return {name: options(sub) for name, sub in sorted(nested.items())}
        return sorted(o for p in command.params for o in p.opts if o.startswith("--"))

    assert options(typer.main.get_command(app)) == json.loads(STORED_OPTIONS.read_text())


@pytest.mark.slow
def test_bench_says_what_bounds_a_slide(slide):
    done = run("bench", slide, "--model", "atlas_test", "--precision", "float32", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    slower = min(found["decode_mpx_s"], found["encode_mpx_s"])
    assert found["bound_by"] == ("decoding" if slower == found["decode_mpx_s"] else "encoding")
    assert found["fraction_of_slower"] == pytest.approx(found["whole_mpx_s"] / slower)
    assert found["megapixels"] == pytest.approx(found["windows"] * 256**2 / 1e6)


def test_a_scene_is_measured_in_meters(scene, tmp_path):
    picture = tmp_path / "scene.png"
    Image.fromarray(np.zeros((200, 300, 3), np.uint8)).save(picture)
    told = json.loads(run("info", picture, "--gsd", "10m", "--json").stdout)
    assert told["mpp"] == [1e7, 1e7]
    shown = run("info", scene)
    assert "10 m" in shown.stdout
    assert json.loads(run("info", scene, "--gsd", "20m", "--json").stdout)["gsd_m"] == [20.0, 20.0]
    assert "10 m" in run("models", "show", "landcover-rgb").stdout
