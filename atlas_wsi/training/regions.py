"""Labeled tiles cut out of areas of slides or scenes whose class somebody has told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from atlas_wsi.errors import DatasetError
from atlas_wsi.grid import Box
from atlas_wsi.slides.open import open_slide
from atlas_wsi.streaming.working_image import open_working_image
from atlas_wsi.training.labels import Labels, areas_by_class
from atlas_wsi.training.tables import find, read_rows
from atlas_wsi.training.tiles import TileSet

if TYPE_CHECKING:
    import os

    import shapely
    from numpy.typing import NDArray

    from atlas_wsi.progress import Progress

_MIN_SHARE = 0.75


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotated:
    """A slide, its polygons, and the patient it is of."""

    slide: str
    """File or URL."""
    regions: Path
    """What `atlas_wsi.training.labels` reads."""
    group: str
    """Slides of one group are kept on one side of a split."""


def read_list(path: str | os.PathLike[str]) -> list[Annotated]:
    """Read a table of slides and polygons."""
    path = Path(path)
    return [
        Annotated(
            slide=find(path, row["slide"].strip()),
            regions=Path(find(path, row["regions"].strip())),
            group=(row.get("group") or row["slide"]).strip(),
        )
        for row in read_rows(path, ("slide", "regions"))
    ]


def read_regions(
    path: str | os.PathLike[str],
    *,
    mpp: float,
    tile_px: int = 128,
    most: int = 2000,
    seed: int = 0,
    labels: Labels | None = None,
    progress: Progress | None = None,
) -> TileSet:
    """Cut tiles out of labeled areas."""
    rng = np.random.default_rng(seed)
    table = read_list(path)
    images: list[NDArray[np.uint8]] = []
    facts: list[tuple[str, str, str]] = []  # class, group, name of the tile
    for done, one in enumerate(table, start=1):
        with open_slide(one.slide) as slide:
            image = open_working_image(slide, mpp=mpp)
            for name, polygons in sorted(areas_by_class(one.regions, slide, labels).items()):
                corners = _fitting(polygons, image.grid.step_px, image.shape, tile_px)
                for row, col in rng.permutation(corners)[:most]:
                    box = Box(row=int(row), col=int(col), rows=tile_px, cols=tile_px)
                    images.append(image.read(box))
                    facts.append((name, one.group, f"{slide.name}:{row}:{col}"))
        if progress is not None:
            progress("cut regions", done, len(table))
    classes = tuple(sorted({name for name, _, _ in facts}))
    if len(classes) < 2:
        raise DatasetError(
            f"The polygons of {path} have room for tiles of {tile_px} px at {mpp:g} um/px in "
            f"{len(classes)} classes, two or more are needed.",
            hint="Classify the annotations, draw them larger, or give a smaller --tile-px.",
        )
    return TileSet(
        images=np.stack(images),
        labels=np.array([classes.index(name) for name, _, _ in facts], dtype=np.int64),
        groups=tuple(group for _, group, _ in facts),
        paths=tuple(name for _, _, name in facts),
        classes=classes,
        is_grouped=True,
    )


def _fitting(
    polygons: list[shapely.Polygon],
    step_px: tuple[float, float],
    shape: tuple[int, int],
    tile_px: int,
) -> NDArray[np.int64]:
    """Return the corners, in working pixels, of the tiles that lie in the polygons."""
    import shapely

    rows, cols = (np.arange(0, n - tile_px + 1, tile_px // 2) for n in shape)
    row, col = (a.ravel() for a in np.meshgrid(rows, cols, indexing="ij"))
    area = shapely.union_all(polygons)
    shapely.prepare(area)
    tiles = shapely.box(
        col * step_px[1],
        row * step_px[0],
        (col + tile_px) * step_px[1],
        (row + tile_px) * step_px[0],
    )
    near = np.flatnonzero(shapely.intersects(area, tiles))
    share = shapely.area(shapely.intersection(area, tiles[near])) / shapely.area(tiles[near])
    kept = near[share >= _MIN_SHARE]
    return np.stack([row[kept], col[kept]], axis=1)
