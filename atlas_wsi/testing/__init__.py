"""Contract suites and synthetic files, to test formats and models of your own.

The suites need pytest. A subclass is a test of its own::

    from atlas_wsi.testing import BackendTests


    class TestMyFormat(BackendTests):
        open_file = open_my_format

        @pytest.fixture
        def path(self, tmp_path): ...
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atlas_wsi.slides.synthetic import make_svs
    from atlas_wsi.slides.synthetic_scenes import make_ome_zarr, make_scene
    from atlas_wsi.testing.backends import BackendTests
    from atlas_wsi.testing.stems import PatchStem, StemTests
    from atlas_wsi.testing.writers import CellWriterTests, WriterTests, make_heatmap

_HOME = {
    "BackendTests": "atlas_wsi.testing.backends",
    "CellWriterTests": "atlas_wsi.testing.writers",
    "PatchStem": "atlas_wsi.testing.stems",
    "StemTests": "atlas_wsi.testing.stems",
    "WriterTests": "atlas_wsi.testing.writers",
    "make_heatmap": "atlas_wsi.testing.writers",
    "make_ome_zarr": "atlas_wsi.slides.synthetic_scenes",
    "make_scene": "atlas_wsi.slides.synthetic_scenes",
    "make_svs": "atlas_wsi.slides.synthetic",
}

__all__ = [
    "BackendTests",
    "CellWriterTests",
    "PatchStem",
    "StemTests",
    "WriterTests",
    "make_heatmap",
    "make_ome_zarr",
    "make_scene",
    "make_svs",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'atlas_wsi.testing' has no attribute '{name}'")
