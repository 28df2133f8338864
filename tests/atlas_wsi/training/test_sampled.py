"""The laws of a training step on a whole slide: the dense gradient, and memory of the sample."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from atlas_wsi.models import AtlasConfig, Model, ModelCard, ModelClass
from atlas_wsi.streaming.plan import MemoryPlan
from atlas_wsi.streaming.sampled import sampled_logits
from atlas_wsi.streaming.token_store import RamTokens

CARD = ModelCard(
    name="law",
    domain="slide",
    mpp=1.0,
    classes=tuple(ModelClass(name=c, color="#123456") for c in "abc"),
)
PLAN = MemoryPlan(tokens_in_ram=True, macro_side=2, batch=3)
CONFIGS = {
    "one-fine-block": ((1, 1), 2, "mean"),
    "two-fine-blocks-three-stages": ((2, 1, 1), 3, "mean"),
    "all-in-the-finest-stage": ((2,), 2, "mean"),
    "attention": ((2, 1), 3, "attention"),
}


def nothing(what, n):
    pass


def make_model(depths, n_scales, readout="mean"):
    torch.manual_seed(1)
    config = AtlasConfig(
        dim=16,
        heads=2,
        depths=depths,
        n_scales=n_scales,
        window=4,
        ratio=2,
        n_classes=3,
        readout=readout,
    )
    model = Model(config, CARD).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=0.2)
    return model


def make_image(shape=(300, 410)):
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)


def loss_of(cells, valid, slide):
    weight = torch.linspace(-1, 1, 3)
    return (slide * weight).sum() + (cells[:, valid] * weight[:, None]).square().mean()


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def sampled(model, image, active, places, **options):
    layout = model.encoder.plan(image.shape[:2], active_windows=active)
    return sampled_logits(
        model,
        layout,
        lambda box: (image[box.slices], None),
        image.shape[:2],
        PLAN,
        sampled=np.asarray(places),
        step=nothing,
        **options,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_with_every_window_sampled_the_gradient_is_that_of_the_dense_pass(name):
    model, image = make_model(*CONFIGS[name]), make_image()
    active = np.random.default_rng(2).random((5, 7)) < 0.7
    found = model(model.normalize(torch.from_numpy(image[None])), torch.from_numpy(active))
    dense = gradients(model, loss_of(found.cells[0], found.valid[0], found.slide[0]))
    found = sampled(model, image, active, range(int(active.sum())))
    streamed = gradients(model, loss_of(found.cells, found.valid, found.slide))
    assert streamed.keys() == dense.keys()
    for key, expected in dense.items():
        scale = expected.abs().max().clamp(min=1e-6)
        torch.testing.assert_close(streamed[key] / scale, expected / scale, atol=2e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_the_scores_do_not_depend_on_the_sample(name):
    model, image = make_model(*CONFIGS[name]), make_image()
    with torch.inference_mode():
        dense = model(model.normalize(torch.from_numpy(image[None])))
    for places in ([0], [3, 4, 20], range(35)):
        found = sampled(model, image, None, places)
        torch.testing.assert_close(found.slide, dense.slide[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found.cells, dense.cells[0], atol=1e-4, rtol=1e-4)
        grown = gradients(model, loss_of(found.cells, found.valid, found.slide))
        assert all(bool(g.isfinite().all()) for g in grown.values())
        assert grown["encoder.stem.conv1.weight"].abs().max() > 0


@pytest.mark.parametrize("name", CONFIGS)
def test_from_the_store_no_pixel_is_read_and_all_but_the_stem_learn_the_same(name):
    model, image = make_model(*CONFIGS[name]), make_image()
    model.encoder.stem.requires_grad_(False)
    tokens = RamTokens((35, 16, 16), dtype=torch.float32)
    sampled(model, image, None, [1, 5], tokens=tokens)
    from_pixels = sampled(model, image, None, [0, 34], cell_tokens=1)
    expected = gradients(model, loss_of(from_pixels.cells, from_pixels.valid, from_pixels.slide))
    seen = []
    stored = sampled_logits(
        model,
        model.encoder.plan(image.shape[:2]),
        lambda box: seen.append(box) or (image[box.slices], None),
        image.shape[:2],
        PLAN,
        sampled=np.array([0, 34]),
        cell_tokens=1,
        tokens=tokens,
        is_filled=True,
        step=nothing,
    )
    assert not seen
    torch.testing.assert_close(stored.cells, from_pixels.cells, atol=1e-4, rtol=1e-4)
    found = gradients(model, loss_of(stored.cells, stored.valid, stored.slide))
    assert found.keys() == expected.keys()
    for key, one in expected.items():
        scale = one.abs().max().clamp(min=1e-6)
        torch.testing.assert_close(found[key] / scale, one / scale, atol=2e-4, rtol=0)


def kept_bytes(model, shape, n_sampled):
    image = np.zeros((*shape, 3), np.uint8)
    kept = {}

    def pack(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        found = sampled(model, image, None, range(n_sampled))
    assert found.slide.requires_grad
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    return sum(n for at, n in kept.items() if at not in own)


@pytest.mark.slow
def test_what_a_step_keeps_is_that_of_the_sampled_windows():
    torch.manual_seed(0)
    config = AtlasConfig(
        dim=16, heads=2, depths=(1, 1), n_scales=3, window=16, ratio=4, n_classes=3
    )
    model = Model(config, CARD).eval()
    small = kept_bytes(model, (1024, 1024), 2)
    large = kept_bytes(model, (2048, 2048), 2)
    all_of_it = kept_bytes(model, (2048, 2048), 64)
    fine = kept_bytes(model, (1024, 1024), 4) - small  # two windows more
    assert large - small < 0.25 * 24 * fine  # 48 windows more, without a gradient
    assert all_of_it > 3 * large
