"""Slides to try the plugin on; both are opened lazily."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from napari_atlas_wsi._layers import LayerTuple

GENERATED = (80_000, 100_000)


def real() -> list[LayerTuple]:
    """Open the CMU-1 region, a real scan; fetched once.

    Returns
    -------
    list
        One layer.
    """
    from atlas_wsi import fetch_sample
    from napari_atlas_wsi._reader import read

    return read(str(fetch_sample("cmu-1-small-region")))


def generated() -> list[LayerTuple]:
    """Open a made-up slide of 100,000 x 80,000 pixels; written once, to the user's cache.

    Returns
    -------
    list
        One layer.
    """
    import platformdirs

    from atlas_wsi.slides.synthetic import make_svs
    from napari_atlas_wsi._reader import read

    folder = platformdirs.user_cache_path("atlas-wsi") / "samples"
    path = folder / "generated-100k-80k.svs"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        make_svs(partial, GENERATED, levels=5)
        partial.replace(path)
    return read(str(path))
