"""Batch-norm statistics, measured on unchanged images and then kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from atlas_wsi.grid import Box
from atlas_wsi.models.stems.timm_network import TimmStem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from atlas_wsi.models.model import Model
    from atlas_wsi.training.recipe import Recipe

_MAX_IMAGES = 1024


def fix_norms(model: Model, images: NDArray[np.uint8], recipe: Recipe) -> None:
    """Measure the batch-norm statistics on unchanged images, as a slide has, and keep them."""
    measure_norms(model, _batches(images, recipe))


def fit_projection(model: Model, images: NDArray[np.uint8], recipe: Recipe) -> None:
    """Fit what brings the tokens of a network of timm to the channels of the model."""
    stem = model.encoder.stem
    if isinstance(stem, TimmStem):
        whole = Box(row=0, col=0, rows=images.shape[1], cols=images.shape[2])
        fix_modes(stem)
        with torch.no_grad():
            stem.fit_projection_(
                stem.map(_normalized(model, batch), whole, (whole.rows, whole.cols))
                for batch in _batches(images, recipe)
            )


def _batches(images: NDArray[np.uint8], recipe: Recipe) -> list[NDArray[np.uint8]]:
    order = np.random.default_rng(recipe.seed).permutation(len(images))[:_MAX_IMAGES]
    batch = max(2, int(recipe.megapixels * 1e6) // images[0, ..., 0].size)
    return [images[order[i : i + batch]] for i in range(0, len(order), batch)]


def _normalized(model: Model, images: NDArray[np.uint8]) -> torch.Tensor:
    pixels = torch.from_numpy(images).to(model.encoder.fc.weight.device)
    return model.normalize(pixels).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def measure_norms(model: Model, batches: Sequence[NDArray[np.uint8]]) -> None:
    """Give batch norm the statistics of batches, uint8 `(N, rows, cols, 3)`, and fix them."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d) and _is_learned(m)]
    if not norms:
        return
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over what follows
        norm.train()
    for images in batches:
        model.encoder.stem(_normalized(model, images))
    fix_modes(model)


def _is_learned(module: nn.Module) -> bool:
    return any(weight.requires_grad for weight in module.parameters())


def fix_modes(model: nn.Module) -> None:
    """Keep the batch-norm statistics as they are."""
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eval()


def channel_statistics(
    images: NDArray[np.uint8],
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Measure the mean and deviation of each channel of uint8 images, in 0-1."""
    part = images[:: max(1, len(images) // 500)].reshape(-1, 3) / 255.0
    mean = tuple(round(float(v), 4) for v in part.mean(axis=0))
    std = tuple(round(float(v), 4) for v in np.maximum(part.std(axis=0), 0.02))
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])
