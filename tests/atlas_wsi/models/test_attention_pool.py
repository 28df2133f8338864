"""The score of an image as the mean of its cells' logits, weighted by attention."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from atlas_wsi.models import Model, load_model
from atlas_wsi.models.heads import AttentionPool


@pytest.fixture
def pool() -> AttentionPool:
    torch.manual_seed(0)
    return AttentionPool(16, 3, n_scales=2)


def cells(pool, *shape):
    rng = torch.Generator().manual_seed(1)
    gates = torch.randn(2, pool.gate.n_classes, *shape, generator=rng)
    return gates, torch.randn(2, 3, *shape, generator=rng)


def test_the_order_of_cells_has_no_influence(pool):
    gates, logits = cells(pool, 5, 7)
    valid = torch.rand(2, 1, 5, 7, generator=torch.Generator().manual_seed(2)) < 0.6
    order = torch.randperm(35)
    turned = (x.flatten(2)[..., order].view_as(x) for x in (gates, logits, valid))
    torch.testing.assert_close(pool(*turned), pool(gates, logits, valid))


def test_cells_without_a_token_have_no_influence_and_no_gradient(pool):
    gates, logits = cells(pool, 4, 4)
    valid = torch.ones(2, 1, 4, 4, dtype=torch.bool)
    valid[..., 2:, :] = False
    logits.requires_grad_()
    score = pool(gates, logits, valid)
    upper = pool(gates[..., :2, :], logits[..., :2, :], valid[..., :2, :])
    torch.testing.assert_close(score, upper)
    score.sum().backward()
    assert not logits.grad[..., 2:, :].any()
    assert bool((logits.grad[..., :2, :] > 0).all())


def test_the_score_of_one_cell_is_its_logits_and_that_of_none_is_finite(pool):
    gates, logits = cells(pool, 1, 1)
    valid = torch.tensor([True, False]).view(2, 1, 1, 1)
    score = pool(gates, logits, valid)
    torch.testing.assert_close(score[0], logits[0, :, 0, 0])
    assert not score[1].any()


@pytest.fixture
def model() -> Model:
    tested = load_model("atlas_test")
    torch.manual_seed(0)
    return Model(replace(tested.config, readout="attention"), tested.card).eval()


def test_a_saved_model_reads_the_score_of_a_slide_from_its_map(model, tmp_path):
    again = load_model(model.save(tmp_path / "m.safetensors"))
    assert again.config.readout == "attention"
    images = np.random.default_rng(0).integers(0, 256, (1, 700, 500, 3), dtype=np.uint8)
    with torch.inference_mode():
        found = again(again.normalize(torch.from_numpy(images)))
        expected = model(model.normalize(torch.from_numpy(images)), cell_tokens=2)
    assert torch.equal(found.slide, expected.slide)  # whatever cells the heatmap has
    of_cells = found.cells[0][:, found.valid[0]]
    assert bool((found.slide[0] > of_cells.amin(dim=1)).all())
    assert bool((found.slide[0] < of_cells.amax(dim=1)).all())


def test_model_files_from_before_read_the_mean():
    assert load_model("atlas_test").config.readout == "mean"
    assert load_model("lung-he").pool is None
