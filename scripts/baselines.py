"""Train the baselines of a bundled model's card on its tiles, for the same processor time.

    python scripts/baselines.py lung-he OUT/lung

resnet18 is timm's, without pretraining, on single tiles with the same augmentation and the same
split; MambaVision has the same width as the model and the same training.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import timm
import torch
from torch.nn import functional
from train_shipped_models import MODELS

from atlas_wsi.training.data.augment import augment
from atlas_wsi.training.data.tile_folder import read_tile_folder, read_tiles
from atlas_wsi.training.metrics import confusion, summarize
from atlas_wsi.training.norms import channel_statistics
from atlas_wsi.training.recipe import CardSpec, Recipe, TrainOptions
from atlas_wsi.training.split import split
from atlas_wsi.training.train import train

if TYPE_CHECKING:
    from atlas_wsi.training.data.labeled import LabeledTiles


def processor_time() -> float:
    """Return the processor time of this process and of its finished children, in seconds."""
    return sum(os.times()[:4])


def resnet18(
    known: LabeledTiles, test: LabeledTiles, *, stain: bool, jitter: float, minutes: float
) -> float:
    """Train until the time is up; return the balanced accuracy on the held-out tiles."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    net = timm.create_model("resnet18", pretrained=False, num_classes=len(known.classes))
    net = net.to(memory_format=torch.channels_last).train()
    mean, std = (
        torch.tensor(v)[None, :, None, None] * 255 for v in channel_statistics(known.images)
    )
    rate, size = 1e-3, max(16, 400_000 // known.images[0, ..., 0].size)
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=0.05)

    def prepare(images: np.ndarray) -> torch.Tensor:
        x = torch.from_numpy(images).permute(0, 3, 1, 2).float()
        return ((x - mean) / std).contiguous(memory_format=torch.channels_last)

    start = processor_time()
    while (done := (processor_time() - start) / (60 * minutes)) < 1:
        chosen = rng.choice(len(known), size)
        images = np.stack(
            [augment(known.images[i], rng, stain=stain, colors=jitter) for i in chosen]
        )
        for group in optimizer.param_groups:
            group["lr"] = rate * min(done / 0.05 + 0.01, 0.5 * (1 + np.cos(np.pi * done)))
        with torch.autocast("cpu", torch.bfloat16):
            logits = net(prepare(images))
        loss = functional.cross_entropy(logits.float(), torch.from_numpy(known.labels[chosen]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    net.eval()
    with torch.inference_mode():
        parts = [test.images[i : i + 64] for i in range(0, len(test), 64)]
        said = torch.cat([net(prepare(part)).argmax(dim=1) for part in parts]).numpy()
    return summarize(confusion(test.labels, said, len(test.classes)))["balanced_accuracy"]


def train_some(name: str, folder: Path, recipe: Recipe) -> tuple[float, float]:
    """Train like the bundled model; return the balanced accuracy and the processor time, s."""
    facts = MODELS[name]
    start = processor_time()
    model = train(
        read_tile_folder(folder, mpp=facts["mpp"]),
        CardSpec(name=name, domain=facts["domain"], mpp=facts["mpp"] / facts["zoom"]),
        recipe,
        TrainOptions(validation_fraction=0.15),
    )
    return model.card.metrics["balanced_accuracy"], processor_time() - start


def seconds_an_epoch(name: str, folder: Path, recipe: Recipe) -> float:
    """Return the processor time of one epoch, without reading and evaluation."""
    few, more = 0.2, 3.2
    spent = [train_some(name, folder, replace(recipe, epochs=n))[1] for n in (few, more)]
    return (spent[1] - spent[0]) / (more - few)


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, help="processor time of each; measured if absent")
    parser.add_argument("--only", choices=("resnet18", "mambavision"))
    args = parser.parse_args()
    facts = MODELS[args.model]
    recipe = replace(facts["recipe"], n_validations=1, patience=0)
    minutes = args.minutes
    if minutes is None:
        minutes = seconds_an_epoch(args.model, args.folder, recipe) * recipe.epochs / 60
        print(f"{args.model} takes {minutes:.1f} minutes of processor time", flush=True)
    if args.only != "mambavision":
        tiles = read_tiles(args.folder, zoom=facts["zoom"])
        parts = split(tiles, test=0.2, validation=0.15, seed=recipe.seed)
        score = resnet18(
            tiles.subset(parts.train),
            tiles.subset(parts.test),
            stain=facts["domain"] == "slide",
            jitter=recipe.color_jitter or 0.0,
            minutes=minutes,
        )
        print(json.dumps({"resnet18": score}), flush=True)
    if args.only != "resnet18":
        recipe = replace(recipe, backbone="mambavision")
        epochs = 60 * minutes / seconds_an_epoch(args.model, args.folder, recipe)
        score, spent = train_some(args.model, args.folder, replace(recipe, epochs=epochs))
        print(json.dumps({"mambavision": score, "epochs": epochs, "minutes": spent / 60}))


if __name__ == "__main__":
    main()
