"""Write losses and gradients of some steps by all processes, and by the first one alone.

torchrun --nproc-per-node 2 gradients_of_steps.py FOLDER OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

from atlas_wsi.models.card import ModelCard, ModelClass
from atlas_wsi.training import distributed
from atlas_wsi.training.data.mosaics import Batches
from atlas_wsi.training.data.tile_folder import read_tiles
from atlas_wsi.training.objectives import losses
from atlas_wsi.training.recipe import Recipe
from atlas_wsi.training.trainer import new_model

RECIPE = Recipe(dim=32, depths=(1, 1), n_scales=2, megapixels=0.3, mosaics=2 / 3, color_jitter=1.0)
STEPS = (0, 17, 2, 4)  # single tiles, one large mosaic, some mosaics


def main(folder: Path, out: Path) -> None:
    tiles = read_tiles(folder)
    with distributed.joined():
        is_first = distributed.rank() == 0
        two = gradients(tiles)
    if is_first:
        torch.save({"one": gradients(tiles), "two": two}, out)


def gradients(tiles):
    classes = tuple(ModelClass(name=name, color="#888888") for name in tiles.classes)
    card = ModelCard(name="t", domain="slide", classes=classes, mpp=1.0)
    model = new_model(len(classes), card, RECIPE, None)
    for norm in model.modules():
        if distributed.n_ranks() == 1 and isinstance(norm, nn.BatchNorm2d):
            # channels last, torch's float32 statistics of a million pixels are 2e-4 off
            norm.register_forward_pre_hook(lambda _, x: (x[0].contiguous(),))
    run = distributed.shard(model)
    part = distributed.rank(), distributed.n_ranks()
    found = {}
    for step in STEPS:
        batch = Batches(tiles=tiles, recipe=RECIPE, stain=True, part=part)[step]
        distributed.set_idle(model, idle=batch.idle)
        model.zero_grad()
        dense, slide = losses(model, batch, run=run)
        (dense + slide).backward()
        pictures = torch.tensor(0 if batch.idle else len(batch.images))
        found[step] = {
            "loss": float(distributed.total(dense.detach())) / distributed.n_ranks(),
            "pictures": int(distributed.total(pictures)),
            "gradients": {
                name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None
            },
        }
    found["running"] = {k: v for k, v in model.named_buffers() if "running" in k}
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
