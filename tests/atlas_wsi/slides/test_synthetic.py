"""Made-up slides are slides."""

from __future__ import annotations

import numpy as np
import openslide
import pytest

from atlas_wsi.slides.open import open_slide
from atlas_wsi.slides.synthetic import make_svs


def test_openslide_takes_it_for_aperio(svs):
    with openslide.OpenSlide(svs) as slide:
        assert slide.properties["openslide.vendor"] == "aperio"
        assert slide.properties["openslide.mpp-x"] == "0.5"
        assert slide.properties["openslide.objective-power"] == "20"
        assert slide.level_dimensions == ((2100, 1500), (525, 375))


def test_the_same_seed_gives_the_same_file(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        make_svs(tmp_path / name, (300, 400), seed=seed, levels=2)
    content = [(tmp_path / name).read_bytes() for name in "abc"]
    assert content[0] == content[1] != content[2]


@pytest.mark.parametrize("tissue", [0.1, 0.6])
def test_tissue_covers_the_share_asked_for(tmp_path, tissue):
    make_svs(tmp_path / "one.svs", (2000, 3000), tissue=tissue, levels=3, quality=90)
    with open_slide(tmp_path / "one.svs") as slide:
        small = slide.read_region(0, 0, 125, 187, mpp=8.0).astype(int)
        colored = (small.max(axis=-1) - small.min(axis=-1) > 12).mean()
        assert colored == pytest.approx(tissue, abs=0.08)


def test_levels_show_the_same_picture(svs):
    with open_slide(svs) as slide:
        full = slide.read_region(0, 0, 1500, 2100).astype(float)
        reduced = slide.levels[1].compute()
        mean = full.reshape(375, 4, 525, 4, 3).mean(axis=(1, 3))
        assert np.abs(mean - reduced).mean() < 4


def test_a_slide_has_one_to_five_levels(tmp_path):
    with pytest.raises(ValueError, match="1 to 5"):
        make_svs(tmp_path / "six.svs", levels=6)
