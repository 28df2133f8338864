"""From a folder of tiles to a model with an honest card, and back: evaluation."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from atlas_wsi.errors import DatasetError
from atlas_wsi.models.card import ModelCard, ModelClass, class_colors
from atlas_wsi.training import parallel
from atlas_wsi.training.calibration import fit_temperature
from atlas_wsi.training.cards import card_text, split_text
from atlas_wsi.training.evaluation import Evaluation, class_places, evaluate
from atlas_wsi.training.loop import channel_statistics, train
from atlas_wsi.training.metrics import color_baseline, confusion, summarise, tile_logits
from atlas_wsi.training.tiles import TileSet, read_tiles, split, split_three

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Literal

    from numpy.typing import NDArray

    from atlas_wsi.models.model import Model
    from atlas_wsi.models.start import Start
    from atlas_wsi.progress import CancelToken, Progress
    from atlas_wsi.training.history import History
    from atlas_wsi.training.recipe import Recipe

__all__ = [
    "Evaluation",
    "calibrate",
    "evaluate",
    "held_out_tiles",
    "train_set",
    "train_tiles",
    "write_card",
]


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
    model = train_set(
        tiles,
        name=name,
        domain=domain,
        mpp=mpp / zoom,
        recipe=recipe,
        held_out=held_out,
        validation=validation,
        texts=texts,
        stored=stored,
        init=init,
        checkpoint=checkpoint,
        history=history,
        progress=progress,
        cancel=cancel,
    )
    facts = model.card.training | {"zoom": zoom}
    model.card = model.card.model_copy(update={"training": facts})
    return model


def train_set(
    tiles: TileSet,
    *,
    name: str,
    domain: Literal["slide", "scene"],
    mpp: float,
    recipe: Recipe,
    held_out: float = 0.2,
    validation: float = 0.0,
    texts: Mapping[str, Any] | None = None,
    stored: torch.dtype = torch.float32,
    init: Model | Start | None = None,
    checkpoint: Path | None = None,
    history: History | None = None,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> Model:
    """Train a model on labelled tiles, wherever they were cut out of.

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
    texts
        ``licence``, ``data`` and ``limits`` of the card.
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
    known, chosen, asked = split_three(
        tiles, held_out=held_out, validation=validation, seed=recipe.seed
    )
    train_part, held_part = tiles.subset(known), tiles.subset(asked)
    choice = tiles.subset(chosen) if len(chosen) else None
    mean, std = channel_statistics(train_part.images)
    colors = class_colors(len(tiles.classes))
    card = ModelCard(
        name=name,
        domain=domain,
        classes=tuple(
            ModelClass(name=label, color=color)
            for label, color in zip(tiles.classes, colors, strict=True)
        ),
        mpp=mpp,
        mean=mean,
        std=std,
        split=split_text(tiles, held_part, held_out, recipe.seed, n_chosen=len(chosen)),
        **(texts or {}),
    )
    model = train(
        train_part,
        card,
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
    if choice is not None:
        _set_temperature(model, choice)
    found = evaluate(model, held_part, progress=progress)
    guessed = color_baseline(
        train_part.images, train_part.labels, held_part.images, len(tiles.classes)
    )
    color = summarise(confusion(held_part.labels, guessed, len(tiles.classes)))
    metrics = dict(found.metrics) | {"ece": found.reliability.ece}
    metrics |= {f"colour_baseline_{k}": v for k, v in color.items()}
    model.card = model.card.model_copy(
        update={
            "metrics": {k: round(v, 4) for k, v in metrics.items()},
            "confusion": tuple(tuple(row) for row in found.confusion.tolist()),
            "training": model.card.training
            | {
                "held_out": held_out,
                "validation": validation,
                "tiles_by_class": _by_class(tiles, known),
            },
        }
    )
    return model


def calibrate(
    model: Model, tiles: TileSet, *, seed: int = 0, progress: Progress | None = None
) -> TileSet:
    """Fit a model's temperature on half of the groups of some tiles.

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
    TileSet
        The other half, to measure it on.
    """
    measured, fitted = split(tiles, held_out=0.5, seed=seed)
    _set_temperature(model, tiles.subset(fitted), progress=progress)
    return tiles.subset(measured)


def _set_temperature(model: Model, tiles: TileSet, *, progress: Progress | None = None) -> None:
    place = class_places(model, tiles)
    logits, valid = tile_logits(model, tiles.images, progress=progress)
    temperature = fit_temperature(logits, valid, place[tiles.labels])
    model.card = model.card.model_copy(update={"temperature": round(temperature, 4)})


def _by_class(tiles: TileSet, which: NDArray[np.int64]) -> dict[str, int]:
    counts = np.bincount(tiles.labels[which], minlength=len(tiles.classes))
    return dict(zip(tiles.classes, counts.tolist(), strict=True))


def held_out_tiles(model: Model, tiles: TileSet) -> TileSet:
    """Return the tiles that were held out when a model was trained on a folder.

    Parameters
    ----------
    model
        A model whose card tells the seed and the share.
    tiles
        All tiles of that folder.

    Returns
    -------
    TileSet
        The held-out part.

    Raises
    ------
    DatasetError
        If the card does not tell, or the folder is not the one it was trained on.
    """
    facts = model.card.training
    if not {"seed", "held_out", "tiles"} <= set(facts):
        raise DatasetError(
            f"The card of {model.card.name} does not tell how its tiles were split.",
            hint="Evaluate all tiles with --split all.",
        )
    known, _, asked = split_three(
        tiles,
        held_out=float(facts["held_out"]),
        validation=float(facts.get("validation", 0)),
        seed=int(facts["seed"]),
    )
    found = _by_class(tiles, known)
    before = facts.get("tiles_by_class")
    fits = (
        all(before.get(k) == n for k, n in found.items())
        if before
        else (len(known) == facts["tiles"])
    )
    if not fits:
        raise DatasetError(
            f"{model.card.name} was trained on {facts['tiles']} tiles, this folder's split has "
            f"{len(known)}: it is another folder.",
            hint="Evaluate all tiles with --split all.",
        )
    return tiles.subset(asked)


def write_card(model: Model, path: Path) -> tuple[Path, Path]:
    """Write a model's card beside its file, for people and for programs.

    Parameters
    ----------
    model
        The model.
    path
        The model's file.

    Returns
    -------
    tuple
        ``.card.md`` and ``.card.json``.
    """
    text, data = path.with_suffix(".card.md"), path.with_suffix(".card.json")
    data.write_text(json.dumps(model.card.model_dump(mode="json"), indent=2), encoding="utf-8")
    text.write_text(card_text(model.card), encoding="utf-8")
    return text, data
