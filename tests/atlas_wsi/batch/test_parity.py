"""`batch` and `predict` write the same result for the same slide."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

import atlas_wsi
from atlas_wsi.slides.synthetic import make_svs

pytestmark = pytest.mark.slow

RECORDS = {"summary.json", "heatmap.ome.zarr/zarr.json"}
VOLATILE = ("started", "wall_s", "stages_s", "peak_memory_bytes")
"""What differs from run to run: times, and the memory of the process."""


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parity")
    for seed, name in enumerate(("a", "b")):
        make_svs(folder / f"{name}.svs", (700, 900), mpp=1.0, seed=seed, tissue=0.6)
        picture = np.zeros((70, 90), dtype=np.uint8)
        picture[:, 10 + 30 * seed : 80] = 255
        Image.fromarray(picture).save(folder / f"{name}.png")
        ring = [[0, 0], [600, 0], [600, 700], [0, 700], [0, 0]]
        area = {"type": "Polygon", "coordinates": [ring]}
        (folder / f"{name}.geojson").write_text(json.dumps(area))
    return folder


def files_of(folder):
    """Content by file; the two records of the run without what is volatile."""
    files = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    for name in RECORDS & files.keys():
        files[name] = json.loads(files[name], object_hook=without_volatile)
    files["summary.json"]["files"].pop("heatmap.ome.zarr/zarr.json", None)  # its size and hash
    return files


def without_volatile(record):
    return {key: value for key, value in record.items() if key not in VOLATILE}


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--tissue", "{folder}/{{name}}.png", "--roi", "{folder}"),
        ("--tissue-model", "tissue", "--cell-px", "32", "-f", "png", "-f", "ome-zarr"),
    ],
    ids=["plain", "tissue-and-roi", "tissue-model"],
)
def test_batch_and_predict_write_the_same_bytes(slides, tmp_path, command, options):
    options = [option.format(folder=slides) for option in options]
    compare(slides, tmp_path, command, [*command.plain, *options])


def test_batch_and_predict_write_the_same_bytes_with_a_tile_classifier(
    slides, tmp_path, command, tile_classifier
):
    arguments = ["--model", tile_classifier, "--trust-model", "--memory", "400MB"]
    compare(slides, tmp_path, command, arguments)


def compare(slides, tmp_path, command, arguments):
    sources = [slides / "a.svs", slides / "b.svs"]
    archive, alone = tmp_path / "archive", tmp_path / "alone"
    # The worker is a fresh process, and so must the other be: the last bit of a sum may depend on
    # what else a process has loaded.
    done = command.here("batch", slides / "*.svs", "-o", archive, *arguments)
    assert done.exit_code == 0, done.stderr
    assert command.run("predict", *sources, "-o", alone, *arguments) == 0
    for name in ("a", "b"):
        files, others = files_of(archive / name), files_of(alone / name)
        assert files.keys() == others.keys()
        assert [path for path in files if files[path] != others[path]] == []
        assert files["summary.json"]["run"]["model"]["reason"] == "named by the user"
        result = atlas_wsi.open_result(alone / name)
        assert np.isfinite(result.probabilities).any()
    # each finds the result of the other finished
    again = command.here("predict", *sources, "-o", archive, *arguments)
    assert again.stdout.count("already done") == 2
