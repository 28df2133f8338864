"""What is said of files: ours, those of other programs, damaged ones."""

from __future__ import annotations

import json
import shutil

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import zarr
from hypothesis import given
from hypothesis import strategies as st

import atlas_wsi
from atlas_wsi.errors import DatasetError, ResultError, SlideError
from atlas_wsi.interop.formats import EXPORT_FORMATS


@pytest.fixture(scope="module")
def exported(heatmap, tmp_path_factory):
    """A file of each export."""
    out = tmp_path_factory.mktemp("exported")
    return {to: atlas_wsi.export_result(heatmap, out / to, to=to).path for to in EXPORT_FORMATS}


@pytest.fixture(scope="module")
def archive(slide, tmp_path_factory, make_archive):
    return make_archive(slide, tmp_path_factory.mktemp("archive"))


@pytest.mark.parametrize(
    ("to", "kind", "holds_classes"),
    [
        ("qupath", "GeoJSON features", True),
        ("cog", "class probabilities of a slide (Cloud-Optimized GeoTIFF)", True),
        ("dsa", "annotations of the Digital Slide Archive", False),
        ("trident-h5", "class probabilities of tiles", True),
        ("clam-h5", "class probabilities of tiles", True),
        ("stamp-h5", "class probabilities of tiles", True),
        ("spatialdata", "SpatialData", False),
        ("html", "web page", False),
    ],
)
def test_our_exports_are_known(exported, heatmap, to, kind, holds_classes):
    found = atlas_wsi.inspect_file(exported[to])
    assert (found.kind, found.writer) == (kind, "atlas-wsi")
    assert found.uses
    if holds_classes:
        assert set(found.facts["classes"]) <= set(heatmap.classes)
        assert found.facts["classes"]


def test_a_result_its_folder_and_its_heatmap_are_known(result, heatmap):
    found = atlas_wsi.inspect_file(result)
    assert found.kind == "result of one slide"
    assert list(found.facts["classes"]) == list(heatmap.classes)
    assert found.facts["slide_mpp"] == [0.5, 0.5]
    assert {part.name for part in found.parts} >= {"heatmap.ome.zarr", "regions.geojson"}
    assert atlas_wsi.inspect_file(result.parent).facts == {"results": 1}
    store = atlas_wsi.inspect_file(result / "heatmap.ome.zarr")
    assert store.facts["classes"] == list(heatmap.classes)
    by_name = {part.name: part for part in store.parts}
    assert by_name["0"].shape == heatmap.probabilities.shape
    assert by_name["0"].dtype == "float16"
    assert "labels/tissue/0" in by_name


def test_a_missing_file_of_a_result_is_named(result, tmp_path):
    shutil.copytree(result, tmp_path / "a")
    (tmp_path / "a" / "heatmap.png").unlink()
    assert "heatmap.png is missing." in atlas_wsi.inspect_file(tmp_path / "a").warnings


@pytest.mark.slow
def test_an_archive_and_its_table_are_known(archive, run):
    found = atlas_wsi.inspect_file(archive)
    assert (found.kind, found.facts["done"]) == ("archive", 1)
    table = atlas_wsi.inspect_file(archive / "archive.parquet")
    assert table.facts["slides"] == 1
    assert table.facts["states"] == {"done": 1}
    assert table.facts["classes"]


def test_a_model_tells_its_card(tmp_path):
    path = atlas_wsi.load_model("atlas_test").save(tmp_path / "m.safetensors")
    found = atlas_wsi.inspect_file(path)
    card = atlas_wsi.load_model("atlas_test").card
    assert (found.kind, found.writer) == ("model", "atlas-wsi")
    assert found.facts["classes"] == list(card.class_names)
    assert found.facts["mpp"] == card.mpp
    assert found.facts["weights"] == sum(np.prod(p.shape) for p in found.parts)


def test_other_weights_are_weights(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(3, 4, dtype=torch.bfloat16)}, tmp_path / "w.safetensors")
    found = atlas_wsi.inspect_file(tmp_path / "w.safetensors")
    assert found.kind == "weights"
    assert found.parts[0].shape == (3, 4)


