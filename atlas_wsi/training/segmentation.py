"""Measure heatmaps cell by cell: against labeled areas, and on mosaics of tiles."""

# N cells, K classes

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from atlas_wsi.errors import DatasetError
from atlas_wsi.inference.predict import predict
from atlas_wsi.slides.open import open_slide
from atlas_wsi.training.data.mosaics import CELL_TOKENS, make_mosaic
from atlas_wsi.training.evaluation import Evaluation, class_indices, measure, unseen_part
from atlas_wsi.training.metrics import confusion, fit_temperature, mean_probabilities, summarize

if TYPE_CHECKING:
    from collections.abc import Iterator

    import shapely
    from numpy.typing import NDArray

    from atlas_wsi.grid import Grid
    from atlas_wsi.models.model import Model
    from atlas_wsi.progress import Progress
    from atlas_wsi.training.data.labeled import LabeledTiles
    from atlas_wsi.training.data.region_table import RegionTable

MAX_CELLS = 20_000
_FINER = 8  # samples per cell side: a cell has the class that covers half of it
_BLOCK = 4  # cells per side
_MIN_LABELED = 0.5
_MIN_TISSUE = 0.05


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CellSet:
    """Cells of heatmaps whose class is known."""

    labels: NDArray[np.int64]
    """`(N,)` true classes."""
    probabilities: NDArray[np.float32]
    """`(N, K)`."""
    groups: NDArray[np.str_]
    """`(N,)` names of what is alike: of patients, or of blocks of cells where there is one patient."""
    resampled: str
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


def evaluate_regions(
    model: Model,
    table: RegionTable,
    *,
    split: str | None,
    fit: bool,
    memory: int | str,
    progress: Progress | None,
) -> Evaluation:
    """Predict whole slides, and compare the cells in labeled areas."""
    is_own = model.card.training.get("data_fingerprint") == table.fingerprint
    if split == "test" or (split is None and is_own):
        table = _test_slides(model, table, progress)
        split, note = "test", "the test part of the training data"
    else:
        note = "not the training data" if split is None else "all slides"
        split = "all"
    cells = predict_cells(model, table, memory=memory, progress=progress)
    if fit:
        cells = calibrate_cells(model, cells)
        note += f"; the half of the {cells.resampled} that the temperature was not fitted on"
    text = f"{note}: {len(cells.labels)} cells of {len(table.rows)} slides measured"
    if cells.n_missed:
        text += f"; {cells.n_missed} labeled cells without tissue were left out"
    return replace(measure_cells(model, cells), measured_on=text, split=split)


def _test_slides(model: Model, table: RegionTable, progress: Progress | None) -> RegionTable:
    """Return the slides that were held out when a model was trained on a table."""
    facts = model.card.training
    if "tile_px" not in facts:
        raise DatasetError(
            f"{model.card.name} was not trained by train regions, so its card does not state "
            "which slides it did not see.",
            hint="Evaluate all slides with --split all.",
        )
    table = replace(table, tile_px=int(facts["tile_px"]))
    tiles = table.prepared(mpp=model.card.mpp, seed=int(facts["seed"]), progress=progress)
    return table.of_groups(set(unseen_part(model, tiles).groups))


