"""A slide on several workers is the slide on one."""

from __future__ import annotations

import numpy as np
import pytest

import atlas_wsi
from atlas_wsi.slides.synthetic import make_svs

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    path = tmp_path_factory.mktemp("large") / "large.svs"
    make_svs(path, (1800, 2300), mpp=1.0, tissue=0.6)
    return path


@pytest.fixture(scope="module")
def alone(large):
    return atlas_wsi.predict(large, "atlas_test", precision="float32", memory="400MB")


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_a_slide_distributed_over_workers_gives_the_same_heatmap(
    large, alone, tmp_path, command, workers
):
    done = command.here(
        *("batch", large, "-o", tmp_path, *command.plain),
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