@pytest.mark.parametrize("peer", ["CLAM", "TRIDENT", "WSInfer", "STAMP"])
@pytest.mark.parametrize("has_features", [False, True], ids=["patches", "features"])
def test_hdf5_of_peers_is_known_by_its_keys(tmp_path, peer, has_features):
    attributes = {
        "CLAM": {"patch_size": 256, "patch_level": 0, "level_dim": np.array([9000, 8000])},
        "TRIDENT": {"patch_size": 256, "level0_magnification": 40, "target_magnification": 20},
        "WSInfer": {"patch_size": 256, "patch_level": 0, "patch_spacing_um_px": 0.5},
        "STAMP": {},
    }[peer]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["coords"] = np.zeros((5, 2), np.int64)
        file["coords"].attrs.update(attributes)
        if has_features:
            file["feats" if peer == "STAMP" else "features"] = np.zeros((5, 16), np.float32)
        if peer == "STAMP":
            file.attrs.update(unit="um", tile_size_um=256.0, extractor="uni", feat_type="tile")
    found = atlas_wsi.inspect_file(tmp_path / "a.h5")
    assert found.kind == ("features of tiles" if has_features else "coordinates of tiles")
    assert (found.writer, found.facts["tiles"]) == (peer, 5)
    assert any("--tissue" in use for use in found.uses)
    coords = next(part for part in found.parts if part.name == "coords")
    assert coords.shape == (5, 2)
    assert set(coords.attributes) == set(attributes)


@pytest.mark.parametrize(
    ("data", "kind", "writer"),
    [
        (
            {"num_classes": 2, "patch_size_pixels": 350, "spacing_um_px": 0.25, "class_names": []},
            "configuration of a tile classifier",
            "WSInfer",
        ),
        (
            [{"type": "Feature", "geometry": None, "properties": {"objectType": "annotation"}}],
            "GeoJSON features",
            "QuPath",
        ),
        (
            {
                "type": "FeatureCollection",
                "features": [{"type": "Feature", "geometry": None, "properties": {"tissue_id": 0}}],
            },
            "GeoJSON features",
            "TRIDENT",
        ),
        ({"name": "a", "elements": []}, "annotations of the Digital Slide Archive", ""),
        ({"slide": {}, "tasks": {}}, "state of a slide", "TRIDENT"),
        ({"x": 1}, "JSON object", ""),
    ],
    ids=["config", "qupath", "trident", "dsa", "state", "other"],
)
def test_json_is_known_by_its_keys(tmp_path, data, kind, writer):
    (tmp_path / "a.json").write_text(json.dumps(data))
    found = atlas_wsi.inspect_file(tmp_path / "a.json")
    assert (found.kind, found.writer) == (kind, writer)


def test_tables_are_known_by_their_columns(exported, heatmap, tmp_path):
    found = atlas_wsi.inspect_file(exported["wsinfer-csv"])
    assert found.writer == "WSInfer"
    assert found.facts["classes"] == list(heatmap.classes)
    assert found.facts["rows"] == (heatmap.argmax() >= 0).sum()
    (tmp_path / "l.csv").write_text("case_id,slide_id,label\na,b,c\n")
    assert atlas_wsi.inspect_file(tmp_path / "l.csv").writer == "CLAM"
    pq.write_table(pa.table({"x": [1, 2]}), tmp_path / "x.parquet")
    other = atlas_wsi.inspect_file(tmp_path / "x.parquet")
    assert (other.kind, other.parts[0].shape) == ("Parquet table", (2,))


