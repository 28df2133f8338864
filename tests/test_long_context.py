"""The long-context task is what it says: only the beacon tells the classes apart, from far away."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import long_context as task


def make_pair(seed):
    return [task.make_field(np.random.default_rng(seed), label) for label in (0, 1)]


@pytest.mark.parametrize("seed", range(5))
def test_only_the_beacon_differs_and_it_is_far(seed):
    upright, lying = make_pair(seed)
    differs = (upright.image != lying.image).any(axis=(0, 2))
    columns = np.flatnonzero(differs) // task.WINDOW_PX
    assert set(columns.tolist()) == {upright.beacon} == {lying.beacon}
    between = (np.abs(upright.blotches - upright.beacon).min() - 1) * task.WINDOW_PX
    assert between > 2000
    assert upright.active().sum() == 1 + task.N_BLOTCHES


@pytest.mark.slow
def test_labels_are_drawn_evenly_and_fields_are_repeatable():
    drawn = [task.make_field(np.random.default_rng(i)) for i in range(40)]
    assert 10 < sum(f.label for f in drawn) < 30
    again = task.make_field(np.random.default_rng(7))
    assert np.array_equal(again.image, drawn[7].image)


@pytest.mark.parametrize("backbone", task.BACKBONES)
@torch.inference_mode()
def test_only_backbones_with_coarse_scales_see_the_beacon(backbone):
    model = task.make_model(backbone, 0).eval()
    pair = make_pair(0)
    maps = task.encode_fields(model, pair)
    logits = task.of_blotches(task.cell_logits(model, maps, pair), pair)
    sees = not torch.equal(logits[0], logits[1])
    assert sees == (backbone != "mambavision")


@torch.inference_mode()
def test_training_sees_what_prediction_sees():
    model = task.make_model("atlas", 0).eval()
    pair = make_pair(1)
    maps = task.encode_fields(model, pair)
    trained_on = task.of_blotches(task.cell_logits(model, maps, pair), pair).argmax(1)
    assert torch.equal(trained_on, task.predict_fields(model, pair))
