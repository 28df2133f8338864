"""The simplest models over the same stem, beside which a trained one is measured and chosen."""

# N tiles, C channels

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from atlas_wsi.models.model import Model
from atlas_wsi.training.amid import measure_amid, sheets
from atlas_wsi.training.data.augment import augment
from atlas_wsi.training.data.labeled import LabeledTiles
from atlas_wsi.training.evaluation import measure_data
from atlas_wsi.training.metrics import fit_logistic

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from atlas_wsi.training.data.labeled import Labeled

_MOST = 4000
_DECAYS = (1e-4, 1e-3, 1e-2)
_DEFAULT_DECAY = 1e-3
_BATCH = 32


def linear_model(
    model: Model, known: Labeled, validation: Labeled | None, *, jitter: float = 0.0
) -> Model:
    """Fit a linear reading of the tokens of a model's stem, from tiles alone and amid others.

    Its weight decay is that of the lowest loss on the validation tiles, if there are any. With
    `jitter`, it has also seen them with other colors, as the steps of a training show them.
    """
    config = replace(model.config, depths=(), n_scales=1, readout="attention", plain_reading=True)
    linear = Model(config, model.card).to(model.encoder.fc.weight.device)
    linear.encoder.stem.load_state_dict(model.encoder.stem.state_dict())
    linear.encoder.stem.to(memory_format=torch.channels_last)
    linear.eval()
    x_NC, labels = _tokens_of(linear, known, jitter)
    mean, std = x_NC.mean(dim=0), x_NC.std(dim=0).clamp(min=1e-6)
    x_NC, n_classes = (x_NC - mean) / std, len(known.classes)
    if validation is None:
        weight = fit_logistic(x_NC, labels, n_classes, decay=_DEFAULT_DECAY)
    else:
        asked, truth = _tokens_of(linear, validation, jitter)
        fits = [fit_logistic(x_NC, labels, n_classes, decay=decay) for decay in _DECAYS]
        losses = [
            float(nn.functional.cross_entropy(((asked - mean) / std) @ w[:-1] + w[-1], truth))
            for w in fits
        ]
        weight = fits[int(np.argmin(losses))]
    own, bias = weight[:-1] / std[:, None], weight[-1]
    read = linear.head.reads[0]
    assert isinstance(read, nn.Linear)
    assert linear.pool is not None
    with torch.no_grad():
        read.weight.copy_(own.T)
        read.bias.copy_(bias - mean @ own)
        linear.pool.weigh.weight.zero_()  # the score of a slide is the mean of its cells
    return linear


@torch.no_grad()
def _tokens_of(model: Model, tiles: Labeled, jitter: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean tokens of tiles, alone and amid others, `(V N, C)`, and their classes."""
    rng = np.random.default_rng(0)
    some = np.sort(rng.permutation(len(tiles))[:_MOST])
    views, stain = [tiles.images[some]], model.card.domain == "slide"
    if jitter:
        changed = [augment(image, rng, stain=stain, colors=jitter) for image in views[0]]
        views.append(np.stack(changed))
    found = []
    for images in views:
        parts = range(0, len(images), _BATCH)
        alone = torch.cat([_stem(model, images[i : i + _BATCH]).mean(dim=(2, 3)) for i in parts])
        amid = torch.empty_like(alone)
        for picture, places in sheets(images, token_px=model.config.token_px, seed=1):
            tokens = _stem(model, picture[None])[0]
            for tile, rows, cols in places:
                amid[tile] = tokens[:, rows, cols].mean(dim=(1, 2))
        found += [alone, amid]
    return torch.cat(found).cpu().float(), torch.from_numpy(tiles.labels[some]).repeat(len(found))


def _stem(model: Model, images: NDArray[np.uint8]) -> torch.Tensor:
    pixels = torch.from_numpy(np.ascontiguousarray(images)).to(model.encoder.fc.weight.device)
    return model.encoder.stem(model.normalize(pixels).contiguous(memory_format=torch.channels_last))


def choose(candidates: Mapping[str, Model], validation: Labeled) -> tuple[str, dict[str, float]]:
    """Return the best model by its balanced accuracy on held-out data, and those of all.

    That of tiles is the mean of tiles alone and amid others.
    """
    scores = {name: _score(model, validation) for name, model in candidates.items()}
    return max(scores, key=lambda name: scores[name]), scores


def _score(model: Model, data: Labeled) -> float:
    alone = measure_data(model, data).metrics["balanced_accuracy"]
    if not isinstance(data, LabeledTiles) or data.slides:
        return alone
    return (alone + measure_amid(model, data)["amid_balanced_accuracy"]) / 2