def test_zarr_of_others_is_known(tmp_path):
    group = zarr.create_group(str(tmp_path / "t.zarr"))
    for name in ("predictions", "probabilities", "coordinates"):
        group.create_array(name, shape=(4, 2), dtype="f4")
    assert atlas_wsi.inspect_file(tmp_path / "t.zarr").writer == "TIAToolbox"
    image = zarr.create_group(str(tmp_path / "i.zarr"), zarr_format=2)
    image.create_array("0", shape=(3, 8, 8), dtype="u1")
    axes = [{"name": n} for n in "cyx"]
    image.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": [{"path": "0"}]}]
    found = atlas_wsi.inspect_file(tmp_path / "i.zarr")
    assert (found.kind, found.facts["version"]) == ("OME-Zarr image", "0.4")
    assert found.facts["axes"] == ["c", "y", "x"]


def test_a_slide_is_a_slide(slide):
    found = atlas_wsi.inspect_file(slide)
    assert found.kind == "slide or picture"
    assert found.facts["mpp"] == [0.5, 0.5]


def test_the_command_prints_both_ways(run, exported):
    shown = run("inspect", exported["clam-h5"])
    assert shown.exit_code == 0
    assert f"--tissue {exported['clam-h5']}" in shown.stdout.replace("\n", " ")
    told = json.loads(run("inspect", exported["clam-h5"], "--json").stdout)
    assert told["kind"] == "class probabilities of tiles"
    assert {part["name"] for part in told["parts"]} == {"coords", "features"}


def test_what_a_file_says_does_not_reach_the_terminal_as_commands(run, tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = np.zeros(3)
        file["x"].attrs["\x1b[31mname"] = "\x1b]0;title\x07[red]text[/]"
    shown = run("inspect", tmp_path / "a.h5")
    assert shown.exit_code == 0
    assert "\x1b" not in shown.stdout
    assert "[red]text[/]" in shown.stdout


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\1\2\3",
        b"just text",
        b"[1, 2",
        b"\x89HDF\r\n\x1a\nno",
        b"PAR1no",
        b"\x10" + b"\0" * 7 + b"{}",
    ],
    ids=["empty", "bytes", "text", "json", "hdf5", "parquet", "safetensors"],
)
def test_what_is_nothing_known_is_one_error(run, tmp_path, content):
    (tmp_path / "a.bin").write_bytes(content)
    done = run("inspect", tmp_path / "a.bin")
    assert done.exit_code == 2, done.output
    assert "a.bin" in done.stderr


def test_nothing_and_an_empty_folder_are_errors(run, tmp_path):
    assert run("inspect", tmp_path / "no").exit_code == 2
    assert run("inspect", tmp_path).exit_code == 2


KINDS = ["qupath", "dsa", "trident-h5", "stamp-h5", "wsinfer-csv", "cog"]


@pytest.mark.slow
@given(st.data())
def test_damaged_files_are_described_or_refused(exported, archive, tmp_path_factory, data):
    source = data.draw(
        st.sampled_from([*(exported[k] for k in KINDS), archive / "archive.parquet"])
    )
    content = bytearray(source.read_bytes())
    places = st.integers(0, len(content) - 1) | st.integers(0, min(2048, len(content) - 1))
    for at in data.draw(st.lists(places, min_size=1, max_size=8)):
        content[at] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / source.name
    path.write_bytes(content[: data.draw(st.just(len(content)) | st.integers(0, len(content)))])
    try:
        found = atlas_wsi.inspect_file(path)
    except (ResultError, SlideError, DatasetError):
        return
    json.dumps(found.facts, allow_nan=False)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "type",
                        "features",
                        "properties",
                        "geometry",
                        "classification",
                        "measurements",
                        "name",
                        "names",
                        "elements",
                        "annotation",
                        "atlas",
                        "kind",
                        "models",
                        "crs",
                    ]
                ),
                inner | st.sampled_from(["Feature", "FeatureCollection"]),
                max_size=5,
            )
        ),
        max_leaves=25,
    )
)
def test_any_json_is_described_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("any") / "a.json"
    path.write_text(json.dumps(data))
    try:
        found = atlas_wsi.inspect_file(path)
    except (ResultError, SlideError, DatasetError):
        return
    json.dumps(found.facts, allow_nan=False)
