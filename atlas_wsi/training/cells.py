"""How good heatmaps are where somebody has told the class: cell by cell."""

# N cells, K classes

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from atlas_wsi.errors import DatasetError
from atlas_wsi.inference.predict import predict
from atlas_wsi.slides.open import open_slide
from atlas_wsi.training.calibration import fit_temperature
from atlas_wsi.training.evaluation import Evaluation, measure
from atlas_wsi.training.labels import areas_by_class

if TYPE_CHECKING:
    from collections.abc import Sequence

    import shapely
    from numpy.typing import NDArray

    from atlas_wsi.grid import Grid
    from atlas_wsi.models.model import Model
    from atlas_wsi.progress import Progress
    from atlas_wsi.training.labels import Labels
    from atlas_wsi.training.regions import Annotated

MOST = 20_000
_FINER = 8  # marks a cell side: a cell is of the class that covers half of it
_BLOCK = 4  # cells a side


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CellSet:
    """Cells of heatmaps whose class is known."""

    labels: NDArray[np.int64]
    """`(N,)` true classes."""
    probabilities: NDArray[np.float32]
    """`(N, K)`."""
    groups: NDArray[np.str_]
    """`(N,)` names of what is alike: of patients, or of blocks of cells where there is one patient."""
    drawn: str
    """What `groups` are: ``"groups"`` of the table, or ``"blocks of 4 x 4 cells"``."""
    n_missed: int
    """Cells with a class for which there is no prediction: the tissue mask left them out."""

    def subset(self, which: NDArray[np.bool_] | NDArray[np.int64]) -> CellSet:
        """Return some of the cells."""
        return replace(
            self,
            labels=self.labels[which],
            probabilities=self.probabilities[which],
            groups=self.groups[which],
        )


def predict_cells(
    model: Model,
    rows: Sequence[Annotated],
    *,
    labels: Labels | None = None,
    memory: int | str | None = None,
    progress: Progress | None = None,
) -> CellSet:
    """Predict whole slides, and keep the cells that lie in labeled areas."""
    names = model.card.class_names
    truths, chances, groups, blocks, n_missed = [], [], [], [], 0
    for done, one in enumerate(rows, start=1):
        with open_slide(one.slide) as slide:
            areas = areas_by_class(one.regions, slide, labels)
            strangers = sorted(set(areas) - set(names))
            if strangers:
                raise DatasetError(
                    f"{one.regions} has areas of {', '.join(strangers)}; the model "
                    f"{model.card.name} knows {', '.join(names)}."
                )
            heatmap = predict(slide, model, memory=memory)
            name = slide.name
        truth = cell_labels({names.index(k): v for k, v in areas.items()}, heatmap.grid)
        known = ~np.isnan(heatmap.probabilities).any(axis=0)
        row, col = np.nonzero((truth >= 0) & known)
        n_missed += int(((truth >= 0) & ~known).sum())
        truths.append(truth[row, col])
        chances.append(heatmap.probabilities[:, row, col].T.astype(np.float32))
        groups += [one.group] * len(row)
        blocks += [f"{name}:{r // _BLOCK}:{c // _BLOCK}" for r, c in zip(row, col, strict=True)]
        if progress is not None:
            progress("predict slides", done, len(rows))
    if not groups:
        raise DatasetError(
            "No cell of the heatmaps lies in a labeled area.",
            hint="Draw areas larger than a cell, and on tissue.",
        )
    several = len(set(groups)) > 1
    return CellSet(
        labels=np.concatenate(truths).astype(np.int64),
        probabilities=np.concatenate(chances),
        groups=np.array(groups if several else blocks),
        drawn="groups" if several else f"blocks of {_BLOCK} x {_BLOCK} cells",
        n_missed=n_missed,
    )


def cell_labels(areas: dict[int, list[shapely.Polygon]], grid: Grid) -> NDArray[np.int64]:
    """Tell the class of each cell of a grid.

    `areas`: Polygons in level-0 pixels `(x, y)` by class. Returns: `(rows, cols)`; -1 where no
    class covers half of the cell.
    """
    from affine import Affine
    from rasterio.features import rasterize

    rows, cols = grid.shape
    step_y, step_x = (step / _FINER for step in grid.step_px)
    to_marks = Affine(step_x, 0, grid.origin_px[1], 0, step_y, grid.origin_px[0])
    found = np.full(grid.shape, -1, np.int64)
    best = np.zeros(grid.shape)
    for k, polygons in areas.items():
        marks = rasterize(
            polygons, (rows * _FINER, cols * _FINER), transform=to_marks, dtype=np.uint8
        )
        share = marks.reshape(rows, _FINER, cols, _FINER).mean(axis=(1, 3))
        wins = (share >= 0.5) & (share > best)
        found[wins], best[wins] = k, share[wins]
    return found


def measure_cells(model: Model, cells: CellSet, *, seed: int = 0) -> Evaluation:
    """Measure a model on cells."""
    names, temperature = model.card.class_names, model.card.temperature
    drawn = cells
    if len(cells.labels) > MOST:
        rng = np.random.default_rng(seed)
        drawn = cells.subset(np.sort(rng.choice(len(cells.labels), MOST, replace=False)))
    found = measure(
        names,
        drawn.labels,
        drawn.probabilities,
        drawn.groups.tolist(),
        temperature=temperature,
        unit="cells",
        drawn=cells.drawn,
    )
    said = cells.probabilities.argmax(axis=1)
    dice = {}
    for k in np.unique(cells.labels):
        both = int(((said == k) & (cells.labels == k)).sum())
        dice[f"dice {names[k]}"] = 2 * both / int((said == k).sum() + (cells.labels == k).sum())
    mean = {"mean_dice": float(np.mean(list(dice.values())))}
    return replace(found, metrics={**found.metrics, **mean, **dice})


def calibrate_cells(model: Model, cells: CellSet, *, seed: int = 0) -> CellSet:
    """Fit a model's temperature on the cells of half of the groups, or blocks of them."""
    groups = np.unique(cells.groups)
    if len(groups) < 2:
        raise DatasetError(
            f"The temperature needs two {cells.drawn} or more, all cells are of one."
        )
    rng = np.random.default_rng(seed)
    half = rng.permutation(groups)[: len(groups) // 2]
    fitted = np.isin(cells.groups, half)
    logits = np.log(np.maximum(cells.probabilities, 1e-7)) * model.card.temperature
    at = np.flatnonzero(fitted)
    at = at if len(at) <= MOST else rng.choice(at, MOST, replace=False)
    valid = np.ones((len(at), 1, 1), bool)
    found = fit_temperature(logits[at, :, None, None].astype(np.float32), valid, cells.labels[at])
    model.card = model.card.model_copy(update={"temperature": found})
    scaled = np.exp(logits / found - (logits / found).max(axis=1, keepdims=True))
    whole = replace(cells, probabilities=scaled / scaled.sum(axis=1, keepdims=True))
    return whole.subset(~fitted)
