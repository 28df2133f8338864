"""A result as one self-contained page for a browser."""

from __future__ import annotations

import base64
import io
from importlib import resources
from typing import TYPE_CHECKING, Any

import jinja2
from PIL import Image

from atlas_wsi.heatmap.overlay import backdrop, extent_on_slide, paint_classes
from atlas_wsi.heatmap.records import Summary

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from atlas_wsi.heatmap.heatmap import Heatmap


def write_html(heatmap: Heatmap, path: Path, thumbnail: NDArray[Any] | None) -> tuple[str, ...]:
    """Write a page with the slide (or its tissue mask), the classes over it, and the areas."""
    pages = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = resources.files("atlas_wsi.interop") / "result.html.j2"
    summary = Summary.of(heatmap, warnings=(), files={})
    text = pages.from_string(template.read_text(encoding="utf-8")).render(
        heatmap=heatmap,
        classes=sorted(summary.classes, key=lambda c: -c.share),
        total=summary.predicted_area,
        unit=heatmap.area_unit.replace("2", "²"),
        place=extent_on_slide(heatmap),
        picture=_inline(Image.fromarray(backdrop(heatmap, thumbnail)), "JPEG"),
        overlay=_inline(Image.fromarray(paint_classes(heatmap)), "PNG"),
    )
    path.write_text(text, encoding="utf-8")
    return ()


def _inline(picture: Image.Image, kind: str) -> str:
    file = io.BytesIO()
    picture.save(file, format=kind, quality=85)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
