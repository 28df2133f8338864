"""Train on one part of some tiles, choose by a second, measure on a third, and say so in the card."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from atlas_wsi.models.card import ModelCard, ModelClass, class_colors
from atlas_wsi.training import parallel
from atlas_wsi.training.calibration import FEWEST, fit_temperature
from atlas_wsi.training.evaluation import class_places, evaluate
from atlas_wsi.training.loop import channel_statistics, train
from atlas_wsi.training.marks import marks_of
from atlas_wsi.training.metrics import color_baseline, confusion, summarize

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Literal

    from numpy.typing import NDArray

    from atlas_wsi.models.model import Model
    from atlas_wsi.models.start import Start
    from atlas_wsi.progress import CancelToken, Progress
    from atlas_wsi.training.history import History
    from atlas_wsi.training.recipe import Recipe
    from atlas_wsi.training.tiles import Labeled


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Parts:
    """Which tiles a model is made with."""

    known: NDArray[np.int64]
    """Places of the tiles that it is trained on."""
    chosen: NDArray[np.int64]
    """Those that choose the weights and the temperature; may be empty."""
    asked: NDArray[np.int64]
    """Those that it is measured on, once; may be empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What a card says beside what training finds out."""

    name: str
    """Name of the model."""
    domain: Literal["slide", "scene"]
    """Stained tissue, or land."""
    mpp: float
    """Micrometers a pixel of the tiles."""
    texts: Mapping[str, Any] | None = None
    """``licence``, ``data``, ``limits`` and ``split`` of the card."""

    def card(self, tiles: Labeled) -> ModelCard:
        """Make the card of a model before training."""
        mean, std = channel_statistics(tiles.images)
        colors = class_colors(len(tiles.classes))
        return ModelCard(
            name=self.name,
            domain=self.domain,
            classes=tuple(
                ModelClass(name=label, color=color)
                for label, color in zip(tiles.classes, colors, strict=True)
            ),
            mpp=self.mpp,
            mean=mean,
            std=std,
            **(self.texts or {}),
        )


def fit(
    tiles: Labeled,
    parts: Parts,
    about: About,
    recipe: Recipe,
    *,
    facts: Mapping[str, Any],
    stored: torch.dtype = torch.float32,
    init: Model | Start | None = None,
    checkpoint: Path | None = None,
    history: History | None = None,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> Model:
    """Train, choose, calibrate and measure a model."""
    train_part = tiles.subset(parts.known)
    choice = tiles.subset(parts.chosen) if len(parts.chosen) else None
    model = train(
        train_part,
        about.card(train_part),
        recipe,
        init=init,
        validation=choice,
        checkpoint=checkpoint,
        history=history,
        progress=progress,
        cancel=cancel,
    )
    model.cpu().to(stored).float()
    if parallel.rank() != 0:
        return model
    if choice is not None and len(choice) >= FEWEST:
        set_temperature(model, choice)
    found = _figures(model, train_part, tiles.subset(parts.asked), progress)
    told = {
        **model.card.training,
        **facts,
        f"{tiles.unit}_by_class": count_by_class(tiles, parts.known),
    }
    if tiles.unit == "slides":
        used = np.concatenate([parts.known, parts.chosen])
        told["trained_on"] = sorted(marks_of([tiles.paths[i] for i in used]))
    model.card = model.card.model_copy(update=found | {"training": told})
    return model


def _figures(
    model: Model, known: Labeled, held: Labeled, progress: Progress | None
) -> dict[str, Any]:
    """Return metrics and confusion for the card; nothing without held-out tiles."""
    if not len(held):
        return {}
    found = evaluate(model, held, progress=progress)
    metrics = dict(found.metrics) | {"ece": found.reliability.ece}
    if held.unit == "tiles":
        guessed = color_baseline(known.images, known.labels, held.images, len(held.classes))
        color = summarize(confusion(held.labels, guessed, len(held.classes)))
        metrics |= {f"colour_baseline_{k}": v for k, v in color.items()}
    return {
        "metrics": {k: round(v, 4) for k, v in metrics.items()},
        "confusion": tuple(tuple(row) for row in found.confusion.tolist()),
    }


def set_temperature(model: Model, tiles: Labeled, *, progress: Progress | None = None) -> None:
    """Fit a model's temperature and put it into its card."""
    place = class_places(model, tiles)
    logits, valid = tiles.logits(model, progress=progress)
    temperature = fit_temperature(logits, valid, place[tiles.labels])
    model.card = model.card.model_copy(update={"temperature": round(temperature, 4)})


def count_by_class(tiles: Labeled, which: NDArray[np.int64]) -> dict[str, int]:
    """Count some tiles by class."""
    counts = np.bincount(tiles.labels[which], minlength=len(tiles.classes))
    return dict(zip(tiles.classes, counts.tolist(), strict=True))
