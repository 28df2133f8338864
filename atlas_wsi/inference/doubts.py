"""What is said before a map misleads: unfamiliar images, a single class, glass."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from atlas_wsi.grid import Grid
from atlas_wsi.models.familiarity import CELL_TOKENS
from atlas_wsi.tissue.mask import MIN_CELL_TISSUE, TissueMask, tissue_mask

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from numpy.typing import NDArray

    from atlas_wsi.models.model import Model
    from atlas_wsi.streaming.working_image import WorkingImage

MIN_FAMILIARITY = 0.5
"""Part of the tissue like the training images below which a result is warned of."""
_ONE_CLASS, _CERTAIN, _MIN_CELLS = 0.99, 0.99, 20
_MAX_GLASS = 0.5
_FOUND = ("brightfield", "fluorescence", "valid")
_GLASS = {"glass", "background"}


def familiarity(
    familiar: torch.Tensor | None, model: Model, image: WorkingImage, tissue: TissueMask
) -> float | None:
    """Return which part of the tissue is like the training images, 0 to 1; None if unknown.

    `familiar`: as `SlideLogits.familiar`.
    """
    if familiar is None:
        return None
    side = CELL_TOKENS * model.config.token_px
    step = (side * image.grid.step_px[0], side * image.grid.step_px[1])
    area = tissue.coverage(Grid(shape=(familiar.shape[0], familiar.shape[1]), step_px=step))
    alike = familiar.numpy()
    area[np.isnan(alike)] = 0
    return float(np.average(np.nan_to_num(alike), weights=area)) if area.any() else None


def doubts(
    name: str,
    classes: tuple[str, ...],
    probabilities: NDArray[np.float32],
    alike: float | None,
    image: WorkingImage,
    tissue: TissueMask,
) -> Iterator[str]:
    """Yield warnings about a prediction of the model `name`.

    `probabilities`: float32 `(K, rows, cols)`, NaN where nothing was predicted. `alike`: as
    `familiarity` returns.
    """
    ground = "scene" if image.slide.is_georeferenced else "tissue"
    if alike is not None and alike < MIN_FAMILIARITY:
        yield (
            f"Only {alike:.0%} of the {ground} is like the images that {name} was trained on: its "
            "classes may mean nothing here."
        )
    shown = probabilities[:, ~np.isnan(probabilities[0])]
    if len(classes) > 1 and shown.shape[1] >= _MIN_CELLS:
        counts = np.bincount(shown.argmax(axis=0), minlength=len(classes))
        share, certainty = counts.max() / counts.sum(), float(shown.max(axis=0).mean())
        if share >= _ONE_CLASS and certainty >= _CERTAIN:
            yield (
                f"{share:.1%} of the map is {classes[counts.argmax()]}, with a mean probability of "
                f"{certainty:.3f}: check that the model suits the stain, sensor and resolution."
            )
    knows_glass = not _GLASS.isdisjoint(name.lower() for name in classes)
    if ground == "tissue" and tissue.method not in _FOUND and shown.size and not knows_glass:
        found = tissue_mask(image.slide).coverage(tissue.grid)[tissue.mask]
        glass = float((found < MIN_CELL_TISSUE).mean())
        if glass > _MAX_GLASS:
            yield f"{glass:.0%} of the area that was predicted looks like glass, without tissue."
