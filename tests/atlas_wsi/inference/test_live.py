"""What predict() tells while it runs, what it leaves when it dies, and what a cell attends to."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

import atlas_wsi
from atlas_wsi.errors import Cancelled
from atlas_wsi.slides.synthetic import make_svs

BACKBONES = ("atlas_test", "mambavision_test", "mambavision_msa_test")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("slides") / "tissue.svs"
    make_svs(path, shape=(4200, 5000), mpp=0.5, tissue=0.7, seed=3)
    return path


@pytest.fixture(scope="module")
def result(path):
    return atlas_wsi.predict(path, "atlas_test", precision="float32", memory="1GB")


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_predicts_a_slide_the_same_however_it_is_cut(path, name):
    one = atlas_wsi.predict(path, name, precision="float32", memory="1GB", batch_size=3)
    with atlas_wsi.open_slide(path) as slide:
        other = atlas_wsi.predict(slide, name, precision="float32", memory="60MB")
    assert one.run.parameters["macro_side"] > other.run.parameters["macro_side"]
    np.testing.assert_allclose(one.probabilities, other.probabilities, atol=1e-4)
    known = np.isfinite(one.probabilities).all(axis=0)
    np.testing.assert_allclose(one.probabilities[:, known].sum(axis=0), 1, atol=1e-5)


@pytest.mark.parametrize("name", BACKBONES)
def test_previews_cover_what_is_predicted(path, name):
    seen, shown = set(), np.zeros((0, 0), bool)

    def preview(heatmap, box):
        nonlocal shown
        seen.add(id(heatmap))
        shown = np.zeros(heatmap.grid.shape, bool) if not shown.size else shown
        shown[box.row : box.row_end, box.col : box.col_end] = True
        laid[:] = [heatmap]

    laid = []
    result = atlas_wsi.predict(path, name, precision="float32", preview=preview)
    assert len(seen) == 1
    assert shown[np.isfinite(result.probabilities[0])].all()
    (partial,) = laid
    assert (partial.classes, partial.grid) == (result.classes, result.grid)
    laid = partial.probabilities
    assert np.array_equal(np.isfinite(laid), np.isfinite(result.probabilities))
    known = np.isfinite(laid)
    np.testing.assert_allclose(laid.sum(axis=0)[known[0]], 1, atol=1e-5)
    if name == "mambavision_test":  # nothing lies over its windows: what is shown is final
        np.testing.assert_allclose(laid, result.probabilities, atol=1e-6)


@pytest.mark.slow
def test_a_cancelled_run_goes_on_where_it_was_and_ends_with_the_same_bits(path, result, tmp_path):
    work, token, encoded = tmp_path / "work", atlas_wsi.CancelToken(), []

    def stop_halfway(what, done, total):
        if what == "encode" and done > total / 2:
            token.cancel()

    options = {"precision": "float32", "memory": "60MB"}
    with pytest.raises(Cancelled):
        atlas_wsi.predict(
            path, "atlas_test", work=work, progress=stop_halfway, cancel=token, **options
        )
    assert work.is_dir()

    with atlas_wsi.open_slide(path) as slide:
        whole = atlas_wsi.predict(slide, "atlas_test", **options)
        read = slide.read_masked

        def count(*args, **kwargs):
            encoded.append(args)
            return read(*args, **kwargs)

        object.__setattr__(slide, "read_masked", count)
        tissue = whole.tissue
        resumed = atlas_wsi.predict(slide, "atlas_test", work=work, tissue=tissue, **options)
    assert 0 < len(encoded) < whole.run.parameters["windows"]  # the rest was not read again
    assert not work.exists()
    assert np.array_equal(resumed.probabilities, whole.probabilities, equal_nan=True)
    assert resumed.scores == whole.scores


@pytest.mark.slow
def test_a_killed_process_is_taken_up_by_the_next(path, result, tmp_path):
    work = tmp_path / "work"
    code = f"""
        import os, signal, atlas_wsi, torch
        torch.set_num_threads({torch.get_num_threads()})  # the last bits depend on it
        def die(what, done, total):
            if what == "attend":
                os.kill(os.getpid(), signal.SIGKILL)
        atlas_wsi.predict({str(path)!r}, "atlas_test", precision="float32", memory="1GB",
                          work={str(work)!r}, progress=die)
    """
    died = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert died.returncode == -signal.SIGKILL
    assert sorted(p.name for p in work.iterdir()) == ["key.json", "sums.bin", "tokens.bin"]
    resumed = atlas_wsi.predict(path, "atlas_test", precision="float32", memory="1GB", work=work)
    assert np.array_equal(resumed.probabilities, result.probabilities, equal_nan=True)
    assert not work.exists()


@pytest.mark.slow
def test_what_was_kept_for_another_slide_or_model_is_not_taken(path, result, tmp_path):
    work, token = tmp_path / "work", atlas_wsi.CancelToken()
    with pytest.raises(Cancelled):
        atlas_wsi.predict(
            path,
            "mambavision_msa_test",
            work=work,
            cancel=token,
            progress=lambda what, done, total: what == "attend" and token.cancel(),
        )
    again = atlas_wsi.predict(path, "atlas_test", precision="float32", memory="1GB", work=work)
    assert np.array_equal(again.probabilities, result.probabilities, equal_nan=True)


def test_a_cell_attends_to_the_tissue_of_every_coarse_scale(path):
    with atlas_wsi.open_slide(path) as slide:
        result = atlas_wsi.predict(slide, "atlas_test", precision="float32", context=True)
        cells = np.argwhere(np.isfinite(result.probabilities[0]))
        row, col = cells[len(cells) // 2]
        y, x = ((i + 0.5) * s for i, s in zip((row, col), result.grid.step_px, strict=True))
        maps = result.context.attention(y, x)
        nothing = result.context.attention(-1.0, 10.0)
        far = result.context.attention(1e6, 1e6)
    assert len(maps) == result.run.parameters["scales"] - 1 > 0
    assert nothing == far == []
    total = 0.0
    for one in maps:
        assert one.weights.shape == one.grid.shape
        origin, step = one.grid.origin_px, one.grid.step_px
        assert all(
            o <= p < o + s * n
            for o, p, s, n in zip(origin, (y, x), step, one.grid.shape, strict=True)
        )
        tissue = result.tissue.coverage(one.grid)
        assert one.weights[tissue == 0].sum() < 0.2 * one.weights.sum()
        total += float(one.weights.sum())
    assert 0 < total < 1  # the rest goes to the cell's own window


def test_areas_of_interest_are_computed_however_small(path):
    with atlas_wsi.open_slide(path) as slide:
        mask = atlas_wsi.tissue_mask(slide)
        step = mask.grid.step_px
        row, col = np.argwhere(mask.mask).mean(axis=0)
        y, x = row * step[0], col * step[1]
        square = np.array([[y, x], [y, x + 150], [y + 150, x + 150], [y + 150, x]])
        inside = mask.within([square])
        result = atlas_wsi.predict(slide, "atlas_test", tissue=inside)
        nowhere = atlas_wsi.predict(slide, "atlas_test", tissue=mask.within([]))
    known = np.argwhere(np.isfinite(result.probabilities[0]))
    assert 1 <= len(known) <= 9
    for (row, col), at in zip(known.T, (y, x), strict=True):
        assert (np.abs((row + 0.5) * result.grid.step_px[0] - at) < 600).all(), col
    assert not np.isfinite(nowhere.probabilities).any()
    with pytest.raises(ValueError, match="corners"):
        mask.within([square[:2]])


@pytest.mark.slow
def test_the_peak_is_the_process_s_own_and_not_its_parent_s():
    code = (
        "from atlas_wsi.inference.provenance import peak_memory_bytes; print(peak_memory_bytes())"
    )
    large = np.ones(2 * 2**30, dtype=np.uint8)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0 < int(run.stdout) < len(large)
