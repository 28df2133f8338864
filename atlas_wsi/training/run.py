"""From a folder of tiles to a model with an honest card, and back: evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import torch

from atlas_wsi.errors import DatasetError
from atlas_wsi.training.cards import given_text, split_text, write_card
from atlas_wsi.training.cross import parts_of_fold
from atlas_wsi.training.evaluation import Evaluation, evaluate
from atlas_wsi.training.fitting import About, Parts, count_by_class, fit, set_temperature
from atlas_wsi.training.folds import make_folds
from atlas_wsi.training.tiles import read_tiles, split, split_three

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Literal

    import numpy as np
    from numpy.typing import NDArray

    from atlas_wsi.models.model import Model
    from atlas_wsi.models.start import Start
    from atlas_wsi.progress import CancelToken, Progress
    from atlas_wsi.training.history import History
    from atlas_wsi.training.recipe import Recipe
    from atlas_wsi.training.tiles import Labeled

__all__ = [
    "Evaluation",
    "calibrate",
    "evaluate",
    "held_out_tiles",
    "train_set",
    "train_tiles",
    "write_card",
]

Some = TypeVar("Some", bound="Labeled")
"""Tiles, or slides: a part of them is of the same kind."""


def train_tiles(
    folder: str | os.PathLike[str],
    *,
    name: str,
    domain: Literal["slide", "scene"],
    mpp: float,
    recipe: Recipe,
    held_out: float = 0.2,
    validation: float = 0.0,
    zoom: float = 1.0,
    texts: Mapping[str, Any] | None = None,
    stored: torch.dtype = torch.float32,
    init: Model | Start | None = None,
    checkpoint: Path | None = None,
    history: History | None = None,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> Model:
    """Train a model on class folders of tiles and measure it on tiles held out by group."""
    tiles = read_tiles(folder, zoom=zoom, progress=progress)
    return train_set(
        tiles,
        name=name,
        domain=domain,
        mpp=mpp / zoom,
        recipe=recipe,
        held_out=held_out,
        validation=validation,
        texts=texts,
        facts={"zoom": zoom},
        stored=stored,
        init=init,
        checkpoint=checkpoint,
        history=history,
        progress=progress,
        cancel=cancel,
    )


def train_set(
    tiles: Labeled,
    *,
    name: str,
    domain: Literal["slide", "scene"],
    mpp: float,
    recipe: Recipe,
    held_out: float = 0.2,
    validation: float = 0.0,
    parts: Parts | None = None,
    texts: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
    stored: torch.dtype = torch.float32,
    init: Model | Start | None = None,
    checkpoint: Path | None = None,
    history: History | None = None,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> Model:
    """Train a model on labeled tiles, wherever they were cut out of, or on slides."""
    told = {"held_out": held_out, "validation": validation} if parts is None else {}
    if parts is None:
        known, chosen, asked = split_three(
            tiles, held_out=held_out, validation=validation, seed=recipe.seed
        )
        how = split_text(tiles, tiles.subset(asked), held_out, recipe.seed, n_chosen=len(chosen))
        parts = Parts(known=known, chosen=chosen, asked=asked)
    else:
        how = given_text(tiles, n_held=len(parts.asked), n_chosen=len(parts.chosen))
    return fit(
        tiles,
        parts,
        About(name=name, domain=domain, mpp=mpp, texts={**(texts or {}), "split": how}),
        recipe,
        facts={**(facts or {}), **told},
        stored=stored,
        init=init,
        checkpoint=checkpoint,
        history=history,
        progress=progress,
        cancel=cancel,
    )


def calibrate(
    model: Model, tiles: Some, *, seed: int = 0, progress: Progress | None = None
) -> Some:
    """Fit a model's temperature on half of the groups of some tiles or slides."""
    measured, fitted = split(tiles, held_out=0.5, seed=seed)
    set_temperature(model, tiles.subset(fitted), progress=progress)
    return tiles.subset(measured)


def held_out_tiles(model: Model, tiles: Some) -> Some:
    """Return the tiles or slides that were held out when a model was trained on them."""
    facts = model.card.training
    if "folds" in facts and "fold" not in facts:
        raise DatasetError(
            f"{model.card.name} was trained on all {tiles.unit}; its figures are those of its folds.",
            hint="Evaluate the model of a fold (.fold0.safetensors), or others with --split all.",
        )
    if not {"seed", tiles.unit} <= set(facts) or not {"held_out", "fold"} & set(facts):
        raise DatasetError(
            f"The card of {model.card.name} does not tell how its {tiles.unit} were split.",
            hint=f"Evaluate all {tiles.unit} with --split all.",
        )
    known, asked = _parts_in(facts, tiles)
    found = count_by_class(tiles, known)
    before = facts.get(f"{tiles.unit}_by_class")
    fits = (
        all(before.get(k) == n for k, n in found.items())
        if before
        else (len(known) == facts[tiles.unit])
    )
    if not fits:
        raise DatasetError(
            f"{model.card.name} was trained on {facts[tiles.unit]} {tiles.unit}, this split has "
            f"{len(known)}: these are others.",
            hint=f"Evaluate all {tiles.unit} with --split all.",
        )
    return tiles.subset(asked)


def _parts_in(
    facts: Mapping[str, Any], tiles: Labeled
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the training and the held-out tiles of what a card says."""
    seed, validation = int(facts["seed"]), float(facts.get("validation", 0))
    if "fold" in facts:
        fold_of = make_folds(tiles, n=int(facts["folds"]), seed=seed)
        fold = int(facts["fold"])
        parts = parts_of_fold(tiles, fold_of, fold, validation=validation, seed=seed)
        return parts.known, parts.asked
    known, _, asked = split_three(
        tiles, held_out=float(facts["held_out"]), validation=validation, seed=seed
    )
    return known, asked
