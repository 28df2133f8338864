"""The overview of a result as a picture."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from atlas_wsi.heatmap.overlay import backdrop, paint_classes

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from atlas_wsi.heatmap.heatmap import Heatmap

DPI = 150
MAX_LEGEND = 24
_INK, _FAINT, _LINE = "#1c1c1e", "#6b6b70", "#d0d0d5"
# Inches: margins, panels, the column of text.
_MARGIN, _GAP, _HEAD, _LEGEND, _ROW = 0.3, 0.25, 0.75, 3.1, 0.44
_LONGEST, _SHORTEST = 6.6, 0.9


def write_png(heatmap: Heatmap, path: Path, thumbnail: NDArray[Any] | None) -> tuple[str, ...]:
    """Draw the slide (the tissue mask without a thumbnail), the classes, a legend and a scale bar."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = _panels(heatmap.slide.shape)
    n_rows = min(len(heatmap.classes), MAX_LEGEND) + (len(heatmap.classes) > MAX_LEGEND)
    legend_height = 0.9 + _ROW * n_rows
    body_width = max(left + w for left, _, w, _ in panels)
    body_height = max(legend_height, max(top + h for _, top, _, h in panels))
    width = 2 * _MARGIN + body_width + 2 * _GAP + _LEGEND
    height = 2 * _MARGIN + _HEAD + body_height
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)

    def add_axes(left: float, top: float, w: float, h: float) -> Axes:
        bottom = height - _MARGIN - _HEAD - top - h
        return figure.add_axes(((_MARGIN + left) / width, bottom / height, w / width, h / height))

    _write_title(heatmap, figure, width, height)
    below = backdrop(heatmap, thumbnail)
    for number, panel in enumerate(panels):
        axes = add_axes(*panel)
        _draw_panel(axes, heatmap, _gray(below) if number else below)
        if number:
            _draw_classes(axes, heatmap)
        _draw_scale_bar(axes, heatmap, panel[2:])
    _draw_legend(add_axes(body_width + 2 * _GAP, 0, _LEGEND, legend_height), heatmap, legend_height)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        figure.savefig(path, format="png", dpi=DPI, pil_kwargs={"compress_level": 4})
    return ()


def _panels(slide_shape: tuple[int, int]) -> list[tuple[float, float, float, float]]:
    """Lay out slide and overlay: left, top, width, height in inches below the title."""
    aspect = slide_shape[1] / slide_shape[0]
    if aspect > 1.9:  # a wide slide: one above the other
        width, height = 1.5 * _LONGEST, max(_SHORTEST, 1.5 * _LONGEST / aspect)
        return [(0, 0, width, height), (0, height + _GAP, width, height)]
    width = min(_LONGEST * 0.85, _LONGEST * aspect)
    height = width / aspect
    width = max(_SHORTEST, width)
    return [(0, 0, width, height), (width + _GAP, 0, width, height)]


def _write_title(heatmap: Heatmap, figure: Figure, width: float, height: float) -> None:
    name = _shorten(heatmap.slide.name, int((width - 2 * _MARGIN) / 0.135))
    left, top = _MARGIN / width, height - _MARGIN
    style: dict[str, Any] = {"va": "top", "ha": "left", "parse_math": False}
    figure.text(left, top / height, name, size=15, weight="bold", color=_INK, **style)
    facts = [heatmap.run.model.name, _extent(heatmap)]
    if heatmap.run.mpp_used is not None:
        facts.insert(1, f"{_length(heatmap.run.mpp_used[1])}/px")
    figure.text(left, (top - 0.33) / height, "  ·  ".join(facts), size=9.5, color=_FAINT, **style)


def _extent(heatmap: Heatmap) -> str:
    height, width = (n * m for n, m in zip(heatmap.slide.shape, heatmap.slide.mpp, strict=True))
    return f"{_length(width)} × {_length(height)}"