def predict_cells(
    model: Model,
    table: RegionTable,
    *,
    memory: int | str | None = None,
    progress: Progress | None = None,
) -> CellSet:
    """Predict whole slides, and take the cells in labeled areas."""
    truths, chances, groups, blocks, n_missed = [], [], [], [], 0
    for done, row in enumerate(table.rows, start=1):
        with open_slide(row.slide, **row.opening) as slide:
            areas = table.areas(row, slide)
            index = class_indices(model, list(areas), of=f"{row.regions}: ")
            heatmap = predict(slide, model, memory=memory)
            name = slide.name
        truth = cell_labels(dict(zip(index.tolist(), areas.values(), strict=True)), heatmap.grid)
        known = ~np.isnan(heatmap.probabilities).any(axis=0)
        rows, cols = np.nonzero((truth >= 0) & known)
        n_missed += int(((truth >= 0) & ~known).sum())
        truths.append(truth[rows, cols])
        chances.append(heatmap.probabilities[:, rows, cols].T.astype(np.float32))
        groups += [row.group] * len(rows)
        blocks += [f"{name}:{r // _BLOCK}:{c // _BLOCK}" for r, c in zip(rows, cols, strict=True)]
        if progress is not None:
            progress("predict slides", done, len(table.rows))
    if not groups:
        raise DatasetError(
            "No cell of the heatmaps is in a labeled area.",
            hint="Draw areas larger than a cell, and on tissue.",
        )
    several = len(set(groups)) > 1
    return CellSet(
        labels=np.concatenate(truths).astype(np.int64),
        probabilities=np.concatenate(chances),
        groups=np.array(groups if several else blocks),
        resampled="groups" if several else f"blocks of {_BLOCK} x {_BLOCK} cells",
        n_missed=n_missed,
    )


def cell_labels(areas: dict[int, list[shapely.Polygon]], grid: Grid) -> NDArray[np.int64]:
    """Return the class that covers half of each cell, or -1; polygons are in level-0 `(x, y)`."""
    from affine import Affine
    from rasterio.features import rasterize

    rows, cols = grid.shape
    step_y, step_x = (step / _FINER for step in grid.step_px)
    to_samples = Affine(step_x, 0, grid.origin_px[1], 0, step_y, grid.origin_px[0])
    labels = np.full(grid.shape, -1, np.int64)
    best = np.zeros(grid.shape)
    for k, polygons in areas.items():
        samples = rasterize(
            polygons, (rows * _FINER, cols * _FINER), transform=to_samples, dtype=np.uint8
        )
        share = samples.reshape(rows, _FINER, cols, _FINER).mean(axis=(1, 3))
        wins = (share >= 0.5) & (share > best)
        labels[wins], best[wins] = k, share[wins]
    return labels


def measure_cells(model: Model, cells: CellSet, *, seed: int = 0) -> Evaluation:
    """Measure a model on cells."""
    names, temperature = model.card.class_names, model.card.temperature
    drawn = cells  # not all: the intervals take long
    if len(cells.labels) > MAX_CELLS:
        rng = np.random.default_rng(seed)
        drawn = cells.subset(np.sort(rng.choice(len(cells.labels), MAX_CELLS, replace=False)))
    result = measure(
        names,
        drawn.labels,
        drawn.probabilities,
        drawn.groups.tolist(),
        temperature=temperature,
        unit="cells",
        resampled=cells.resampled,
    )
    dice = _dice(confusion(cells.labels, cells.probabilities.argmax(axis=1), len(names)))
    of_classes = {f"dice {names[k]}": value for k, value in dice.items()}
    mean = {"mean_dice": _mean(dice)}
    return replace(result, metrics={**result.metrics, **mean, **of_classes})


