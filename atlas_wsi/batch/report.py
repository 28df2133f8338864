"""An archive as static pages: gallery, one zoomable page per slide, histograms, failures."""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import jinja2
import numpy as np

from atlas_wsi.batch.journal import Journal, Row
from atlas_wsi.batch.pictures import TILE_PX, write_pictures
from atlas_wsi.errors import AtlasError, CorruptResultError
from atlas_wsi.files import write_whole
from atlas_wsi.heatmap.result import open_result
from atlas_wsi.progress import Progress, silent
from atlas_wsi.slides.open import open_slide

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from atlas_wsi.heatmap.heatmap import Heatmap

_log = logging.getLogger(__name__)

FOLDER = "report"
VIEWER_PX = 2048
N_BINS = 20
_UNITS = {"mm2": "mm²", "m2": "m²"}
_ASSETS = (
    "style.css",
    "gallery.js",
    "viewer.js",
    "openseadragon.min.js",
    "openseadragon.LICENSE.txt",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shown:
    """A slide on the pages."""

    row: Row
    colors: dict[str, str]
    viewer: dict[str, Any] | None
    """Settings of the viewer; None if there are no images."""

    @property
    def shares(self) -> dict[str, float]:
        total = sum(self.row.areas.values())
        return {name: area / total if total else 0.0 for name, area in self.row.areas.items()}

    @property
    def page(self) -> str:
        return f"slides/{quote(self.row.name)}/index.html"


def write_report(
    out: str | os.PathLike[str],
    *,
    viewer_px: int = VIEWER_PX,
    progress: Progress | None = None,
) -> Path:
    """Write pages about an archive, to be opened in a browser; they need no server.

    Parameters
    ----------
    out
        Output folder of `atlas-wsi batch`.
    viewer_px
        Longest side of the slides' pictures; 0 draws none, and the slides are not opened.
    progress
        Called with the number of slides that are drawn.

    Returns
    -------
    Path
        ``OUT/report/index.html``. Pictures of slides that ended before the last report are kept.

    Raises
    ------
    CorruptResultError
        If the folder holds no archive.
    """
    journal = Journal(out)
    if not journal.exists:
        raise CorruptResultError(
            f"{journal.out} is not the output folder of an archive.",
            hint="Make one with `atlas-wsi batch`.",
        )
    report = progress or silent
    rows = list(journal.read_rows().values())
    target = journal.out / FOLDER
    with write_whole(target) as fresh:
        (fresh / "slides").mkdir(parents=True)
        shown = _draw_slides(rows, journal.out, target, fresh, viewer_px, report)
        _write_pages(journal, rows, shown, fresh)
    return target / "index.html"


def _draw_slides(
    rows: list[Row], out: Path, old: Path, fresh: Path, viewer_px: int, report: Progress
) -> list[_Shown]:
    done = [row for row in rows if row.state == "done"]
    shown = []
    for number, row in enumerate(done):
        report("draw", number, len(done))
        folder = fresh / "slides" / row.name
        kept = _keep(old / "slides" / row.name, folder, row, viewer_px)
        facts = kept or _draw(row, out, folder, viewer_px)
        shown.append(_Shown(row=row, colors=facts["colors"], viewer=facts["viewer"]))
    report("draw", len(done), len(done))
    return shown


def _keep(old: Path, folder: Path, row: Row, viewer_px: int) -> dict[str, Any] | None:
    """Take over the pictures of the last report if they are of the same result."""
    try:
        facts: dict[str, Any] = json.loads((old / "facts.json").read_text(encoding="utf-8"))
        if facts["of"] != [row.ended, viewer_px]:
            return None
        shutil.copytree(old, folder, copy_function=_link)
    except (OSError, ValueError, KeyError, TypeError):
        shutil.rmtree(folder, ignore_errors=True)
        return None
    return facts


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


def _draw(row: Row, out: Path, folder: Path, viewer_px: int) -> dict[str, Any]:
    folder.mkdir()
    facts: dict[str, Any] = {"of": [row.ended, viewer_px], "colors": {}, "viewer": None}
    try:
        heatmap = open_result(out / row.name)
        facts["colors"] = dict(zip(heatmap.classes, heatmap.colors, strict=True))
        if viewer_px:
            facts["viewer"] = write_pictures(heatmap, _thumbnail(heatmap, viewer_px), folder)
    except AtlasError as error:
        _log.warning("%s has no picture in the report: %s", row.name, error.message)
    (folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
    return facts


def _thumbnail(heatmap: Heatmap, viewer_px: int) -> NDArray[Any] | None:
    """Read a thumbnail of the slide; a slide that was moved is drawn by its tissue."""
    try:
        with open_slide(heatmap.slide.path, **heatmap.slide.opening) as slide:
            return slide.thumbnail(viewer_px)
    except AtlasError as error:
        _log.warning("%s is drawn without its pixels: %s", heatmap.slide.name, error.message)
        return None


def _write_pages(journal: Journal, rows: list[Row], shown: list[_Shown], fresh: Path) -> None:
    assets = resources.files("atlas_wsi.batch") / "report_assets"
    (fresh / "assets").mkdir()
    for name in _ASSETS:
        (fresh / "assets" / name).write_bytes((assets / name).read_bytes())
    pages = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (assets / name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters |= {"url": quote, "figures": _figures, "percent": lambda v: f"{v:.1%}"}
    common = {"units": _UNITS, "tile_px": TILE_PX}
    page = pages.get_template("slide.html.j2")
    for number, slide in enumerate(shown):
        before = shown[number - 1] if number else None
        after = shown[number + 1] if number + 1 < len(shown) else None
        text = page.render(common, one=slide, row=slide.row, before=before, after=after)
        (fresh / "slides" / slide.row.name / "index.html").write_text(text, encoding="utf-8")
    text = pages.get_template("index.html.j2").render(
        common,
        name=journal.out.absolute().name,
        shown=shown,
        failed=[row for row in rows if row.state == "failed"],
        n_open=len({s.name for s in journal.read_slides()} - {row.name for row in rows}),
        classes=_classes(shown),
        work=_duration(sum(row.wall_s for row in rows)),
    )
    (fresh / "index.html").write_text(text, encoding="utf-8")


def _classes(shown: list[_Shown]) -> list[dict[str, Any]]:
    """Count, for each class, in how many slides it takes which share of the area."""
    entries: dict[str, dict[str, Any]] = {}
    for slide in shown:
        for name, share in slide.shares.items():
            color = slide.colors.get(name, "#888888")
            entry = entries.setdefault(
                name, {"name": name, "color": color, "shares": [], "area": {}}
            )
            entry["shares"].append(share)
            unit = slide.row.area_unit or "mm2"
            entry["area"][unit] = entry["area"].get(unit, 0.0) + slide.row.areas[name]
    for entry in entries.values():
        counts, _ = np.histogram(entry["shares"], bins=N_BINS, range=(0, 1))
        entry["counts"] = counts.tolist()
        entry["median"] = float(np.median(entry["shares"]))
    return list(entries.values())


def _figures(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:,.0f} h"
