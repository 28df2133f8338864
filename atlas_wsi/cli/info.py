"""`atlas-wsi info`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from atlas_wsi.cli import console, options

if TYPE_CHECKING:
    from atlas_wsi import Slide


def info(
    slide: options.SlidePath,
    mpp: options.Mpp = None,
    gsd: options.Gsd = None,
    scale: options.Scale = None,
    image: options.ImageNumber = None,
    allow_truncated: options.AllowTruncated = False,
    as_json: options.AsJson = False,
) -> None:
    """Show the metadata of a slide or scene."""
    from atlas_wsi import open_slide

    with open_slide(
        slide,
        mpp=options.one_mpp(mpp, gsd),
        scale=scale,
        image=image,
        allow_truncated=allow_truncated,
    ) as opened:
        facts = describe(opened)
        properties = dict(opened.meta.properties)
    if as_json:
        console.print_json({**facts, "properties": properties})
        return
    levels = facts.pop("levels")
    if facts["gsd_m"]:
        facts["gsd"] = console.pixel_size(facts["gsd_m"][1] * 1e6, is_scene=True)
    console.print_table(
        (key.replace("_", " "), console.format_value(value, most=100))
        for key, value in facts.items()
        if value not in (None, "", [], {}) and key != "gsd_m"
    )
    rows = [
        (
            number,
            *level["shape"],
            f"{level['downsample'][0]:.4g}",
            " x ".join(map(str, level["tile"])) if level["tile"] else "made on demand",
        )
        for number, level in enumerate(levels)
    ]
    console.print_table(rows, header=("level", "rows", "cols", "downsample", "tile"))


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
        "images": list(meta.images) if len(meta.images) > 1 else [],
        "channels": list(meta.channel_names),
        "samples": slide.samples.describe() if slide.samples else None,
        "dtype": str(slide.dtype),
        "mpp": list(slide.mpp) if slide.mpp else None,
        "gsd_m": [um / 1e6 for um in slide.mpp] if slide.mpp and slide.is_georeferenced else None,
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
