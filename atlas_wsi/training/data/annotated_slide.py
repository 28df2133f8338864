"""Slides with labeled areas, as a training sees them in their real surroundings."""

# N windows, T tokens per window

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    import shapely
    from numpy.typing import NDArray

    from atlas_wsi.models.layout import Layout
    from atlas_wsi.streaming.working_image import WorkingImage
    from atlas_wsi.tissue.mask import TissueMask

NO_LABEL = -1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AnnotatedSlide:
    """A slide, where its tissue is, and the areas of every class."""

    slide: str
    """File or URL."""
    group: str
    """Slides of one group are kept in one part of a split."""
    opening: Mapping[str, Any]
    """Arguments of `open_slide`."""
    mask: TissueMask
    """Its tissue, or the observed ground of a scene."""
    areas: Mapping[str, shapely.MultiPolygon]
    """Level-0 areas by class."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LabeledWindows:
    """The fine windows of a slide that have a label somewhere."""

    windows: NDArray[np.int64]
    """`(N,)` places in the layout's list, ascending."""
    labels: NDArray[np.int16]
    """`(N, T)` class of every token, `NO_LABEL` for none."""

    def counts(self, n_classes: int) -> NDArray[np.int64]:
        """Count the tokens of every class, `(N, classes)`."""
        return np.stack([(self.labels == k).sum(axis=1) for k in range(n_classes)], axis=1)

    def draw(self, n: int, n_classes: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Draw at most `n` of them, so that every class has the same weight."""
        return draw_even(self.counts(n_classes), n, rng)


def draw_even(counts: NDArray[np.int64], n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw at most `n` items, ascending, from what they hold of every class, `(items, classes)`."""
    weights = (counts / np.maximum(counts.sum(axis=0), 1)).sum(axis=1)
    n = min(n, len(counts))
    return np.sort(rng.choice(len(counts), n, replace=False, p=weights / weights.sum()))


def labeled_windows(
    slide: AnnotatedSlide,
    classes: tuple[str, ...],
    image: WorkingImage,
    layout: Layout,
    *,
    token_px: int,
    mirrored: tuple[bool, bool] = (False, False),
) -> LabeledWindows:
    """Draw the areas on the tokens of a slide; `mirrored`: whether rows and columns run back."""
    from affine import Affine
    from rasterio.features import rasterize

    at = layout.scales[0]
    steps = [step * token_px for step in image.grid.step_px]
    ends = [n * step for n, step in zip(image.shape, image.grid.step_px, strict=True)]
    (dy, y), (dx, x) = (
        (-step, end) if back else (step, 0.0)
        for step, end, back in zip(steps, ends, mirrored, strict=True)
    )
    drawn = [(area, classes.index(name)) for name, area in slide.areas.items() if name in classes]
    labels = rasterize(
        drawn,
        out_shape=at.grid,
        transform=Affine(dx, 0, x, 0, dy, y),
        fill=NO_LABEL,
        dtype="int16",
    )
    m = at.side
    after = [(0, -n % m) for n in at.grid]
    cut = np.pad(labels, after, constant_values=NO_LABEL)
    cut = cut.reshape(at.windows[0], m, at.windows[1], m).swapaxes(1, 2)
    of_windows = cut[at.where[:, 1], at.where[:, 2]].reshape(at.n_windows, m * m)
    some = np.flatnonzero((of_windows != NO_LABEL).any(axis=1))
    return LabeledWindows(windows=some, labels=of_windows[some])
