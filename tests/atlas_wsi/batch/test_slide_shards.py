"""A slide on several workers is the slide on one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import atlas_wsi
from atlas_wsi.models import Model, load_model
from atlas_wsi.slides.synthetic import make_svs

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    path = tmp_path_factory.mktemp("large") / "large.svs"
    make_svs(path, (1800, 2300), mpp=1.0, tissue=0.6)
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Models that read a slide's score in each way, as files."""
    tested = load_model("atlas_test")
    torch.manual_seed(0)
    attention = Model(replace(tested.config, readout="attention"), tested.card)
    folder = tmp_path_factory.mktemp("models")
    return {
        "mean": tested.save(folder / "mean.safetensors"),
        "attention": attention.save(folder / "attention.safetensors"),
    }


@pytest.mark.parametrize(("workers", "readout"), [(1, "mean"), (2, "attention"), (4, "mean")])
def test_a_slide_distributed_over_workers_gives_the_same_heatmap(
    large, models, tmp_path, command, workers, readout
):
    model = str(models[readout])
    alone = atlas_wsi.predict(large, model, precision="float32", memory="400MB")
    done = command.here(
        *("batch", large, "-o", tmp_path, *command.plain, "--model", model),
        *("--workers", workers, "--distribute-above", 0.001),
    )
    assert done.exit_code == 0, done.stderr
    distributed = atlas_wsi.open_result(tmp_path / "large")
    assert distributed.run.parameters["shards"] == workers
    np.testing.assert_allclose(
        distributed.probabilities.astype(np.float32),
        alone.probabilities.astype(np.float16).astype(np.float32),
        atol=1e-4 + 2**-11,  # stored as float16
    )
    for name, score in alone.scores.items():
        assert distributed.scores[name] == pytest.approx(score, abs=1e-4)
    assert not list((tmp_path / ".batch" / "work").iterdir())
