"""Slides and heatmaps as napari layers; nothing here needs a window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from atlas_wsi import Heatmap, Slide

    LayerTuple = tuple[Any, dict[str, Any], str]

SLIDE_KEY = "atlas_wsi_slide"
RESULT_KEY = "atlas_wsi_result"
UNPREDICTED = 0


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
        """Place a slide, or the record that a result keeps of it.

        Parameters
        ----------
        slide
            A `Slide` or a heatmap's `SlideInfo`.

        Returns
        -------
        Frame
            Map metres for scenes in a projected system, micrometres where the resolution is
            known, else pixels. Off the map, world 0 is the centre of the first pixel.
        """
        if slide.is_georeferenced:
            from rasterio.crs import CRS

            crs = CRS.from_wkt(slide.crs)
            if crs.is_projected:
                a, b, c, d, e, f = slide.transform
                metres = crs.linear_units_factor[1]
                matrix = np.array([[e, d, f], [b, a, c], [0, 0, 1 / metres]]) * metres
                return cls(matrix=matrix, unit="m", is_map=True)
        mpp, unit = slide.mpp or (1.0, 1.0), "um" if slide.mpp else "pixel"
        if slide.is_georeferenced:
            mpp, unit = (mpp[0] / 1e6, mpp[1] / 1e6), "m"
        matrix = np.array([[mpp[0], 0, -mpp[0] / 2], [0, mpp[1], -mpp[1] / 2], [0, 0, 1]])
        return cls(matrix=matrix, unit=unit, is_map=False)

    def place(
        self, step: tuple[float, float] = (1, 1), origin: tuple[float, float] = (0, 0)
    ) -> dict[str, Any]:
        """Return the layer arguments that lay cells over the slide.

        Parameters
        ----------
        step
            Level-0 pixels a cell `(y, x)`.
        origin
            Level-0 corner of the first cell `(y, x)`.

        Returns
        -------
        dict
            Placement and units; every layer needs them, or the viewer drops all units.
        """
        cells = np.diag([*step, 1.0])
        cells[:2, 2] = [o + s / 2 for o, s in zip(origin, step, strict=True)]
        world = self.matrix @ cells
        units = {"units": (self.unit, self.unit), "axis_labels": ("y", "x")}
        if self.is_map:
            return {"affine": world, **units}
        return {"scale": tuple(np.diag(world)[:2]), "translate": tuple(world[:2, 2]), **units}

    def to_level0(self, world: tuple[float, float]) -> tuple[float, float]:
        """Return the level-0 position `(y, x)`, in pixel edges, of a place in the world.

        Parameters
        ----------
        world
            Position `(y, x)` in the viewer.

        Returns
        -------
        tuple
            Row and column.
        """
        y, x, _ = np.linalg.solve(self.matrix, [world[0], world[1], 1.0])
        return float(y), float(x)


def slide_layers(slide: Slide) -> list[LayerTuple]:
    """Show a slide as a lazy pyramid.

    Parameters
    ----------
    slide
        An open slide; it must stay open as long as the layer.

    Returns
    -------
    list
        One layer for RGB, else one a channel.
    """
    common: dict[str, Any] = {
        **Frame.of(slide).place(),
        "multiscale": True,
        "cache": False,  # the slide keeps decoded tiles, bounded in bytes
        "metadata": {SLIDE_KEY: slide},
    }
    if slide.n_channels == 3 and slide.dtype == np.uint8:
        return [(list(slide.levels), {**common, "name": slide.name, "rgb": True}, "image")]
    small = slide.thumbnail(512)
    layers = []
    for k in range(slide.n_channels):
        values = small[..., k]
        low, high = np.nanpercentile(values, (1, 99)) if values.size else (0, 1)
        limits = (float(low), float(high) if high > low else float(low) + 1)
        data = [level[..., k] for level in slide.levels]
        facts = {"name": f"{slide.name} [{k + 1}]", "contrast_limits": limits}
        look = {"blending": "additive", "visible": k < 3, "colormap": _channel_color(slide, k)}
        layers.append((data, {**common, **facts, **look}, "image"))
    return layers


def heatmap_layers(heatmap: Heatmap, shown: int | None = None) -> list[LayerTuple]:
    """Show a result: probabilities of one class, class map, tissue.

    Parameters
    ----------
    heatmap
        The result.
    shown
        Index of the class whose probabilities are shown; None takes the one of largest area.

    Returns
    -------
    list
        Three layers; probabilities are always shown from 0 to 1, so that slides compare.
    """
    if shown is None:
        shown = int(np.argmax(list(heatmap.areas().values())))
    frame = Frame.of(heatmap.slide)
    place = frame.place(heatmap.grid.step_px, heatmap.grid.origin_px)
    mask = heatmap.tissue
    meta = {"metadata": {RESULT_KEY: heatmap}}
    name = heatmap.slide.name
    return [
        (
            mask.mask.astype(np.uint8),
            {
                **frame.place(mask.grid.step_px, mask.grid.origin_px),
                **meta,
                "name": f"{name}: tissue",
                "opacity": 0.3,
                "visible": False,
            },
            "labels",
        ),
        (
            (heatmap.argmax() + 1).astype(np.uint8 if len(heatmap.classes) < 255 else np.uint16),
            {
                **place,
                **meta,
                "name": f"{name}: classes",
                "colormap": class_colormap(heatmap),
                "features": {
                    "index": list(range(len(heatmap.classes) + 1)),
                    "class": ["not predicted", *heatmap.classes],
                },
                "opacity": 0.5,
                "visible": False,
            },
            "labels",
        ),
        (
            heatmap.probabilities[shown].astype(np.float32),
            {
                **place,
                **meta,
                "name": f"{name}: {heatmap.classes[shown]}",
                "colormap": "turbo",
                "contrast_limits": (0, 1),
                "opacity": 0.5,
                "blending": "translucent_no_depth",
                "interpolation2d": "nearest",
            },
            "image",
        ),
    ]


def class_colormap(heatmap: Heatmap) -> Any:
    """Return the colours of a class map, in which 0 is transparent.

    Parameters
    ----------
    heatmap
        The result.

    Returns
    -------
    DirectLabelColormap
        Label `k + 1` has the colour of class `k`.
    """
    from napari.utils.colormaps import DirectLabelColormap

    colors: dict[int | None, Any] = {None: "transparent", UNPREDICTED: "transparent"}
    return DirectLabelColormap(color_dict=colors | dict(enumerate(heatmap.colors, 1)))


def describe(heatmap: Heatmap, y: float, x: float) -> str:
    """Tell what was predicted at a place.

    Parameters
    ----------
    heatmap
        The result.
    y
        Level-0 row.
    x
        Level-0 column.

    Returns
    -------
    str
        Class, probability and position; empty where nothing was predicted.
    """
    grid = heatmap.grid
    row = int((y - grid.origin_px[0]) // grid.step_px[0])
    col = int((x - grid.origin_px[1]) // grid.step_px[1])
    if not (0 <= row < grid.shape[0] and 0 <= col < grid.shape[1]):
        return ""
    values = heatmap.probabilities[:, row, col].astype(np.float32)
    if np.isnan(values).any():
        return ""
    best = int(values.argmax())
    um = y * heatmap.slide.mpp[0], x * heatmap.slide.mpp[1]
    return f"{heatmap.classes[best]} {values[best]:.2f} at y {um[0]:.0f}, x {um[1]:.0f} um"


def _channel_color(slide: Slide, k: int) -> str:
    if slide.n_channels == 1:
        return "gray"
    return ("red", "green", "blue")[k] if k < 3 else "gray"
