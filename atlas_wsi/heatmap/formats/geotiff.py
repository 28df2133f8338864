"""A heatmap as a Cloud-Optimized GeoTIFF."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from atlas_wsi.heatmap.heatmap import Heatmap

_UM_PER_CM = 10_000


def write_geotiff(heatmap: Heatmap, path: Path) -> tuple[str, ...]:
    """Write one band per class: of a scene in its CRS, of a slide in level-0 pixels (y down)."""
    from affine import Affine
    from rasterio.crs import CRS
    from rasterio.io import MemoryFile

    (step_y, step_x), (origin_y, origin_x) = heatmap.grid.step_px, heatmap.grid.origin_px
    transform = Affine(step_x, 0, origin_x, 0, step_y, origin_y)
    crs = None
    if heatmap.slide.is_georeferenced:
        assert heatmap.slide.transform is not None
        a, b, c, d, e, f = heatmap.slide.transform
        x, y = a * origin_x + b * origin_y + c, d * origin_x + e * origin_y + f
        transform = Affine(a * step_x, b * step_y, x, d * step_x, e * step_y, y)
        crs = CRS.from_wkt(heatmap.slide.crs)
    probabilities = np.asarray(heatmap.probabilities, np.float32)
    # In memory first: a full disk is then an OSError of Python's own, not GDAL's half a file.
    with MemoryFile() as memory:
        with memory.open(
            driver="COG",
            count=len(probabilities),
            height=heatmap.grid.shape[0],
            width=heatmap.grid.shape[1],
            dtype="float32",
            crs=crs,
            transform=transform,
            nodata=float("nan"),
            compress="DEFLATE",
            predictor="YES",
            blocksize=512,
            overview_resampling="AVERAGE",
            bigtiff="IF_SAFER",
        ) as file:
            file.write(probabilities)
            file.descriptions = heatmap.classes
            file.update_tags(
                slide=heatmap.slide.name,
                model=heatmap.run.model.name,
                model_sha256=heatmap.run.model.sha256,
                colors=",".join(heatmap.colors),
            )
            if crs is None:
                file.update_tags(
                    TIFFTAG_RESOLUTIONUNIT="3 (pixels/cm)",
                    TIFFTAG_XRESOLUTION=str(_UM_PER_CM / heatmap.mpp[1]),
                    TIFFTAG_YRESOLUTION=str(_UM_PER_CM / heatmap.mpp[0]),
                )
        path.write_bytes(memory.getbuffer())
    return ()
