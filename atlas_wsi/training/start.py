"""The model that a training starts from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from atlas_wsi.models.atlas import make_config
from atlas_wsi.models.checkpoints import load_exactly
from atlas_wsi.models.model import Model

if TYPE_CHECKING:
    from atlas_wsi.models.card import ModelCard
    from atlas_wsi.training.recipe import Recipe


def new_model(n_classes: int, card: ModelCard, recipe: Recipe, init: Model | None) -> Model:
    """Make the model that a training starts from.

    Parameters
    ----------
    n_classes
        How many classes it tells apart.
    card
        Its card.
    recipe
        Its sizes, and the seed of its weights.
    init
        A model of the same sizes whose weights to take; random ones by default.

    Returns
    -------
    Model
        In training mode.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        config = make_config(
            recipe.backbone,
            dim=recipe.dim,
            depths=recipe.depths,
            n_scales=recipe.n_scales,
            n_classes=n_classes,
        )
        model = Model(config, card)
    if init is not None:
        load_exactly(model, init.state_dict(), source=f"the model {init.card.name}")
    model.encoder.stem.to(memory_format=torch.channels_last)
    return model.train()
