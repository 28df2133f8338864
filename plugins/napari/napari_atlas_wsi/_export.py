"""Exports of a heatmap: areas, regions, an image of the view, corrections."""

from __future__ import annotations

import csv
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from atlas_wsi import Annotation, DatasetError, find_regions, write_annotations, write_whole

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from atlas_wsi import Heatmap
    from napari_atlas_wsi._shown import ShownHeatmap

DPI = 100
_LEGEND_PX, _MARGIN_PX, _ROW_PX = 300, 20, 26


def export_areas(heatmap: Heatmap, path: Path, *, threshold: float = 0.0) -> None:
    """Write the area of each class as a table."""
    areas, sure = heatmap.areas(), heatmap.areas(threshold=threshold)
    total, unit = sum(areas.values()), heatmap.area_unit
    with write_whole(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        heads = ["slide", "class", f"area_{unit}", "share", f"area_{unit}_from_{threshold:g}"]
        writer.writerow([*heads, "slide_score", "model"])
        for name, area in areas.items():
            share = area / total if total else 0.0
            score = heatmap.scores.get(name)
            row = [heatmap.slide.name, name, f"{area:.6g}", f"{share:.4f}", f"{sure[name]:.6g}"]
            model = heatmap.run.model.name
            writer.writerow([*row, "" if score is None else f"{score:.4f}", model])


def export_corrections(shown: ShownHeatmap, path: Path, *, whole: bool = False) -> None:
    """Write corrected cells as annotations for training."""
    labels = shown.corrected(whole=whole)
    if not labels.any():
        raise DatasetError(
            "The class map was not changed, so there is nothing to save.",
            hint="Choose a class, press 'Correct by hand' and paint on the class map.",
        )
    write_labels(shown.heatmap, labels, path)


def write_labels(heatmap: Heatmap, labels: NDArray[Any], path: Path) -> None:
    """Outline a class map, cell by cell, as annotations; 0 is nothing, else a class from 1."""
    values = np.full(heatmap.probabilities.shape, np.nan, np.float16)
    known = (labels > 0) & (labels <= len(values))  # napari lets any number be painted
    for k in range(len(values)):
        values[k][known] = labels[known] == k + 1
    sure = replace(heatmap, probabilities=values)
    areas = [
        Annotation(
            polygon=region.polygon,
            name=heatmap.classes[region.class_index],
            color=heatmap.colors[region.class_index],
        )
        for region in find_regions(sure, min_cells=1, smooth=False).regions
    ]
    write_annotations(areas, path, heatmap.slide)


def export_view(
    shown: ShownHeatmap, picture: NDArray[np.uint8], path: Path, *, threshold: float = 0.0
) -> None:
    """Write an image of the canvas with a legend.

    `picture`: uint8 RGBA `(rows, cols, 4)` of the canvas, scale bar included.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, cols = picture.shape[:2]
    classes = shown.layer("classes")
    entries = []
    if classes is not None and classes.visible:
        entries = list(zip(shown.heatmap.classes, shown.heatmap.colors, strict=True))
    height = max(rows, _ROW_PX * (len(entries) + 6)) + 2 * _MARGIN_PX
    width = cols + _LEGEND_PX + 3 * _MARGIN_PX
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    left, top = _MARGIN_PX / width, 1 - _MARGIN_PX / height
    axes = figure.add_axes((left, top - rows / height, cols / width, rows / height))
    axes.imshow(picture, interpolation="none", aspect="auto")
    axes.axis("off")
    _legend(figure, shown, entries, x_px=cols + 2 * _MARGIN_PX, threshold=threshold)
    with write_whole(path) as partial:
        figure.savefig(partial, format="png", dpi=DPI)


def _legend(
    figure: Figure,
    shown: ShownHeatmap,
    entries: Sequence[tuple[str, str]],
    *,
    x_px: int,
    threshold: float,
) -> None:
    from matplotlib.patches import Rectangle

    width, height = figure.get_size_inches() * DPI
    heatmap = shown.heatmap

    def write(y_px: float, text: str, *, indent: int = 0, **style: Any) -> None:
        style = {"size": 9, "color": "#1c1c1e", **style}
        x, y = (x_px + indent) / width, 1 - y_px / height
        figure.text(x, y, text[:44], va="center", parse_math=False, **style)

    write(34, heatmap.slide.name, size=11, weight="bold")
    write(58, heatmap.run.model.name, color="#6b6b70")
    y_px = 96.0
    for name, color in entries:
        corner = (x_px / width, 1 - (y_px + 7) / height)
        box = Rectangle(corner, 14 / width, 14 / height, color=color, transform=figure.transFigure)
        figure.add_artist(box)
        write(y_px, name, indent=24)
        y_px += _ROW_PX
    probability = shown.layer("probability")
    if probability is not None and probability.visible:
        write(y_px + 4, f"Probability of {heatmap.classes[shown.index]}")
        frame = (x_px / width, 1 - (y_px + 36) / height, 200 / width, 14 / height)
        bar = figure.add_axes(frame)
        colors = probability.colormap.map(np.linspace(0, 1, 256))
        bar.imshow(colors[None], aspect="auto", extent=(0, 1, 0, 1))
        bar.set_yticks([])
        bar.set_xticks([0, 0.5, 1])
        bar.tick_params(labelsize=8, length=2)
        if threshold > 0:
            write(y_px + 70, f"{threshold:.2f} and above", color="#6b6b70")
