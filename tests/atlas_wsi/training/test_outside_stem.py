"""Training over the stem of another package, with tokens of 14 px."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import atlas_wsi
from atlas_wsi.models import AtlasConfig, Model, ModelCard, ModelClass
from atlas_wsi.testing import make_svs

CLASSES = ("dots", "lines", "plain")


@pytest.mark.slow
def test_a_model_over_an_outside_stem_trains_is_saved_and_predicts(
    outside_stem, tile_folder, tmp_path
):
    tiles = atlas_wsi.read_tile_folder(tile_folder, mpp=1.0)
    torch.manual_seed(0)
    config = AtlasConfig(
        dim=16, heads=2, depths=(1, 1), n_scales=2, n_classes=3, stem=outside_stem, token_px=14
    )
    classes = tuple(ModelClass(name=name, color="#123456") for name in CLASSES)
    start = Model(config, ModelCard(name="start", domain="slide", mpp=1.0, classes=classes))
    saved = start.save(tmp_path / "start.safetensors")

    model = atlas_wsi.train(
        tiles,
        atlas_wsi.CardSpec(name="outside"),
        atlas_wsi.Recipe(epochs=3, megapixels=0.2),
        atlas_wsi.TrainOptions(out=tmp_path / "trained.safetensors", init=str(saved)),
    )
    assert (model.config.stem, model.config.token_px) == (outside_stem, 14)
    moved = [
        not torch.equal(before, after)
        for before, after in zip(start.parameters(), model.parameters(), strict=True)
    ]
    assert sum(moved) > len(moved) / 2

    make_svs(tmp_path / "slide.svs", (1100, 1500), tissue=0.6)
    result = atlas_wsi.predict(tmp_path / "slide.svs", tmp_path / "trained.safetensors")
    assert np.isfinite(result.probabilities).any()
    assert atlas_wsi.evaluate(model, tiles).metrics["balanced_accuracy"] > 0
