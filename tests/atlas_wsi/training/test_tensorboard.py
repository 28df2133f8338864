"""Event files beside the table, read back by TensorBoard's own reader."""

from __future__ import annotations

import csv
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from atlas_wsi.cli.app import app
from atlas_wsi.errors import Cancelled
from atlas_wsi.progress import CancelToken
from atlas_wsi.training.data.tile_folder import read_tile_folder
from atlas_wsi.training.history import History
from atlas_wsi.training.recipe import CardSpec, Recipe, TrainOptions
from atlas_wsi.training.train import train

COMMAND = ["--mpp", "1", "--dim", "32", "--epochs", "3", "--domain", "scene", "--quiet"]
COMMAND += ["--megapixels", "0.1", "--validation-fraction", "0.25"]


def read(folder):
    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


@pytest.mark.slow
def test_the_event_file_says_what_the_table_says(tile_folder, tmp_path):
    out, logs = tmp_path / "m.safetensors", tmp_path / "logs"
    command = ["train", "tiles", str(tile_folder), "-o", str(out), *COMMAND]
    done = CliRunner().invoke(app, [*command, "--tensorboard", str(logs)])
    assert done.exit_code == 0, done.output
    found = read(logs)
    with (tmp_path / "m.training.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for name in ("validation_loss", "validation_balanced_accuracy"):
        assert [step for step, _ in found[name]] == [int(row["step"]) for row in rows]
        assert [v for _, v in found[name]] == pytest.approx([float(r[name]) for r in rows])
    steps = int(rows[-1]["step"])
    assert [step for step, _ in found["loss"]] == list(range(1, steps + 1))
    assert dict(found["learning_rate"])[steps] == pytest.approx(float(rows[-1]["learning_rate"]))


@pytest.mark.slow
def test_a_training_that_goes_on_logs_every_step_once(tile_folder, tmp_path):
    recipe = Recipe(dim=32, depths=(1,), n_scales=1, epochs=6, megapixels=0.05, n_validations=4)
    cancel, history = CancelToken(), History(tensorboard=tmp_path)
    spec, options = CardSpec(name="t", domain="scene"), TrainOptions(out=tmp_path / "m.safetensors")
    call = (read_tile_folder(tile_folder, mpp=1.0), spec, recipe, options)

    def stop(what, done, total):
        if len(history.rows) == 2 and done % 3 == 2:  # between two checks
            cancel.cancel()

    with pytest.raises(Cancelled):
        train(*call, history=history, progress=stop, cancel=cancel)
    again = History(tensorboard=tmp_path)
    train(*call, history=again)
    steps = [step for step, _ in read(tmp_path)["loss"]]
    assert steps == list(range(1, int(again.rows[-1]["step"]) + 1))


def test_without_the_package_the_command_says_how_to_get_it(tile_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # as if it were not installed
    command = ["train", "tiles", str(tile_folder), "-o", str(tmp_path / "m.safetensors"), *COMMAND]
    done = CliRunner().invoke(app, [*command, "--tensorboard", str(tmp_path / "logs")])
    assert done.exit_code == 2
    assert "pip install 'atlas-wsi[train]'" in done.output
    assert not list(tmp_path.iterdir())
