"""Cross-validation from the command line: a model a fold, one of all tiles, figures over all."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from typer.testing import CliRunner

from atlas_wsi.cli.app import app
from atlas_wsi.errors import Cancelled, CheckpointMismatchError, DatasetError
from atlas_wsi.models import load_model
from atlas_wsi.progress import CancelToken
from atlas_wsi.training.cross_validation import cross_validate
from atlas_wsi.training.data.tile_folder import read_tiles
from atlas_wsi.training.evaluation import evaluate, unseen_part
from atlas_wsi.training.metrics import confusion
from atlas_wsi.training.recipe import CardSpec, Recipe, TrainOptions

# the large mosaic of the first steps is a small one for this seed
QUICK = ["--mpp", "1", "--dim", "32", "--epochs", "2", "--domain", "scene", "--megapixels", "0.1"]
QUICK += ["--seed", "14"]
TINY = Recipe(
    dim=32,
    depths=(1,),
    n_scales=1,
    epochs=2,
    megapixels=0.1,
    n_validations=2,
    mosaics=0.0,
)


def train(folder, out, *more):
    command = ["train", "tiles", str(folder), "-o", str(out), *QUICK, "--folds", "2", *more]
    return CliRunner().invoke(app, command)


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def crossed(tile_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("folds") / "cv.safetensors"
    done = train(tile_folder, out)
    assert done.exit_code == 0, done.output
    return out


@pytest.mark.slow
def test_every_tile_is_predicted_once_by_a_model_that_did_not_see_its_group(crossed, tile_folder):
    rows = read(crossed.with_suffix(".predictions.csv"))
    tiles = read_tiles(tile_folder)
    assert [row["path"] for row in rows] == list(tiles.paths)
    fold_of = {}
    for row in rows:
        assert fold_of.setdefault(row["group"], row["fold"]) == row["fold"]
        shares = [float(row[name]) for name in tiles.classes]
        assert sum(shares) == pytest.approx(1, abs=1e-3)
        assert row["predicted"] == tiles.classes[int(np.argmax(shares))]
    for k in range(2):
        asked = unseen_part(load_model(crossed.with_name(f"cv.fold{k}.safetensors")), tiles)
        assert list(asked.paths) == [row["path"] for row in rows if row["fold"] == str(k)]


@pytest.mark.slow
def test_figures_are_those_of_the_folds_together(crossed, tile_folder):
    rows = read(crossed.with_suffix(".predictions.csv"))
    classes = read_tiles(tile_folder).classes
    true, said = (np.array([classes.index(r[key]) for r in rows]) for key in ("class", "predicted"))
    counts = confusion(true, said, 3).tolist()
    data = json.loads(crossed.with_suffix(".folds.json").read_text())
    assert data["pooled"]["confusion"] == counts
    card = load_model(crossed).card
    assert [list(row) for row in card.confusion] == counts
    assert card.metrics["accuracy"] == pytest.approx(np.mean(true == said), abs=1e-4)
    assert "not measured itself" in card.split
    table = read(crossed.with_suffix(".folds.csv"))
    own = [float(row["balanced_accuracy"]) for row in table[:2]]
    assert [row["fold"] for row in table] == ["0", "1", "mean", "sd"]
    assert float(table[2]["balanced_accuracy"]) == pytest.approx(np.mean(own), abs=1e-3)
    assert float(table[3]["balanced_accuracy"]) == pytest.approx(np.std(own, ddof=1), abs=1e-3)


@pytest.mark.slow
def test_a_fold_is_measured_again_from_its_file_and_the_whole_is_not(crossed, tile_folder):
    tiles = read_tiles(tile_folder)
    model = load_model(crossed.with_name("cv.fold1.safetensors"))
    found = evaluate(model, tiles)
    assert found.metrics["accuracy"] == pytest.approx(model.card.metrics["accuracy"], abs=1e-4)
    with pytest.raises(DatasetError, match="trained on all tiles"):
        unseen_part(load_model(crossed), tiles)


def stop_in(fold, cancel):
    def report(what, done, total):
        if what.startswith(f"fold {fold} of 2: train"):
            cancel.cancel()

    return {"progress": report, "cancel": cancel}


@pytest.mark.slow
def test_folds_that_are_done_are_not_trained_again(tile_folder, tmp_path):
    out, seen = tmp_path / "cv.safetensors", []
    data, spec = read_tiles(tile_folder), CardSpec(name="cv", domain="scene", mpp=1.0)
    call = (data, spec, TINY, TrainOptions(out=out))
    with pytest.raises(Cancelled):
        cross_validate(*call, n_folds=2, **stop_in(2, CancelToken()))
    first = out.with_name("cv.fold0.safetensors").read_bytes()
    cross_validate(*call, n_folds=2, progress=lambda what, *_: seen.append(what))
    assert out.with_name("cv.fold0.safetensors").read_bytes() == first
    assert not any("fold 1 of 2: train" in what for what in seen)
    assert any("fold 2 of 2: train" in what for what in seen)
    assert not list(tmp_path.glob("*.resume.pt"))


@pytest.mark.slow
def test_folds_of_other_arguments_are_refused_or_replaced(crossed, tile_folder, tmp_path):
    copy = tmp_path / "cv.fold0.safetensors"
    copy.write_bytes(crossed.with_name("cv.fold0.safetensors").read_bytes())
    call = (read_tiles(tile_folder), CardSpec(name="cv", domain="scene", mpp=1.0), TINY)
    out = tmp_path / "cv.safetensors"
    with pytest.raises(CheckpointMismatchError, match="other arguments"):
        cross_validate(*call, TrainOptions(out=out), n_folds=2)
    with pytest.raises(Cancelled):
        cross_validate(
            *call, TrainOptions(out=out, overwrite=True), n_folds=2, **stop_in(1, CancelToken())
        )


def test_one_fold_is_none(tile_folder, tmp_path):
    done = train(tile_folder, tmp_path / "m.safetensors", "--folds", "1")
    assert done.exit_code == 2
    assert "2 or more" in done.output
