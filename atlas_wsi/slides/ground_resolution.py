"""Where a raster lies on earth, and how much ground one of its pixels covers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.errors import CRSError, RasterioError
from rasterio.transform import from_gcps
from rasterio.warp import transform as project

if TYPE_CHECKING:
    from affine import Affine
    from numpy.typing import NDArray
    from rasterio.io import DatasetReader

_UM_A_METER = 1e6
_STRETCH_LIMIT = 0.01
_SPREAD_LIMIT = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a raster lies on earth; empty if it does not say."""

    crs: str | None = None
    """Coordinate reference system as WKT."""
    transform: tuple[float, float, float, float, float, float] | None = None
    """Affine (a, b, c, d, e, f) from (col, row) to the CRS."""
    mpp: tuple[float, float] | None = None
    """Micrometers of ground a pixel `(y, x)`."""
    mpp_source: str = ""
    """What `mpp` was computed from."""
    warnings: tuple[str, ...] = ()
    """What the user may want to act on."""


def read_place(dataset: DatasetReader) -> Place:
    """Read the georeference of a raster: a geotransform, else ground control points."""
    crs, transform, source, notes = dataset.crs, dataset.transform, "geotransform", []
    points, points_crs = dataset.gcps
    if crs is None and points_crs is not None and len(points) >= 3:
        crs, transform, source = points_crs, from_gcps(points), "ground control points"
        notes.append(_explain_points(points, transform))
    elif crs is None and not transform.is_identity:
        notes.append("The file has a geotransform but no CRS: it is read as a plain image.")
    elif transform.is_identity and dataset.rpcs is not None:
        notes.append(
            "The file is placed by rational polynomials (RPC) only: it is read as a plain image. "
            "Orthorectify it first: gdalwarp -rpc in.tif out.tif."
        )
    if crs is None or transform.is_identity or not transform.determinant:
        return Place(warnings=tuple(notes))
    mpp, more = ground_mpp(crs, transform, dataset.shape)
    return Place(
        crs=crs.to_wkt(),
        transform=(transform.a, transform.b, transform.c, transform.d, transform.e, transform.f),
        mpp=mpp,
        mpp_source=source if mpp else "",
        warnings=(*notes, *more),
    )


def ground_mpp(
    crs: CRS, transform: Affine, shape: tuple[int, int]
) -> tuple[tuple[float, float] | None, tuple[str, ...]]:
    """Return micrometers of ground per pixel `(y, x)`, None if unknown, and notes for the user.

    The nominal size of a projected CRS is used where it is within 1% of that on the ellipsoid.
    """
    nominal = _nominal(crs, transform)
    ground = _on_ellipsoid(crs, transform, (shape[0] / 2, shape[1] / 2))
    if ground is None:
        if nominal is None:
            return None, ("The size of a pixel on the ground cannot be computed from the CRS.",)
        return nominal, ()
    if nominal is not None:
        stretch = max(abs(n / g - 1.0) for n, g in zip(nominal, ground, strict=True))
        if stretch <= _STRETCH_LIMIT:
            return nominal, ()
    notes = []
    if nominal is not None:
        notes.append(
            f"The CRS stretches distances here: a pixel is nominally {nominal[1] / _UM_A_METER:.6g} "
            f"m wide, on the ground {ground[1] / _UM_A_METER:.6g} m. The latter is used."
        )
    edges = [_on_ellipsoid(crs, transform, (row, shape[1] / 2)) for row in (0.5, shape[0] - 0.5)]
    spread = max((abs(e[1] / ground[1] - 1.0) for e in edges if e is not None), default=0.0)
    if spread > _SPREAD_LIMIT:
        notes.append(
            f"The width of a pixel on the ground differs by up to {spread:.0%} from that at the "
            "center, which is used for the whole scene. Reproject it to UTM for exact areas."
        )
    return ground, tuple(notes)


def _nominal(crs: CRS, transform: Affine) -> tuple[float, float] | None:
    """Pixel size in the CRS's own unit of length, in micrometers; None for degrees."""
    if crs.is_geographic:
        return None
    try:
        meters = float(crs.units_factor[1])
    except CRSError:
        return None
    y = math.hypot(transform.b, transform.e) * meters * _UM_A_METER
    x = math.hypot(transform.a, transform.d) * meters * _UM_A_METER
    return _checked(y, x)


def _on_ellipsoid(
    crs: CRS, transform: Affine, center: tuple[float, float]
) -> tuple[float, float] | None:
    """Distances between neighboring pixels at (row, col), in micrometers."""
    row, col = center
    cols = np.array([col, col, col, col - 0.5, col + 0.5])
    rows = np.array([row, row - 0.5, row + 0.5, row, row])
    xs, ys = _apply(transform, cols, rows)
    try:
        (lon,), (lat,) = project(crs, CRS.from_epsg(4326), xs[:1], ys[:1])
        if not (math.isfinite(lon) and math.isfinite(lat)):
            return None
        # Distances from its center are true in this projection.
        local = CRS.from_proj4(
            f"+proj=aeqd +lat_0={lat:.9f} +lon_0={lon:.9f} +datum=WGS84 +units=m"
        )
        xs, ys = project(crs, local, xs[1:], ys[1:])
    except (RasterioError, CPLE_BaseError):  # no earth under it: an engineering CRS, another planet
        return None
    y = math.hypot(xs[1] - xs[0], ys[1] - ys[0]) * _UM_A_METER
    x = math.hypot(xs[3] - xs[2], ys[3] - ys[2]) * _UM_A_METER
    return _checked(y, x)


def _apply(
    transform: Affine, across: NDArray[np.float64], down: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    # spelled out: the operator is * in affine 2 and @ in affine 3
    return (
        transform.a * across + transform.b * down + transform.c,
        transform.d * across + transform.e * down + transform.f,
    )


def _checked(y: float, x: float) -> tuple[float, float] | None:
    return (y, x) if all(math.isfinite(value) and value > 0 for value in (y, x)) else None


def _explain_points(points: list[Any], transform: Affine) -> str:
    cols, rows = _apply(
        ~transform, np.array([p.x for p in points]), np.array([p.y for p in points])
    )
    off_px = np.hypot(cols - [p.col for p in points], rows - [p.row for p in points])
    return (
        f"Placed by an affine fit to {len(points)} ground control points, which lie up to "
        f"{off_px.max():.1f} px off it. For an exact place: gdalwarp -tps in.tif out.tif."
    )
