"""predict(): what it gives, what it warns of, and what does not change it."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio
import torch
from hypothesis import given
from hypothesis import strategies as st

import atlas_wsi
from atlas_wsi.errors import (
    Cancelled,
    MemoryBudgetError,
    MissingResolutionError,
    ModelError,
    OutputNotWritableError,
)
from atlas_wsi.inference.provenance import MIN_CELL_TISSUE
from atlas_wsi.models import load_model
from atlas_wsi.slides.synthetic import make_svs
from atlas_wsi.streaming.device import choose_device, choose_dtype, prepare
from atlas_wsi.streaming.plan import parse_bytes, plan_macro_tiles, plan_memory
from atlas_wsi.streaming.prefetch import prefetch
from atlas_wsi.streaming.token_store import FileTokens, StoredTokens


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("slides") / "tissue.svs"
    make_svs(path, shape=(3000, 4000), mpp=0.5, tissue=0.7, seed=3)
    return path


@pytest.fixture(scope="module")
def result(path):
    return atlas_wsi.predict(path, "atlas_test", precision="float32")


def test_cells_with_tissue_have_probabilities_and_the_others_none(result):
    cover = result.tissue.coverage(result.grid)
    known = np.isfinite(result.probabilities).all(axis=0)
    assert known.any()
    assert not known[cover < MIN_CELL_TISSUE].any()
    np.testing.assert_allclose(result.probabilities[:, known].sum(axis=0), 1, atol=1e-5)
    assert sum(result.scores.values()) == pytest.approx(1, abs=1e-5)


def test_the_heatmap_covers_the_slide_at_64_working_pixels_a_cell(result):
    assert result.mpp == pytest.approx((64.0, 64.0))
    rows, cols = result.grid.shape
    assert rows * result.grid.step_px[0] >= result.slide.shape[0] > (rows - 1) * 128
    assert cols * result.grid.step_px[1] >= result.slide.shape[1] > (cols - 1) * 128


def test_tokens_on_disk_and_in_memory_give_the_same(path, result):
    model = load_model("atlas_test")
    n = result.run.parameters["windows"]
    window = 256 * model.config.dim * 4
    small = n * window // 2 + 48 * window + 1024  # the least that a plan accepts
    on_disk = atlas_wsi.predict(path, model, precision="float32", memory=small)
    assert result.run.parameters["tokens_in_ram"] is True
    assert on_disk.run.parameters["tokens_in_ram"] is False
    np.testing.assert_allclose(on_disk.probabilities, result.probabilities, atol=1e-5)


@pytest.mark.parametrize("cell_px", [16, 32])
def test_finer_cells_average_to_a_finer_map_of_the_same_area(path, result, cell_px):
    fine = atlas_wsi.predict(path, "atlas_test", precision="float32", cell_px=cell_px)
    assert fine.mpp == pytest.approx((cell_px, cell_px))
    known = np.isfinite(fine.probabilities).all(axis=0)
    np.testing.assert_allclose(fine.probabilities[:, known].sum(axis=0), 1, atol=1e-5)


def test_bfloat16_changes_probabilities_little(path, result):
    low = atlas_wsi.predict(path, "atlas_test", precision="bfloat16")
    np.testing.assert_allclose(low.probabilities, result.probabilities, atol=0.02)


def test_folding_batch_norm_does_not_change_the_output():
    model = load_model("atlas_test")
    x = torch.randn(1, 3, 300, 300, generator=torch.Generator().manual_seed(0))
    ready = prepare(model, device=torch.device("cpu"), dtype=torch.float32)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in ready.modules())
    with torch.inference_mode():
        torch.testing.assert_close(ready(x).cells, model(x).cells, atol=1e-5, rtol=1e-4)
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())


def test_cancel_stops_the_work(path):
    token = atlas_wsi.CancelToken()
    seen = []

    def report(what, done, total):
        seen.append(what)
        if what == "encode":
            token.cancel()

    with pytest.raises(Cancelled):
        atlas_wsi.predict(path, "atlas_test", batch_size=1, progress=report, cancel=token)
    assert "attend" not in seen


def test_progress_ends_at_its_total(path):
    last = {}
    atlas_wsi.predict(
        path, "atlas_test", progress=lambda what, done, total: last.update({what: (done, total)})
    )
    assert set(last) == {"find tissue", "encode", "attend"}
    assert all(done == total for done, total in last.values())


def test_a_scene_takes_the_model_for_scenes_and_is_not_enlarged(tmp_path):
    path = tmp_path / "coarse.tif"
    pixels = np.random.default_rng(0).integers(0, 3000, (4, 300, 280)).astype(np.uint16)
    where = rasterio.transform.from_origin(500_000, 5_000_000, 60, 60)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=280,
        height=300,
        count=4,
        dtype="uint16",
        crs="EPSG:32633",
        transform=where,
    ) as raster:
        raster.write(pixels)
    with pytest.raises(atlas_wsi.MissingScaleError, match="uint16"):
        atlas_wsi.predict(path)
    with atlas_wsi.open_slide(path, scale=(0, 3000)) as scene:
        found = atlas_wsi.predict(scene)
    assert found.run.model.name == "landcover-rgb"
    assert "georeferenced" in found.run.model.reason
    assert found.run.mpp_asked == (1e7, 1e7)
    assert found.run.mpp_used == pytest.approx((6e7, 6e7), rel=0.01)
    text = " ".join(found.run.warnings)
    assert "60 m" in text


def test_a_slide_takes_the_model_for_slides(path):
    found = atlas_wsi.predict(path)
    assert found.run.model.name == "lung-he"
    assert len(found.run.model.sha256) == 64


def test_a_slide_without_resolution_is_refused_before_any_work(tmp_path):
    from PIL import Image

    Image.new("RGB", (600, 600), (200, 100, 150)).save(tmp_path / "x.png")
    with pytest.raises(MissingResolutionError, match="--mpp"):
        atlas_wsi.predict(tmp_path / "x.png", "atlas_test")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("4GB", 4 * 2**30), ("800 MB", 800 * 2**20), ("1.5g", 3 * 2**29), (1234, 1234)],
)
def test_amounts_of_memory_are_read(text, expected):
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "much", "-1GB", "4 parsecs"])
def test_what_is_no_amount_of_memory_is_refused(text):
    with pytest.raises(ValueError, match="not an amount of memory"):
        parse_bytes(text)


def test_a_budget_below_the_coarse_scales_is_a_clear_error():
    with pytest.raises(MemoryBudgetError, match="are not enough"):
        plan_memory(
            2**20,
            n_windows=10_000,
            tokens=256,
            dim=128,
            n_scales=4,
            window_px=256,
            pixel_floats=20,
            itemsize=4,
        )


@given(st.integers(2**26, 2**36), st.integers(1, 100_000), st.sampled_from([32, 128, 768]))
def test_a_memory_plan_stays_within_its_budget(budget, n_windows, dim):
    window = 256 * dim * 4
    try:
        plan = plan_memory(
            budget,
            n_windows=n_windows,
            tokens=256,
            dim=dim,
            n_scales=4,
            window_px=256,
            pixel_floats=20,
            itemsize=4,
        )
    except MemoryBudgetError:
        assert budget < n_windows * window + 48 * window
        return
    assert plan.batch >= 1
    assert 1 <= plan.macro_side <= 8
    assert (n_windows * window if plan.tokens_in_ram else 0) <= budget


@pytest.mark.slow
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 9),
    st.floats(0.05, 1),
    st.integers(0, 999),
)
def test_macro_tiles_hold_every_window_once_and_their_halo(rows, cols, side, share, seed):
    rng = np.random.default_rng(seed)
    active = rng.random((rows, cols)) < share
    active[rng.integers(rows), rng.integers(cols)] = True
    where = np.argwhere(active)
    shape = (rows * 64 - int(rng.integers(0, 64)), cols * 64 - int(rng.integers(0, 64)))
    stem = load_model("atlas_test").encoder.stem
    tiles = plan_macro_tiles(where, image_shape=shape, window_px=64, reach=stem.reach, side=side)
    listed = np.concatenate([tile.windows for tile in tiles])
    assert sorted(listed) == list(range(len(where)))
    for tile in tiles:
        assert max(tile.area.rows, tile.area.cols) <= side
        assert tile.want == tile.want.clip(shape)
        assert tile.read.row == max(0, tile.area.row * 64 - 96)
        assert tile.read.row_end == min(shape[0], min(shape[0], tile.area.row_end * 64) + 96)
        assert tile.read.col_end == min(shape[1], min(shape[1], tile.area.col_end * 64) + 96)


def test_prefetch_keeps_the_order_and_raises_what_the_reader_raised():
    assert [r for _, r in prefetch(lambda i: i * i, range(20), threads=3)] == [
        i * i for i in range(20)
    ]

    def read(i):
        if i == 5:
            raise OSError("tile 5")
        return i

    taken = []
    with pytest.raises(OSError, match="tile 5"):
        taken.extend(i for i, _ in prefetch(read, range(20), threads=2))


def test_a_token_store_on_disk_leaves_no_file(tmp_path, monkeypatch):
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    store = FileTokens((5, 4, 8), dtype=torch.bfloat16)
    x = torch.randn(2, 4, 8).bfloat16()
    store.write(slice(1, 3), x)
    assert torch.equal(store.read(slice(1, 3)), x)
    assert torch.equal(store.read(torch.tensor([2, 1])), x.flip(0))
    assert not any(tmp_path.iterdir())  # it has no name: a killed process leaves nothing
    store.close()


def test_kept_tokens_are_found_again_and_damage_is_not_taken_for_tokens(tmp_path):
    shape, key = (6, 4, 8), {"slide": "a"}
    x = torch.randn(3, 4, 8)
    first = StoredTokens(tmp_path / "w", key, shape, dtype=torch.float32)
    assert len(first.stored) == 0
    first.write(torch.tensor([5, 0, 1]), x)
    with pytest.raises(OutputNotWritableError, match="Another run"):
        StoredTokens(tmp_path / "w", key, shape, dtype=torch.float32)
    first.close()

    with (tmp_path / "w" / "tokens.bin").open("r+b") as file:
        file.seek(4 * 8 * 4 + 7)  # in window 1
        file.write(b"!")
    second = StoredTokens(tmp_path / "w", key, shape, dtype=torch.float32)
    assert second.stored.tolist() == [0, 5]
    assert torch.equal(second.read(second.stored), x[[1, 0]])
    second.close()

    third = StoredTokens(tmp_path / "w", {"slide": "b"}, shape, dtype=torch.float32)
    assert len(third.stored) == 0  # what another slide left is not taken
    third.discard()
    assert not (tmp_path / "w").exists()


def test_a_device_that_is_not_there_is_a_clear_error():
    with pytest.raises(ModelError, match="abacus"):
        choose_device("abacus")
    assert choose_dtype(torch.device("cpu"), "float32") is torch.float32
