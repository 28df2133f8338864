"""The available models and their cards."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from atlas_wsi.files import sha256_of
from atlas_wsi.models.model import read_card
from atlas_wsi.models.registry import (
    cached_models,
    is_model,
    is_tile_classifier,
    load_model,
    shipped_models,
)
from atlas_wsi.models.wsinfer import card_of, local_tile_classifiers, read_config

if TYPE_CHECKING:
    import os

    from atlas_wsi.models.card import ModelCard


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry:
    """A model that can be used by its name."""

    name: str
    """What `load_model` takes, or the name of the folder of a tile classifier."""
    where: Literal["shipped", "cached", "local"]
    """In the package, in the hub's cache, or in the current folder."""
    backbone: str
    """Kind of encoder; ``"by tile"`` for tile classifiers of other projects."""
    card: ModelCard
    """Classes, resolution, accuracy, limits."""


def list_models() -> list[ModelEntry]:
    """List the shipped models, those in the hub's cache and those in the current folder.

    Returns
    -------
    list
        One entry per model.
    """
    local = {str(path): path for path in sorted(Path().glob("*.safetensors")) if is_model(path)}
    files: dict[Literal["shipped", "cached", "local"], dict[str, Path]] = {
        "shipped": shipped_models(),
        "cached": cached_models(),
        "local": local,
    }
    entries = []
    for where, paths in files.items():
        for name, path in paths.items():
            card, backbone = read_card(path)
            entries.append(ModelEntry(name=name, where=where, backbone=backbone, card=card))
    for name, path in local_tile_classifiers(Path()).items():
        card = card_of(*read_config(path))
        entries.append(ModelEntry(name=name, where="local", backbone="by tile", card=card))
    return entries


def describe_model(name: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the card of a model and the facts of its file.

    Parameters
    ----------
    name
        Shipped name, file, or the folder of a tile classifier, whose network is not loaded.

    Returns
    -------
    dict
        The card's fields, the backbone and the SHA-256 of the weights, as JSON types.

    Raises
    ------
    UnknownModelError
        If there is no such model.
    """
    if is_tile_classifier(name):
        config, weights = read_config(name)
        return card_of(config, weights).model_dump(mode="json") | {
            "backbone": "tile classifier: sees one patch at a time",
            "transform": [step.model_dump(mode="json") for step in config.transform],
            "sha256": sha256_of(weights),
        }
    model = load_model(name)
    return model.card.model_dump(mode="json") | {
        "backbone": model.config.backbone,
        "weights": sum(parameter.numel() for parameter in model.parameters()),
        "sha256": model.sha256,
    }
