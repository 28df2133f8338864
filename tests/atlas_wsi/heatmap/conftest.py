from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from atlas_wsi.testing.writers import make_heatmap

if TYPE_CHECKING:
    from atlas_wsi.heatmap.heatmap import Heatmap


@pytest.fixture(name="make_heatmap")
def make_heatmap_fixture():
    return make_heatmap


@pytest.fixture
def heatmap() -> Heatmap:
    return make_heatmap()


@pytest.fixture
def scene() -> Heatmap:
    return make_heatmap((600, 700), n_classes=2, is_scene=True, name="scene-1")
