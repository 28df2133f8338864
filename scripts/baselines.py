"""Train the baselines of a shipped model's card on its tiles, for the processor time it took.

    python scripts/baselines.py lung-he OUT/lung --minutes 6

resnet18 is timm's, without pretraining, on single tiles with the same augmentation and the same
split; MambaVision has the same width as the model and goes through the same training.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import timm
import torch
from torch.nn import functional
from train_shipped_models import MODELS

from atlas_wsi.training.augment import augment
from atlas_wsi.training.loop import channel_statistics
from atlas_wsi.training.metrics import confusion, summarise
from atlas_wsi.training.run import train_tiles
from atlas_wsi.training.tiles import TileSet, read_tiles, split_three


def resnet18(
    known: TileSet, asked: TileSet, *, stain: bool, jitter: float, minutes: float
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
    optimiser = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=0.05)

    def prepare(images: np.ndarray) -> torch.Tensor:
        x = torch.from_numpy(images).permute(0, 3, 1, 2).float()
        return ((x - mean) / std).contiguous(memory_format=torch.channels_last)

    start = time.process_time()
    while (done := (time.process_time() - start) / (60 * minutes)) < 1:
        chosen = rng.choice(len(known), size)
        images = np.stack(
            [augment(known.images[i], rng, stain=stain, colors=jitter) for i in chosen]
        )
        for group in optimiser.param_groups:
            group["lr"] = rate * min(done / 0.05 + 0.01, 0.5 * (1 + np.cos(np.pi * done)))
        with torch.autocast("cpu", torch.bfloat16):
            logits = net(prepare(images))
        loss = functional.cross_entropy(logits.float(), torch.from_numpy(known.labels[chosen]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    net.eval()
    with torch.inference_mode():
        parts = [asked.images[i : i + 64] for i in range(0, len(asked), 64)]
        said = torch.cat([net(prepare(part)).argmax(dim=1) for part in parts]).numpy()
    return summarise(confusion(asked.labels, said, len(asked.classes)))["balanced_accuracy"]


def mambavision(name: str, folder: Path, minutes: float) -> float:
    """Train for about the time; return the balanced accuracy on the held-out tiles."""
    facts = MODELS[name]
    recipe = replace(facts["recipe"], backbone="mambavision", checks=1)

    def run(epochs: float) -> tuple[float, float]:
        start = time.process_time()
        model = train_tiles(
            folder,
            name=name,
            domain=facts["domain"],
            mpp=facts["mpp"],
            zoom=facts["zoom"],
            recipe=replace(recipe, epochs=epochs),
            validation=0.15,
        )
        return model.card.metrics["balanced_accuracy"], time.process_time() - start

    trial = 0.3
    _, spent = run(trial)
    score, spent = run(max(trial, trial * 60 * minutes / spent))
    print(f"mambavision took {spent / 60:.1f} minutes")
    return score


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, required=True, help="processor time of each")
    args = parser.parse_args()
    facts = MODELS[args.model]
    tiles = read_tiles(args.folder, zoom=facts["zoom"])
    known, _, asked = split_three(tiles, held_out=0.2, validation=0.15, seed=facts["recipe"].seed)
    found = {
        "resnet18": resnet18(
            tiles.subset(known),
            tiles.subset(asked),
            stain=facts["domain"] == "slide",
            jitter=facts["recipe"].jitter,
            minutes=args.minutes,
        )
    }
    print(json.dumps(found), flush=True)
    found["mambavision"] = mambavision(args.model, args.folder, args.minutes)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
