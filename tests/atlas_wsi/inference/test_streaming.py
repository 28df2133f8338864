"""The laws of the streamed pass: it is the dense pass, however the image is cut."""

from __future__ import annotations

import os
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atlas_wsi.models import AtlasConfig, Model, ModelCard, ModelClass
from atlas_wsi.models.mambavision import MambaMixer, MambaVisionConfig
from atlas_wsi.streaming.device import prepare
from atlas_wsi.streaming.fine_windows import FineWindows
from atlas_wsi.streaming.forward import StreamedPass
from atlas_wsi.streaming.shard import macro_tiles
from atlas_wsi.streaming.token_store import FileTokens, RamTokens

CARD = ModelCard(
    name="law",
    domain="slide",
    mpp=1.0,
    classes=tuple(ModelClass(name=c, color="#123456") for c in "abc"),
)


def make_model(
    depths: tuple[int, ...],
    n_scales: int,
    window: int,
    ratio: int,
    mamba: tuple[int, ...] = (),
    stem: str = "convolution",
    **kind,
) -> Model:
    torch.manual_seed(1)
    dim = 16
    options = {}
    if mamba:
        trunk = MambaVisionConfig(
            dim=4, in_dim=4, depths=(1, 1, 2, 2), num_heads=(1, 1, 2, 2), window_size=(8, 8, *mamba)
        )
        dim = trunk.level_dim(2 if depths else 3)
        stem, options = "mambavision", asdict(trunk)
    config = AtlasConfig(
        dim=dim,
        heads=2,
        depths=depths,
        n_scales=n_scales if depths else 1,
        window=window,
        ratio=ratio,
        n_classes=3,
        stem=stem,
        stem_options=options,
        token_px=14 if stem == "patch14" else 16,
        **kind,
    )
    model = Model(config, CARD).eval()
    for module in model.modules():  # statistics and weights that matter
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=0.2)
        if isinstance(module, MambaMixer):  # steps as large as a trained model's
            torch.nn.init.constant_(module.dt_proj.bias, -1.0)
    return model


def stream(model, image, active, *, side, batch, in_ram, cell_tokens=4, shares=1, state=None):
    layout = model.encoder.plan(image.shape[:2], active_windows=active)
    ready = prepare(model, device=torch.device("cpu"), dtype=torch.float32)
    done: list[int] = []
    made = []
    n_windows = layout.scales[0].n_windows
    for members in np.array_split(np.random.default_rng(0).permutation(n_windows), shares):
        if len(members):
            mine = layout.share(np.sort(members))
            at = mine.scales[0]
            store = (RamTokens if in_ram else FileTokens)(
                (at.n_windows, at.side**2, model.config.dim), dtype=torch.float32
            )
            tiles = macro_tiles(model, mine, image.shape[:2], side)
            share = FineWindows(
                ready,
                mine,
                (
                    (
                        tile,
                        (
                            image[tile.read.slices],
                            state if state is None else state[tile.read.slices],
                        ),
                    )
                    for tile in tiles
                ),
                store=store,
                image_shape=image.shape[:2],
                batch=batch,
                cell_tokens=cell_tokens,
                step=lambda what, n: done.append(n),
            )
            made.append((np.sort(members), share))
    return StreamedPass(ready, layout, made, batch=batch).run(cell_tokens=cell_tokens), done


@st.composite
def cases(draw):
    window, ratio = draw(st.sampled_from([(4, 2), (8, 4), (4, 4)]))
    depths = draw(st.sampled_from([(1,), (2, 1), (1, 1, 1)]))
    n_scales = draw(st.integers(1, 3))
    shape = draw(st.tuples(st.integers(1, 420), st.integers(1, 420)))
    seed = draw(st.integers(0, 2**16))
    keep = draw(st.sampled_from([0.2, 0.6, 1.0]))
    cut = draw(st.tuples(st.integers(1, 5), st.integers(1, 9), st.booleans(), st.integers(1, 3)))
    mamba = draw(st.sampled_from([(), (3, 2), (4, 2), (5, 3), (8, 4)]))
    if mamba and draw(st.booleans()):
        depths = ()
    return window, ratio, depths, n_scales, mamba, shape, seed, keep, cut


EXAMPLES = int(os.environ.get("ATLAS_WSI_EXAMPLES", "60"))
"""Cases of the law; CHANGELOG and docs/streaming.md name the run with 1000."""