def calibrate_cells(model: Model, cells: CellSet, *, seed: int = 0) -> CellSet:
    """Fit a model's temperature on the cells of half of the groups, or blocks of them."""
    groups = np.unique(cells.groups)
    if len(groups) < 2:
        raise DatasetError(
            f"The temperature needs two {cells.resampled} or more; all cells are of one."
        )
    rng = np.random.default_rng(seed)
    half = rng.permutation(groups)[: len(groups) // 2]
    fitted = np.isin(cells.groups, half)
    scores = np.log(np.maximum(cells.probabilities, 1e-7)) * model.card.temperature
    logits = scores[:, :, None, None].astype(np.float32)
    valid = np.ones((len(logits), 1, 1), bool)
    used = np.flatnonzero(fitted)
    used = used if len(used) <= MAX_CELLS else rng.choice(used, MAX_CELLS, replace=False)
    temperature = fit_temperature(logits[used], valid[used], cells.labels[used])
    model.card = model.card.model_copy(update={"temperature": temperature})
    scaled = mean_probabilities(logits, valid, temperature=temperature)
    return replace(cells, probabilities=scaled).subset(~fitted)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MosaicMaps:
    """A mosaic, its classes, and what a model predicts for it; cells `(rows, cols)`."""

    image: NDArray[np.uint8]
    """`(64 rows, 64 cols, 3)`."""
    truth: NDArray[np.int64]
    """Class with the largest share of each cell."""
    counts: NDArray[np.bool_]
    """Whether half of the cell is of a class."""
    whole: NDArray[np.int64]
    """Class that the model predicts for the cell, with context."""
    apart: NDArray[np.int64]
    """The same, every window as its own image."""


def evaluate_mosaics(
    model: Model,
    tiles: LabeledTiles,
    *,
    n: int = 16,
    side_px: int = 1024,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Measure the cells of mosaics of unchanged tiles, with context and window by window."""
    n_classes, index = len(model.card.class_names), class_indices(model, tiles.classes)
    whole = np.zeros((n_classes, n_classes), dtype=np.int64)
    apart = np.zeros_like(whole)
    for done, maps in enumerate(
        read_mosaics(model, tiles, n=n, side_px=side_px, seed=seed), start=1
    ):
        truth = index[maps.truth[maps.counts]]
        whole += confusion(truth, maps.whole[maps.counts], n_classes)
        apart += confusion(truth, maps.apart[maps.counts], n_classes)
        if progress is not None:
            progress("evaluate mosaics", done, n)
    return {
        "mosaic_cell_accuracy": summarize(whole)["accuracy"],
        "mosaic_dice": _mean(_dice(whole)),
        "mosaic_dice_without_context": _mean(_dice(apart)),
    }


def read_mosaics(
    model: Model, tiles: LabeledTiles, *, n: int = 16, side_px: int = 1024, seed: int = 0
) -> Iterator[MosaicMaps]:
    """Make mosaics of unchanged tiles, and read each whole and window by window."""
    rng = np.random.default_rng(seed)
    window, token_px = model.config.window_px, model.config.token_px
    side_px = max(1, round(side_px / window)) * window
    for _ in range(n):
        mosaic = make_mosaic(
            tiles,
            (side_px, side_px),
            rng,
            stain=model.card.domain == "slide",
            vary=False,
            token_px=token_px,
        )
        labeled = mosaic.shares.sum(axis=0)
        active = functional.avg_pool2d(
            torch.from_numpy(labeled)[None], model.config.window // CELL_TOKENS
        )
        yield MosaicMaps(
            image=mosaic.image,
            truth=mosaic.shares.argmax(axis=0),
            counts=labeled > _MIN_LABELED,
            whole=_classes(model, mosaic.image[None], active > _MIN_TISSUE)[0],
            apart=_window_by_window(model, mosaic.image),
        )


def _classes(
    model: Model, images: NDArray[np.uint8], active: torch.Tensor | None = None
) -> NDArray[np.int64]:
    with torch.inference_mode():
        found = model(model.normalize(torch.from_numpy(images)), active)
        return found.cells.argmax(dim=1).numpy()


def _window_by_window(model: Model, image: NDArray[np.uint8]) -> NDArray[np.int64]:
    window = model.config.window_px
    n, cells = image.shape[0] // window, model.config.window // CELL_TOKENS
    windows = image.reshape(n, window, n, window, 3).swapaxes(1, 2).reshape(-1, window, window, 3)
    found = _classes(model, np.ascontiguousarray(windows))
    return found.reshape(n, n, cells, cells).swapaxes(1, 2).reshape(n * cells, n * cells)


def _dice(counts: NDArray[np.int64]) -> dict[int, float]:
    """Compute the dice of each class that occurs."""
    size = counts.sum(axis=0) + counts.sum(axis=1)
    return {k: float(2 * counts[k, k] / size[k]) for k in np.unique(counts.nonzero()[0]).tolist()}


def _mean(dice: dict[int, float]) -> float:
    return float(np.mean(list(dice.values())))
