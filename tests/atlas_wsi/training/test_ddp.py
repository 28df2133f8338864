"""Training by two processes that torchrun started, on the CPU, over gloo."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from atlas_wsi.cli.app import app
from atlas_wsi.models import load_model
from atlas_wsi.training.data.mosaics import Batches
from atlas_wsi.training.data.tile_folder import read_tiles
from atlas_wsi.training.recipe import Recipe

SCRIPT = Path(__file__).with_name("gradients_of_steps.py")
# the large mosaic of the first steps is a small one for this seed
TRAIN = ["--mpp", "1", "--dim", "32", "--epochs", "6", "--megapixels", "0.3", "--seed", "14"]
TRAIN += ["--validation-fraction", "0.25", "--precision", "float32", "--lr", "1e-4", "--json"]

MIX = {"mosaics": 2 / 3, "color_jitter": 1.0}


def run_two(*arguments):
    """Run two processes; each launch has a store of its own, as a group joins a store once."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *torchrun, *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def steps(tile_folder, tmp_path_factory):
    """The same steps by one process and by two."""
    out = tmp_path_factory.mktemp("steps") / "steps.pt"
    run_two(SCRIPT, tile_folder, out)
    found = torch.load(out, weights_only=True)
    return [found["one"], found["two"]]


@pytest.mark.slow
def test_gradients_of_two_processes_are_those_of_one(steps):
    one, two = steps
    for step in (s for s in one if s != "running"):
        a, b = one[step], two[step]
        assert a["pictures"] == b["pictures"]
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert set(a["gradients"]) == set(b["gradients"])
        flat = [torch.cat([g.flatten() for g in x["gradients"].values()]) for x in (a, b)]
        assert torch.linalg.norm(flat[0] - flat[1]) < 1e-3 * torch.linalg.norm(flat[0])


@pytest.mark.slow
def test_some_step_had_fewer_pictures_than_processes(steps):
    assert min(steps[1][s]["pictures"] for s in steps[1] if s != "running") == 1


@pytest.mark.slow
def test_batch_norm_sees_the_pictures_of_all_processes(steps):
    one, two = (s["running"] for s in steps)
    assert set(one) == set(two)
    for name, value in one.items():
        assert torch.allclose(value, two[name], rtol=1e-4, atol=1e-5), name


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("step", [0, 2])
def test_parts_of_a_batch_are_the_batch_without_repeats(tile_folder, n, step):
    tiles, recipe = read_tiles(tile_folder), Recipe(megapixels=0.6, **MIX)
    whole = Batches(tiles=tiles, recipe=recipe, stain=True)[step]
    parts = [Batches(tiles=tiles, recipe=recipe, stain=True, part=(k, n))[step] for k in range(n)]
    images = np.concatenate([p.images for p in parts if not p.idle])
    order = np.concatenate([np.arange(len(whole.images))[k::n] for k in range(n)])
    assert np.array_equal(images, whole.images.numpy()[order])
    shares = torch.cat([p.shares for p in parts if not p.idle])
    assert torch.equal(shares, whole.shares[order])
    assert all(not p.shares.any() for p in parts if p.idle)
    assert {p.n_scales for p in parts} == {whole.n_scales}


@pytest.mark.slow
def test_torchrun_trains_writes_once_and_follows_the_curve_of_one_process(tile_folder, tmp_path):
    one = tmp_path / "one.safetensors"
    command = ["train", "tiles", tile_folder, *TRAIN, "-o", one]
    alone = CliRunner().invoke(app, [str(a) for a in command])
    assert alone.exit_code == 0, alone.output
    command = ["train", "tiles", tile_folder, *TRAIN, "-o", tmp_path / "two.safetensors"]
    said = run_two("-m", "atlas_wsi", *command)
    assert said.count('"card"') == 1
    rows = []
    for name in (tmp_path / "one", tmp_path / "two"):
        with name.with_suffix(".training.csv").open(newline="") as file:
            rows.append(list(csv.DictReader(file)))
    assert [r["step"] for r in rows[0]] == [r["step"] for r in rows[1]] == ["1", "2", "3", "4"]
    losses = [[float(row["loss"]) for row in side] for side in rows]
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-5)
    # AdamW takes the sign of gradients that are zero but for rounding
    assert losses[0] == pytest.approx(losses[1], rel=5e-3)
    assert load_model(tmp_path / "two.safetensors").card.metrics
    assert not list(tmp_path.glob("*.resume.pt"))
