"""Choosing by validation tiles, and going on after a kill."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from atlas_wsi.errors import Cancelled, CheckpointMismatchError
from atlas_wsi.progress import CancelToken
from atlas_wsi.training.data.tile_folder import read_tile_folder, read_tiles
from atlas_wsi.training.history import History
from atlas_wsi.training.recipe import CardSpec, Recipe, TrainOptions
from atlas_wsi.training.split import split, split_two
from atlas_wsi.training.train import train

SMALL = Recipe(
    dim=32,
    depths=(1,),
    n_scales=1,
    epochs=6,
    megapixels=0.05,
    n_validations=4,
    mosaics=0.0,
)


def train_tiles(folder, recipe, *, out=None, **call):
    """Train with validation; a training with a model file resumes from a checkpoint beside it."""
    spec = CardSpec(name="t", domain="scene")
    options = TrainOptions(out=out, validation_fraction=0.25)
    return train(read_tile_folder(folder, mpp=1.0), spec, recipe, options, **call)


def test_three_parts_share_no_group_and_hold_out_what_two_do(tile_folder):
    tiles = read_tiles(tile_folder)
    whole = split(tiles, test=0.25, validation=0.25, seed=0)
    parts = (whole.train, whole.validation, whole.test)
    groups = [{tiles.groups[i] for i in part} for part in parts]
    assert sum(map(len, groups)) == len(set.union(*groups)) == len(set(tiles.groups))
    assert parts[2].tolist() == split_two(tiles, fraction=0.25, seed=0)[1].tolist()


@pytest.mark.slow
def test_a_training_that_was_stopped_goes_on_with_the_same_curve(tile_folder, tmp_path):
    whole, parts, again = History(), History(), History()
    first = train_tiles(tile_folder, recipe=SMALL, history=whole)
    out, cancel = tmp_path / "m.safetensors", CancelToken()

    def stop(what, done, total):
        if what.startswith("train") and len(parts.rows) == 2:
            cancel.cancel()

    with pytest.raises(Cancelled):
        train_tiles(
            tile_folder,
            recipe=SMALL,
            history=parts,
            out=out,
            progress=stop,
            cancel=cancel,
        )
    assert 0 < len(parts.rows) < len(whole.rows)
    second = train_tiles(tile_folder, recipe=SMALL, history=again, out=out)
    assert again.rows == whole.rows
    assert second.card.metrics == first.card.metrics
    assert second.card.temperature == first.card.temperature
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["m.safetensors"]
    assert not list(tmp_path.glob("*.resume.pt"))


@pytest.mark.slow
def test_a_checkpoint_of_another_training_is_refused(tile_folder, tmp_path):
    out, cancel = tmp_path / "m.safetensors", CancelToken()
    history = History()

    def stop(what, done, total):
        if history.rows:
            cancel.cancel()

    call = {"history": history, "out": out, "progress": stop, "cancel": cancel}
    with pytest.raises(Cancelled):
        train_tiles(tile_folder, recipe=SMALL, **call)
    other = Recipe(dim=32, depths=(1,), n_scales=1, epochs=3, megapixels=0.05)
    with pytest.raises(CheckpointMismatchError, match="other arguments"):
        train_tiles(tile_folder, recipe=other, out=out)


@pytest.mark.slow
def test_patience_ends_a_training_that_no_longer_gets_better(tile_folder):
    history = History()
    recipe = replace(SMALL, epochs=16, n_validations=16, patience=1, learning_rate=1.0)
    train_tiles(tile_folder, recipe=recipe, history=history)
    assert len(history.rows) < 16
    assert history.validations_since_best >= 1


@pytest.mark.slow
def test_a_training_out_of_patience_that_is_killed_before_it_writes_does_not_train_on(
    tile_folder, tmp_path
):
    out, cancel, parts, again = tmp_path / "m.safetensors", CancelToken(), History(), History()
    recipe = replace(SMALL, epochs=16, n_validations=16, patience=2, learning_rate=1.0)
    whole = History()
    train_tiles(tile_folder, recipe=recipe, history=whole)

    def stop(what, done, total):
        if len(parts.rows) == len(whole.rows) - 1:
            cancel.cancel()

    call = {"recipe": recipe, "out": out}
    with pytest.raises(Cancelled):
        train_tiles(tile_folder, history=parts, progress=stop, cancel=cancel, **call)
    train_tiles(tile_folder, history=again, **call)
    assert again.rows == whole.rows


@pytest.mark.slow
def test_the_card_says_which_check_was_kept(tile_folder):
    history = History()
    recipe = replace(SMALL, epochs=16, n_validations=16, patience=3, learning_rate=1.0)
    facts = train_tiles(tile_folder, recipe=recipe, history=history).card.training
    best = min(history.rows, key=lambda row: row["validation_loss"])
    assert facts["chosen"]["step"] == best["step"] < history.rows[-1]["step"] == facts["steps"]
    expected = best["validation_balanced_accuracy"]
    assert facts["chosen"]["validation_balanced_accuracy"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_a_process_killed_in_its_second_fold_goes_on_with_the_same_curves(tile_folder, tmp_path):
    script = (
        "import sys; from atlas_wsi.cli.app import app\n"
        "for out in sys.argv[1].split():\n"
        "    app(['train', 'tiles', *sys.argv[2:], '-o', out], standalone_mode=False)"
    )
    options = ["--mpp", "1", "--dim", "32", "--epochs", "1", "--domain", "scene", "--quiet"]
    options += ["--seed", "14"]  # its first large mosaic is a small one
    options += ["--megapixels", "0.1", "--validation-fraction", "0.25", "--folds", "2"]

    def start(*outs):
        command = [sys.executable, "-c", script, " ".join(map(str, outs)), str(tile_folder)]
        return subprocess.Popen(
            [*command, *options],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )

    killed, whole = (tmp_path / name / "m.safetensors" for name in ("killed", "whole"))
    process = start(killed)
    while not killed.with_name("m.fold1.resume.pt").exists():
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert killed.with_name("m.fold1.resume.pt").exists()
    assert start(killed, whole).wait(timeout=240) == 0
    curves = [
        {path.name: path.read_text() for path in out.parent.glob("*.training.csv")}
        for out in (killed, whole)
    ]
    assert curves[0] == curves[1]
    assert len(curves[0]) == 3
    assert not list(tmp_path.glob("*/*.resume.pt"))


def test_the_curve_is_written_as_a_table_and_a_picture(tmp_path):
    row = {"step": 1, "learning_rate": 0.1, "loss": 2.0, "validation_loss": 1.0}
    History(rows=[row]).write(tmp_path / "m.safetensors")
    with (tmp_path / "m.training.csv").open(newline="") as file:
        assert next(csv.DictReader(file))["validation_loss"] == "1.0"
    picture = tmp_path / "m.training.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
