"""The model that a training starts from."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from atlas_wsi.errors import CheckpointMismatchError
from atlas_wsi.models.atlas import AtlasConfig, make_config
from atlas_wsi.models.model import Model
from atlas_wsi.models.start import Start, take_weights
from atlas_wsi.models.timm_stem import PREFIX

if TYPE_CHECKING:
    from atlas_wsi.models.card import ModelCard
    from atlas_wsi.training.recipe import Recipe


def new_model(n_classes: int, card: ModelCard, recipe: Recipe, init: Model | Start | None) -> Model:
    """Make the model that a training starts from."""
    start = Start.of(init) if isinstance(init, Model) else init
    config = _sizes(recipe, start, n_classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = Model(config, card)
    facts: dict[str, Any] = {
        "backbone": config.backbone,
        "dim": config.dim,
        "depths": list(config.depths),
        "n_scales": config.n_scales,
    }
    if start is not None:
        taken = take_weights(model, start)
        facts["init"] = {"name": start.name, "taken": str(taken), "training": dict(start.training)}
        if start.normalization is not None:
            mean, std = start.normalization
            card = card.model_copy(update={"mean": mean, "std": std})
    model.card = card.model_copy(update={"training": facts})
    model.encoder.stem.to(memory_format=torch.channels_last)
    return model.train()


def _sizes(recipe: Recipe, start: Start | None, n_classes: int) -> AtlasConfig:
    given = start.config if start is not None else None
    timm = recipe.encoder.removeprefix(PREFIX) if recipe.encoder else None
    if timm is not None and (recipe.dim, recipe.backbone, given) != (None, None, None):
        raise CheckpointMismatchError(
            f"The encoder {recipe.encoder} decides channels and backbone by itself.",
            hint="Give neither --dim nor --backbone nor --init beside --encoder.",
        )
    if given is None:
        return make_config(
            "timm+msa" if timm else recipe.backbone or "atlas",
            timm=timm,
            dim=recipe.dim or 128,
            depths=recipe.depths or (1, 2),
            n_scales=recipe.n_scales or 3,
            n_classes=n_classes,
        )
    assert start is not None
    for what, asked, found in (
        ("backbone", recipe.backbone, given.backbone),
        ("dim", recipe.dim, given.dim // (2 if given.backbone == "mambavision" else 1)),
    ):
        if asked is not None and asked != found:
            raise CheckpointMismatchError(
                f"{start.name} has the {what} {found}, asked for is {asked}.",
                hint=f"Leave --{what} away: with --init it is that of the model.",
            )
    alone = given.backbone == "mambavision"
    return replace(
        given,
        n_classes=n_classes,
        alignment="spatial",
        depths=given.depths if alone else recipe.depths or given.depths,
        n_scales=given.n_scales if alone else recipe.n_scales or given.n_scales,
    )
