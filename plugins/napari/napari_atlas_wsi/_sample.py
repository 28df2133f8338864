"""Slides to try the plugin on; both are opened lazily."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atlas_wsi import fetch_sample
from napari_atlas_wsi._reader import read

if TYPE_CHECKING:
    from napari_atlas_wsi._layers import LayerTuple


def real() -> list[LayerTuple]:
    """Open the CMU-1 region, a real scan; fetched once."""
    return read(str(fetch_sample("cmu-1-small-region")))


def generated() -> list[LayerTuple]:
    """Open a made-up slide of 100,000 x 80,000 pixels; written once, to the user's cache."""
    return read(str(fetch_sample("generated-8-gigapixel")))
