"""`atlas-wsi info`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from atlas_wsi.cli import console

if TYPE_CHECKING:
    from atlas_wsi.slides.slide import Slide


def info(
    slide: Annotated[str, typer.Argument(help="Slide or scene.")],
    mpp: Annotated[
        float | None, typer.Option(help="Micrometers a pixel, if the file does not say.", min=0)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print what a slide or scene says of itself."""
    from atlas_wsi.slides.open import open_slide

    with open_slide(slide, mpp=mpp) as opened:
        facts = describe(opened)
        properties = dict(opened.meta.properties)
    if as_json:
        console.print_json({**facts, "properties": properties})
        return
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    for key, value in facts.items():
        if key != "levels" and value not in (None, "", [], {}):
            table.add_row(key.replace("_", " "), escape(_text(value)))
    console.out.print(table)
    levels = Table("level", "rows", "cols", "downsample", "tile", box=None, pad_edge=False)
    for number, level in enumerate(facts["levels"]):
        tile = level["tile"]
        levels.add_row(
            str(number),
            str(level["shape"][0]),
            str(level["shape"][1]),
            f"{level['downsample'][0]:.4g}",
            f"{tile[0]} x {tile[1]}" if tile else "made on demand",
        )
    console.out.print(levels)


def describe(slide: Slide) -> dict[str, Any]:
    """Collect the facts of a slide as JSON types."""
    meta = slide.meta
    stored = [level.tile for level in meta.levels]
    return {
        "name": slide.name,
        "path": slide.path,
        "format": meta.format,
        "reader": meta.backend,
        "vendor": slide.vendor,
        "rows": slide.shape[0],
        "cols": slide.shape[1],
        "channels": list(meta.channel_names),
        "dtype": str(slide.dtype),
        "mpp": list(slide.mpp) if slide.mpp else None,
        "mpp_source": slide.mpp_source,
        "magnification": slide.magnification,
        "bounds": None
        if meta.bounds is None
        else [meta.bounds.row, meta.bounds.col, meta.bounds.rows, meta.bounds.cols],
        "background": list(slide.background),
        "icc_profile_bytes": len(slide.icc_profile or b"") or None,
        "associated": list(slide.associated),
        "crs": slide.crs,
        "transform": list(slide.transform) if slide.transform else None,
        "nodata": meta.nodata,
        "warnings": list(meta.warnings),
        "levels": [
            {
                "shape": [int(n) for n in level.shape[:2]],
                "downsample": list(downsample),
                "tile": list(stored[number]) if number < len(stored) else None,
            }
            for number, (level, downsample) in enumerate(
                zip(slide.levels, slide.downsamples, strict=True)
            )
        ],
    }


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_text(v) for v in value)
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    return text if len(text) <= 100 else text[:97] + "..."
