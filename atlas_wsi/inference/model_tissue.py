"""Tissue found by a model instead of by the colors of a thumbnail."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from atlas_wsi.errors import ModelError
from atlas_wsi.grid import Grid
from atlas_wsi.inference.predict import predict
from atlas_wsi.tissue.mask import TissueMask

if TYPE_CHECKING:
    from atlas_wsi.models import Model
    from atlas_wsi.progress import CancelToken, Progress
    from atlas_wsi.slides.slide import Slide

TISSUE = "tissue"
"""Name of the class that is tissue."""


def find_tissue_by_model(
    slide: Slide,
    model: Model,
    *,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> TissueMask:
    """Find tissue with a model that separates it from glass, ink and blur."""
    names = model.card.class_names
    if TISSUE not in names:
        raise ModelError(
            f"The model {model.card.name} has no class '{TISSUE}'; it has {', '.join(names)}.",
            hint="The bundled model 'tissue' has one.",
        )
    whole = Grid.over(slide.shape, (max(1.0, slide.shape[0] / 512), max(1.0, slide.shape[1] / 512)))
    everywhere = TissueMask(mask=np.ones(whole.shape, bool), grid=whole, method="all")
    heatmap = predict(slide, model, tissue=everywhere, progress=progress, cancel=cancel)
    return TissueMask(
        mask=heatmap.argmax() == names.index(TISSUE),
        grid=heatmap.grid,
        method=f"model {model.card.name}",
    )