def _gray(backdrop: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Take the color out, so that colors on top of it are classes."""
    luminance = backdrop @ np.array([0.299, 0.587, 0.114])
    return np.repeat(luminance[..., None].astype(np.uint8), 3, axis=2)


def _draw_panel(axes: Axes, heatmap: Heatmap, backdrop: NDArray[np.uint8]) -> None:
    rows, cols = heatmap.slide.shape
    axes.imshow(backdrop, extent=(0, cols, rows, 0), interpolation="antialiased")
    axes.set(xlim=(0, cols), ylim=(rows, 0), xticks=[], yticks=[], aspect="equal")
    for spine in axes.spines.values():
        spine.set(color=_LINE, linewidth=0.8)


def _draw_classes(axes: Axes, heatmap: Heatmap) -> None:
    rgba = paint_classes(heatmap)
    if not rgba.any():
        text = "no tissue found" if heatmap.tissue.fraction == 0 else "nothing predicted"
        box = {"facecolor": "white", "edgecolor": _LINE, "boxstyle": "round,pad=0.5"}
        style: dict[str, Any] = {"ha": "center", "va": "center", "size": 12, "color": _INK}
        axes.text(0.5, 0.5, text, transform=axes.transAxes, bbox=box, **style)
        return
    (top, left), (step_y, step_x) = heatmap.grid.origin_px, heatmap.grid.step_px
    bottom, right = top + step_y * rgba.shape[0], left + step_x * rgba.shape[1]
    axes.imshow(rgba, extent=(left, right, bottom, top), interpolation="nearest")
    axes.set(xlim=(0, heatmap.slide.shape[1]), ylim=(heatmap.slide.shape[0], 0))


def _draw_scale_bar(axes: Axes, heatmap: Heatmap, inches: tuple[float, float]) -> None:
    rows, cols = heatmap.slide.shape
    inch = max(cols / inches[0], rows / inches[1])
    pad, thick, box_height = 0.1 * inch, 0.045 * inch, 0.34 * inch
    fits = rows >= box_height + 2 * pad and cols >= 1.1 * inch
    length_um = _round_down((min(1.3 * inch, 0.4 * cols) if fits else inch) * heatmap.slide.mpp[1])
    length = length_um / heatmap.slide.mpp[1]
    box_width = max(length, 0.62 * inch) + 2 * pad
    left, bottom = (pad, rows - pad) if fits else (0, rows + box_height)
    box = (left, bottom - box_height, box_width, box_height)
    _draw_box(axes, *box, color="white", alpha=0.82, clip_on=False)
    middle, top = left + box_width / 2, bottom - pad * 0.7 - thick
    _draw_box(axes, middle - length / 2, top, length, thick, color=_INK, clip_on=False)
    style: dict[str, Any] = {"ha": "center", "va": "bottom", "size": 8, "color": _INK}
    axes.text(middle, top - 0.03 * inch, _length(length_um), **style)


def _draw_box(axes: Axes, x: float, y: float, width: float, height: float, **style: Any) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((x, y), width, height, lw=0, **style))


def _round_down(length: float) -> float:
    power = 10.0 ** math.floor(math.log10(length))
    return max(step * power for step in (1, 2, 5) if step * power <= length)


def _length(micrometers: float) -> str:
    for unit, size in (("km", 1e9), ("m", 1e6), ("mm", 1e3)):
        if micrometers >= size:
            return f"{_number(micrometers / size)} {unit}"
    return f"{_number(micrometers)} µm"


def _shorten(text: str, room: int) -> str:
    if len(text) <= room:
        return text
    return f"{text[: room - room // 2 - 1]}…{text[-(room // 2) :]}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _draw_legend(axes: Axes, heatmap: Heatmap, height: float) -> None:
    axes.set(xlim=(0, _LEGEND), ylim=(height, 0))
    axes.axis("off")
    areas = heatmap.areas()
    total = sum(areas.values())
    unit, per_unit = ("mm²", 1.0) if heatmap.area_unit == "mm2" else ("m²", 1.0)
    if unit == "m²" and total >= 1e5:
        unit, per_unit = "km²", 1e6
    style: dict[str, Any] = {"va": "center", "parse_math": False}
    axes.text(0, 0.1, "Area by class", size=9.5, weight="bold", color=_INK, **style)
    faint = style | {"ha": "right", "color": _FAINT}
    axes.text(_LEGEND, 0.1, f"{_number(total / per_unit)} {unit}", size=9, **faint)
    shown = sorted(
        sorted(range(len(heatmap.classes)), key=lambda k: -areas[heatmap.classes[k]])[:MAX_LEGEND]
    )
    y = 0.42
    for k in shown:
        name = heatmap.classes[k]
        share = areas[name] / total if total else 0.0
        axes.text(0, y, _shorten(name, 24), size=9, color=_INK, **style)
        amount = f"{_number(areas[name] / per_unit)} {unit}" if share else ""
        axes.text(_LEGEND - 0.6, y, amount, size=7.5, **faint)
        axes.text(_LEGEND, y, _percent(share), ha="right", size=9, color=_INK, **style)
        _draw_box(axes, 0, y + 0.11, _LEGEND, 0.085, color="#ededf0")
        _draw_box(axes, 0, y + 0.11, max(_LEGEND * share, 0.06), 0.085, color=heatmap.colors[k])
        y += _ROW
    if len(shown) < len(heatmap.classes):
        rest = len(heatmap.classes) - len(shown)
        axes.text(0, y, f"and {rest} classes with less", size=9, color=_FAINT, **style)
        y += _ROW
    note = "Opacity: probability of the class,\nfaint at chance, strong at certainty."
    if heatmap.scores:
        best = max(heatmap.scores, key=lambda name: heatmap.scores[name])
        whole = "Whole scene" if heatmap.slide.is_georeferenced else "Whole slide"
        note = f"{whole}: {_shorten(best, 24)} ({_percent(heatmap.scores[best])})\n{note}"
    axes.text(0, y + 0.2, note, size=8, color=_FAINT, linespacing=1.6, **style)


def _percent(share: float) -> str:
    if 0 < share < 0.001:
        return "<0.1%"
    return f"{100 * share:.1f}%"
