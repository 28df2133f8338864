"""From level-0 pixels to the viewer's world."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """From level-0 pixel edges `(y, x)` to the viewer's world."""

    matrix: NDArray[np.float64]
    """3 x 3, applied to `(y, x, 1)`."""
    unit: str
    """Unit of the world: ``"um"``, ``"m"`` or ``"pixel"``."""
    is_map: bool
    """Whether the world is a map, whose north is up."""

    @classmethod
    def of(cls, slide: Any) -> Frame:
        """Return the frame of a slide, or of the record of it in a result."""
        if slide.is_georeferenced:
            from rasterio.crs import CRS

            crs = CRS.from_wkt(slide.crs)
            if crs.is_projected:
                a, b, c, d, e, f = slide.transform
                meters = crs.linear_units_factor[1]
                matrix = np.array([[e, d, f], [b, a, c], [0, 0, 1 / meters]]) * meters
                return cls(matrix=matrix, unit="m", is_map=True)
        mpp, unit = slide.mpp or (1.0, 1.0), "um" if slide.mpp else "pixel"
        if slide.is_georeferenced:
            mpp, unit = (mpp[0] / 1e6, mpp[1] / 1e6), "m"
        matrix = np.array([[mpp[0], 0, -mpp[0] / 2], [0, mpp[1], -mpp[1] / 2], [0, 0, 1]])
        return cls(matrix=matrix, unit=unit, is_map=False)

    def placement(
        self, step: tuple[float, float] = (1, 1), origin: tuple[float, float] = (0, 0)
    ) -> dict[str, Any]:
        """Return the layer arguments that align cells with the slide; all in level-0 `(y, x)`."""
        cells = np.diag([*step, 1.0])
        cells[:2, 2] = [o + s / 2 for o, s in zip(origin, step, strict=True)]
        world = self.matrix @ cells
        units = {"units": (self.unit, self.unit), "axis_labels": ("y", "x")}
        if self.is_map:
            return {"affine": world, **units}
        return {"scale": tuple(np.diag(world)[:2]), "translate": tuple(world[:2, 2]), **units}

    def to_level0(self, world: tuple[float, float]) -> tuple[float, float]:
        """Return the level-0 `(y, x)`, in pixel edges, of `(y, x)` in the viewer."""
        y, x, _ = np.linalg.solve(self.matrix, [world[0], world[1], 1.0])
        return float(y), float(x)

    def to_world(self, y: float, x: float) -> tuple[float, float]:
        """Return `(y, x)` in the viewer of a level-0 position, in pixel edges."""
        world = self.matrix @ [y, x, 1.0]
        return float(world[0]), float(world[1])
