"""Tables of slides or scenes with labeled areas; tiles are cut out of the areas."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from atlas_wsi.errors import DatasetError
from atlas_wsi.grid import Box
from atlas_wsi.slides.open import open_slide
from atlas_wsi.slides.tile_reader import OBSERVED
from atlas_wsi.streaming.working_image import open_working_image
from atlas_wsi.tissue.mask import tissue_mask
from atlas_wsi.training.cards import digest_of
from atlas_wsi.training.data.annotated_slide import AnnotatedSlide
from atlas_wsi.training.data.labeled import LabeledTiles
from atlas_wsi.training.data.labeled_areas import areas_by_class, read_names
from atlas_wsi.training.data.slide_table import find_file, pixel_size_in, read_rows

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    import shapely
    from numpy.typing import NDArray

    from atlas_wsi.progress import Progress
    from atlas_wsi.slides.slide import Slide

_MIN_SHARE = 0.75


@dataclass(frozen=True, slots=True, kw_only=True)
class LabeledRegions:
    """A slide, its labeled areas, and the patient that it belongs to."""

    slide: str
    """File or URL."""
    regions: Path
    """GeoJSON, a vector file or a label raster."""
    group: str
    """Slides of one group are kept in one part of a split."""
    opening: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of `open_slide`: what the file does not state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionTable:
    """Slides with labeled areas; tiles are cut out for training, cells compared in evaluation."""

    rows: tuple[LabeledRegions, ...]
    """One per slide."""
    column: str | None = None
    """Property or column of the class in GeoJSON and vector files; None for the usual names."""
    names: Mapping[int, str] | None = None
    """Class of each value of a label raster; None for values as classes, but for nodata."""
    tile_px: int = 128
    """Side of the tiles, in pixels at the resolution that the model sees."""
    max_tiles: int = 2000
    """Most tiles per class and slide."""

    def prepared(
        self, *, mpp: float | None = None, seed: int = 0, progress: Progress | None = None
    ) -> LabeledTiles:
        """Cut tiles out of the areas, and find the tissue around them."""
        import shapely

        if mpp is None:
            raise ValueError("labeled regions need the resolution that the model sees")
        rng = np.random.default_rng(seed)
        images: list[NDArray[np.uint8]] = []
        slides: list[AnnotatedSlide] = []
        tiles: list[tuple[str, str, str]] = []  # class, group, name
        places: list[tuple[str, int, int]] = []
        for done, row in enumerate(self.rows, start=1):
            with open_slide(row.slide, **row.opening) as slide:
                image = open_working_image(slide, mpp=mpp)
                areas = self.areas(row, slide)
                slides.append(
                    AnnotatedSlide(
                        slide=row.slide,
                        group=row.group,
                        opening=row.opening,
                        mask=tissue_mask(slide),
                        areas={k: shapely.MultiPolygon(v) for k, v in sorted(areas.items())},
                    )
                )
                for name, polygons in sorted(areas.items()):
                    corners = _corners(polygons, image.grid.step_px, image.shape, self.tile_px)
                    for top, left in rng.permutation(corners)[: self.max_tiles]:
                        side = self.tile_px
                        box = Box(row=int(top), col=int(left), rows=side, cols=side)
                        pixels, state = image.read_masked(box)
                        if state is not None and (state != OBSERVED).any():
                            continue
                        images.append(pixels)
                        places.append((row.slide, box.row, box.col))
                        tiles.append((name, row.group, f"{slide.name}:{top}:{left}"))
            if progress is not None:
                progress("cut regions", done, len(self.rows))
        classes = tuple(sorted({name for name, _, _ in tiles}))
        if len(classes) < 2:
            raise DatasetError(
                f"The labeled areas have room for tiles of {self.tile_px} px at {mpp:g} um/px in "
                f"{len(classes)} classes; two or more are needed.",
                hint="Classify the annotations, draw them larger, or give a smaller --tile-px.",
            )
        return LabeledTiles(
            images=np.stack(images),
            labels=np.array([classes.index(name) for name, _, _ in tiles], dtype=np.int64),
            groups=tuple(group for _, group, _ in tiles),
            paths=tuple(name for _, _, name in tiles),
            classes=classes,
            is_grouped=True,
            mpp=mpp,
            facts={"tile_px": self.tile_px, "measured": "tiles on the maps of whole slides"},
            fingerprint=self.fingerprint,
            slides=tuple(slides),
            places=tuple(places),
        )

    def areas(self, row: LabeledRegions, slide: Slide) -> dict[str, list[shapely.Polygon]]:
        """Read the areas of a slide by class."""
        return areas_by_class(row.regions, slide, column=self.column, names=self.names)

    @property
    def fingerprint(self) -> str:
        """Digest of the slides and areas."""
        files = [row.slide for row in self.rows] + [str(row.regions) for row in self.rows]
        return digest_of(files, [row.group for row in self.rows])

    def of_groups(self, groups: set[str]) -> RegionTable:
        """Return the slides of some groups."""
        return replace(self, rows=tuple(row for row in self.rows if row.group in groups))


def read_regions(
    path: str | os.PathLike[str],
    *,
    mpp: float | None = None,
    scale: tuple[float, float] | None = None,
    image: int | None = None,
    allow_truncated: bool = False,
    tile_px: int = 128,
    column: str | None = None,
    classes: str | os.PathLike[str] | None = None,
) -> RegionTable:
    """Read a table of slides or scenes with labeled areas.

    Parameters
    ----------
    path
        CSV with the columns slide, regions (QuPath's GeoJSON, a vector file or a label raster) and
        optionally group, such as the patient, and mpp or gsd. Paths are relative to its folder.
    mpp
        Micrometers per pixel of slides whose file and row do not state them.
    scale
        As for `open_slide`, for all slides.
    image
        As for `open_slide`, for all slides.
    allow_truncated
        As for `open_slide`, for all slides.
    tile_px
        Side of the tiles that are cut out for training, at the resolution that the model sees.
    column
        Property or column of the class in GeoJSON and vector files; by default classification,
        class, label or name.
    classes
        CSV with the columns value and class, for label rasters; other values have no class.

    Returns
    -------
    RegionTable
        For `atlas_wsi.train`, `atlas_wsi.cross_validate` and `atlas_wsi.evaluate`.

    Raises
    ------
    DatasetError
        If the table cannot be read or names a file that does not exist.
    """
    path = Path(path)
    names = read_names(Path(classes)) if classes is not None else None
    opening = {"scale": scale, "image": image, "allow_truncated": allow_truncated}
    return RegionTable(
        rows=tuple(
            LabeledRegions(
                slide=find_file(path, row["slide"]),
                regions=Path(find_file(path, row["regions"])),
                group=row.get("group") or row["slide"],
                opening={**opening, "mpp": pixel_size_in(row, path, number) or mpp},
            )
            for number, row in enumerate(read_rows(path, ("slide", "regions")), start=2)
        ),
        column=column,
        names=names,
        tile_px=tile_px,
    )


def _corners(
    polygons: list[shapely.Polygon],
    step_px: tuple[float, float],
    shape: tuple[int, int],
    tile_px: int,
) -> NDArray[np.int64]:
    """Return the corners, in working pixels, of the tiles inside the polygons."""
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
    inside = near[share >= _MIN_SHARE]
    return np.stack([row[inside], col[inside]], axis=1)
