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
    from atlas_wsi.training.tiles import Labelled

__all__ = [
    "Evaluation",
    "calibrate",
    "evaluate",
    "held_out_tiles",
    "train_set",
    "train_tiles",
    "write_card",
]

Some = TypeVar("Some", bound="Labelled")
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
    """Train a model on class folders of tiles and measure it on tiles held out by group.

    Parameters
    ----------
    folder
        See `atlas_wsi.training.tiles.read_tiles`.
    name
        Name of the model.
    domain
        ``"slide"`` for stained tissue, ``"scene"`` for land.
    mpp
        Micrometres a pixel of the tiles' files.
    recipe
        Sizes, length and seed.
    held_out
        Share of the groups of each class that is kept for measuring.
    validation
        Share of the other groups that the best weights and the temperature are chosen by; they
        are not trained on. 0 keeps the last weights, with temperature 1.
    zoom
        Pixels the model sees a pixel of the tiles: 0.5 makes a model of half the resolution.
    texts
        ``licence``, ``data`` and ``limits`` of the card.
    stored
        Type the weights will be stored in; they are rounded to it before they are measured.
    init
        Whose weights to take where they fit, and sizes that the recipe leaves open.
    checkpoint
        File to go on from after a kill; see `atlas_wsi.training.loop.train`.
    history
        Filled with the training curve.
    progress
        Told how far the work is.
    cancel
        Stops the training.

    Returns
    -------
    Model
        With held-out figures, beside those of colour alone, in its card.
    """
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
    tiles: Labelled,
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
    """Train a model on labelled tiles, wherever they were cut out of, or on slides.

    Parameters
    ----------
    tiles
        All tiles, at the resolution that the model will see.
    name
        Name of the model.
    domain
        ``"slide"`` for stained tissue, ``"scene"`` for land.
    mpp
        Micrometres a pixel of the tiles.
    recipe
        Sizes, length and seed.
    held_out
        Share of the groups that is kept for measuring.
    validation
        Share of the other groups that the best weights and the temperature are chosen by.
    parts
        What each is for, in the place of the two shares.
    texts
        ``licence``, ``data`` and ``limits`` of the card.
    facts
        Added to what the card says of the training.
    stored
        Type the weights will be stored in; they are rounded to it before they are measured.
    init
        Whose weights to take where they fit, and sizes that the recipe leaves open.
    checkpoint
        File to go on from after a kill.
    history
        Filled with the training curve.
    progress
        Told how far the work is.
    cancel
        Stops the training.

    Returns
    -------
    Model
        With held-out figures, beside those of colour alone, in its card; of several processes
        (`atlas_wsi.training.parallel.joined`) only the first one measures.
    """
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
    """Fit a model's temperature on half of the groups of some tiles or slides.

    Parameters
    ----------
    model
        The model; the temperature is put into its card.
    tiles
        Tiles that it was not trained on.
    seed
        Decides which half.
    progress
        Told how many tiles are done.

    Returns
    -------
    Labelled
        The other half, to measure it on.
    """
    measured, fitted = split(tiles, held_out=0.5, seed=seed)
    set_temperature(model, tiles.subset(fitted), progress=progress)
    return tiles.subset(measured)


def held_out_tiles(model: Model, tiles: Some) -> Some:
    """Return the tiles or slides that were held out when a model was trained on them.

    Parameters
    ----------
    model
        A model whose card tells the seed and the share.
    tiles
        All of them.

    Returns
    -------
    Labelled
        The held-out part.

    Raises
    ------
    DatasetError
        If the card does not tell, or the folder is not the one it was trained on.
    """
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
    facts: Mapping[str, Any], tiles: Labelled
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