def kind_of(case):
    """Published models in one half of the cases, those that are trained here in the other."""
    seed = case[6]
    readout = {"readout": "attention" if seed // 2 % 2 else "mean"}
    trained = {} if seed % 2 else {"pooling": "mean", "one_path": True, "plain_reading": True}
    return readout | trained


def windows_of(model, shape):
    tokens = [-(-n // model.config.token_px) for n in shape]
    side = min(model.config.window, max(tokens))
    return tuple(-(-n // side) for n in tokens)


@pytest.mark.slow
@settings(max_examples=EXAMPLES, deadline=None)
@given(cases())
def test_streamed_is_dense_for_any_size_mask_cut_and_store(case):
    window, ratio, depths, n_scales, mamba, *_ = case
    check_law(make_model(depths, n_scales, window, ratio, mamba, **kind_of(case)), case)


@pytest.mark.slow
@settings(
    max_examples=EXAMPLES // 3,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(cases())
def test_a_stem_of_another_package_and_of_stride_14_streams_to_the_same(outside_stem, case):
    window, ratio, depths, n_scales, *_ = case
    kind = kind_of(case)
    check_law(make_model(depths or (1,), n_scales, window, ratio, stem=outside_stem, **kind), case)


@st.composite
def holes(draw):
    """Pixels that are missing or unreadable: single tokens, whole windows, almost everything."""
    seed, share = draw(st.integers(0, 2**16)), draw(st.sampled_from([0.05, 0.4, 0.9]))
    return seed, share, draw(st.sampled_from([7, 16, 64, 130]))


@pytest.mark.slow
@settings(max_examples=EXAMPLES // 2, deadline=None)
@given(cases(), holes())
def test_what_was_not_read_is_no_key_and_no_cell_streamed_as_dense(case, hole):
    window, ratio, depths, n_scales, mamba, shape, *_ = case
    model = make_model(depths, n_scales, window, ratio, mamba, **kind_of(case))
    seed, share, side = hole
    rng = np.random.default_rng(seed)
    blocks = rng.choice(3, p=[1 - share, share / 2, share / 2], size=[-(-n // side) for n in shape])
    state = np.kron(blocks, np.ones((side, side))).astype(np.uint8)[: shape[0], : shape[1]]
    first = [max(16, n // 3 + 1) for n in shape]  # at least one token is observed
    state[: first[0], : first[1]] = 0
    check_law(model, case, state)


def tokens_observed(model, state):
    side = model.config.token_px
    rows, cols = (-(-n // side) for n in state.shape)
    parts = [
        state[i * side :, j * side :][:side, :side] == 0 for i in range(rows) for j in range(cols)
    ]
    return np.array([2 * part.sum() >= part.size for part in parts]).reshape(1, rows, cols)


def check_law(model, case, state=None):
    *_, shape, seed, keep, cut = case
    side, batch, in_ram, shares = cut
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    active = rng.random(windows_of(model, shape)) < keep
    active.flat[rng.integers(active.size)] = True
    observed = None
    if state is not None:
        active.flat[0] = True
        observed = tokens_observed(model, state)

    with torch.inference_mode():
        x = model.normalize(torch.from_numpy(image[None]))
        dense = model(x, active_windows=active, observed=observed)
    cut = {"side": side, "batch": batch, "in_ram": in_ram, "shares": shares, "state": state}
    streamed, _ = stream(model, image, active, **cut)

    assert torch.equal(streamed.valid, dense.valid[0])
    torch.testing.assert_close(streamed.slide, dense.slide[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        streamed.cells[:, streamed.valid],
        dense.cells[0][:, dense.valid[0]],
        atol=1e-4,
        rtol=1e-4,
    )


@pytest.mark.parametrize("cell_tokens", [1, 2, 4])
def test_cells_of_every_size_agree_with_the_dense_pass(cell_tokens):
    model = make_model((1, 1), 2, 8, 4, readout="attention")
    image = np.random.default_rng(0).integers(0, 256, (300, 410, 3), dtype=np.uint8)
    active = np.ones(windows_of(model, image.shape[:2]), bool)
    with torch.inference_mode():
        dense = model(model.normalize(torch.from_numpy(image[None])), cell_tokens=cell_tokens)
    streamed, _ = stream(
        model, image, active, side=2, batch=3, in_ram=True, cell_tokens=cell_tokens
    )
    torch.testing.assert_close(streamed.cells, dense.cells[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(streamed.slide, dense.slide[0], atol=1e-4, rtol=1e-4)


def test_every_window_is_reported_once_a_pass():
    model = make_model((2, 1), 2, 4, 2)
    image = np.random.default_rng(0).integers(0, 256, (300, 200, 3), dtype=np.uint8)
    active = np.ones(windows_of(model, image.shape[:2]), bool)
    _, done = stream(model, image, active, side=2, batch=3, in_ram=True)
    assert sum(done) == active.sum() * (1 + 2)  # read once, then once a block that has them


def test_context_reaches_every_cell():
    """A change in one corner moves the logits of the far corner."""
    model = make_model((1, 1), 3, 4, 2)
    image = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    changed = image.copy()
    changed[:64, :64] = 0
    active = np.ones(windows_of(model, image.shape[:2]), bool)
    before, _ = stream(model, image, active, side=8, batch=64, in_ram=True)
    after, _ = stream(model, changed, active, side=8, batch=64, in_ram=True)
    assert not torch.equal(before.cells[:, -1, -1], after.cells[:, -1, -1])
