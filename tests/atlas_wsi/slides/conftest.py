"""Small slides that the tests of this folder share; none is written to."""

from __future__ import annotations

import numpy as np
import pytest

from atlas_wsi.slides.open import open_slide
from atlas_wsi.slides.synthetic import make_svs


@pytest.fixture(scope="session")
def svs(tmp_path_factory):
    """An Aperio slide of 1500 x 2100 px, neither a multiple of the tile, with two levels."""
    path = tmp_path_factory.mktemp("slides") / "one.svs"
    make_svs(path, (1500, 2100), levels=2, tissue=0.5)
    return path


@pytest.fixture
def slide(svs):
    with open_slide(svs) as opened:
        yield opened


@pytest.fixture(scope="session")
def pixels():
    """A picture that differs everywhere, 700 x 900 RGB."""
    y, x = np.mgrid[:700, :900]
    rng = np.random.default_rng(0)
    picture = np.stack([y * 255 // 700, x * 255 // 900, (y // 16 + x // 16) % 2 * 200], axis=-1)
    return np.clip(picture + rng.integers(0, 12, picture.shape), 0, 255).astype(np.uint8)
