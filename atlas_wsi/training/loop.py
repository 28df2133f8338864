"""Train an Atlas on tiles: mosaics for the dense head, single tiles for what they show."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from atlas_wsi.progress import CancelToken, Progress, silent
from atlas_wsi.training import parallel
from atlas_wsi.training.batches import load_batches
from atlas_wsi.training.history import History
from atlas_wsi.training.recipe import Recipe
from atlas_wsi.training.start import new_model
from atlas_wsi.training.steps import Run

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import nn
    from torch.utils.data import DataLoader

    from atlas_wsi.models.card import ModelCard
    from atlas_wsi.models.model import Model
    from atlas_wsi.models.start import Start
    from atlas_wsi.training.batches import Batch
    from atlas_wsi.training.tiles import Labeled, TileSet

__all__ = ["SLIDE_LOSS", "Recipe", "channel_statistics", "losses", "train"]

SLIDE_LOSS = 0.3
"""Weight of the slide score's loss beside the cells'."""


def losses(
    model: Model, batch: Batch, *, run: nn.Module | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the losses of a batch."""
    found = (run or model)(
        model.normalize(batch.images).contiguous(memory_format=torch.channels_last),
        batch.active,
        n_scales=batch.n_scales,
    )
    logs = functional.log_softmax(found.cells.float(), dim=1)
    labeled = parallel.total(batch.shares.sum()).clamp(min=1e-6)
    dense = -(logs * batch.shares).sum() / labeled
    whole = batch.shares.sum(dim=(2, 3))
    has_label = whole.sum(dim=1) > 0
    target = whole[has_label] / whole[has_label].sum(dim=1, keepdim=True)
    logs = functional.log_softmax(found.slide.float()[has_label], dim=1)
    slide = -(logs * target).sum() / parallel.total(has_label.sum()).clamp(min=1)
    return dense * parallel.n_ranks(), slide * parallel.n_ranks()


def train(
    tiles: Labeled,
    card: ModelCard,
    recipe: Recipe,
    *,
    init: Model | Start | None = None,
    validation: Labeled | None = None,
    checkpoint: Path | None = None,
    history: History | None = None,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> Model:
    """Train a model on tiles or whole slides.

    Halfway, or at once from given weights and for slides, batch norm is measured on unchanged tiles
    and kept: training ends with what prediction uses.
    """
    report, cancel = progress or silent, cancel or CancelToken()
    history = history if history is not None else History()
    model = new_model(len(tiles.classes), card, recipe, init).to(parallel.device())
    run = Run(model, recipe, history)
    work = tiles.work(model, recipe)
    start = time.perf_counter()
    run.train(work, tiles, validation, checkpoint=checkpoint, report=report, cancel=cancel)
    average = run.average
    average.card = average.card.model_copy(
        update={
            "training": {
                **recipe.as_dict(),
                **tiles.arguments,
                "steps": int(history.rows[-1]["step"]),
                "chosen": {k: round(v, 6) for k, v in history.best.items()},
                "seconds": round(time.perf_counter() - start),
                tiles.unit: len(tiles),
            }
            | average.card.training
        }
    )
    return average.eval()


class TileWork:
    """Steps that show mosaics and single tiles."""

    def __init__(self, model: Model, tiles: TileSet, recipe: Recipe) -> None:
        self.model, self.tiles, self.recipe = model, tiles, recipe
        pixels = len(tiles) * tiles.images.shape[1] * tiles.images.shape[2]
        self.steps = max(4, round(recipe.epochs * pixels / (recipe.megapixels * 1e6)))
        self.fix_at = 0 if "init" in model.card.training else self.steps // 2
        self.device = model.encoder.fc.weight.device
        self.is_low = recipe.precision == "bfloat16" or (
            recipe.precision == "auto" and _has_bfloat16(self.device)
        )
        self.spread = parallel.spread(model)

    def batches(self, steps: range) -> DataLoader[Batch]:
        """Make the pictures of some steps."""
        stain = self.model.card.domain == "slide"
        part = parallel.rank(), parallel.n_ranks()
        return load_batches(self.tiles, self.recipe, steps, stain=stain, part=part)

    def learn(self, batch: Batch, step: int, cancel: CancelToken) -> float:  # noqa: ARG002
        """Add the gradient of a batch to the model's weights."""
        batch = batch.to(self.device)
        parallel.set_idle(self.model, idle=batch.idle)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.is_low):
            dense, slide = losses(self.model, batch, run=self.spread)
        (dense + SLIDE_LOSS * slide).backward()  # type: ignore[no-untyped-call]
        return float(parallel.total(dense.detach())) / parallel.n_ranks()


def _has_bfloat16(device: torch.device) -> bool:
    from atlas_wsi.streaming.device import has_bfloat16

    return has_bfloat16(device)


def channel_statistics(
    images: NDArray[np.uint8],
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Measure the mean and the deviation of each channel, in 0-1.

    `images`: uint8 `(N, rows, cols, 3)`.
    """
    part = images[:: max(1, len(images) // 500)].reshape(-1, 3) / 255.0
    mean = tuple(round(float(v), 4) for v in part.mean(axis=0))
    std = tuple(round(float(v), 4) for v in np.maximum(part.std(axis=0), 0.02))
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])
