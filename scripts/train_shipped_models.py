"""Train the models of the package.

The shipped weights went through these phases while the code was still changing (colour changes,
batch norm): another run gives similar weights, not the same.

    python scripts/train_shipped_models.py lung-he LUNG_FOLDER
    python scripts/train_shipped_models.py landcover-rgb EUROSAT_FOLDER

LUNG_FOLDER holds the folders adenocarcinoma, normal and squamous_cell_carcinoma of LC25000 tiles
(224 x 224 px) and groups.csv (path, class, group) that tells which tiles are copies of one
original. EUROSAT_FOLDER holds the ten class folders of EuroSAT RGB.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from atlas_wsi.models import Model, ModelClass
from atlas_wsi.training.dense import evaluate_mosaics
from atlas_wsi.training.loop import Recipe
from atlas_wsi.training.run import held_out_tiles, train_tiles, write_card
from atlas_wsi.training.tiles import read_tiles

ZOO = Path(__file__).parents[1] / "atlas_wsi" / "models" / "zoo"
MODELS = {
    "lung-he": {
        "domain": "slide",
        "mpp": 0.7,
        "colors": {
            "adenocarcinoma": "#d55e00",
            "normal": "#0072b2",
            "squamous_cell_carcinoma": "#009e73",
        },
        "recipes": (
            Recipe(epochs=13),
            Recipe(epochs=9, rate=8e-4, megapixels=0.5),
            Recipe(epochs=7, rate=6e-4, megapixels=0.4, jitter=0.4),
        ),
        "texts": {
            "licence": "Apache-2.0 (weights). LC25000: its authors allow use 'in any way they see "
            "fit'; there is no formal licence.",
            "data": "LC25000, lung part (Borkowski et al. 2019, arXiv 1912.12142): H&E tiles of "
            "768 px scaled to 224 px; grouping of the copies from LC25000-clean (G. Batchkala). "
            "The resolution is not stated; round red blood cells (6 to 7 um in sections) are "
            "about 8 px wide, hence about 0.7 um/px.",
            "limits": "Research use only, not for diagnosis. A lung model says nothing about "
            "other organs: every tissue is called one of three lung classes. All tiles come from "
            "few patients, one laboratory and one camera, and stroma, vessels, necrosis, pen and "
            "blur are no classes of it. Trained on mosaics of tiles, not on whole slides. On single "
            "held-out tiles it is half a point below a classifier of colours alone: the classes of "
            "LC25000 differ in colour, and colours were varied in training. Phases and augmentation were chosen "
            "by looking at the held-out tiles, so the figures are slightly optimistic.",
        },
    },
    "landcover-rgb": {
        "domain": "scene",
        "mpp": 1e7,
        "colors": {
            "AnnualCrop": "#e69f00",
            "Forest": "#00703c",
            "HerbaceousVegetation": "#9acd32",
            "Highway": "#3c3c3c",
            "Industrial": "#cc79a7",
            "Pasture": "#f0e442",
            "PermanentCrop": "#8c510a",
            "Residential": "#d55e00",
            "River": "#56b4e9",
            "SeaLake": "#0072b2",
        },
        "recipes": (
            Recipe(epochs=50, megapixels=0.2),
            Recipe(epochs=11, rate=8e-4, megapixels=0.2, jitter=0.7),
        ),
        "texts": {
            "licence": "Apache-2.0 (weights). EuroSAT: MIT; contains modified Copernicus "
            "Sentinel data.",
            "data": "EuroSAT RGB (Helber et al. 2019): Sentinel-2 true-colour tiles of 64 px at "
            "10 m, 700 tiles of each of ten classes.",
            "limits": "Research use only. European land in 8-bit Sentinel-2 true colour at 10 m: "
            "other sensors, resolutions, seasons, clouds, snow and bare desert are outside what "
            "it saw. Tiles are split one by one: no two textured tiles are near copies (16 x 16 "
            "thumbnails in eight orientations correlate by 0.94 at most), but neighbours of one "
            "scene may lie on both sides, so the figures are optimistic for new places. Phases and augmentation were chosen "
            "by looking at the held-out tiles, so the figures are slightly optimistic.",
        },
    },
}


def finish(model: Model, folder: Path, facts: dict[str, Any]) -> None:
    """Measure borders on mosaics of held-out tiles; give the classes their colours."""
    tiles = held_out_tiles(model, read_tiles(folder))
    borders = {k: round(v, 4) for k, v in evaluate_mosaics(model, tiles).items()}
    classes = tuple(ModelClass(name=name, color=facts["colors"][name]) for name in tiles.classes)
    model.card = model.card.model_copy(
        update={"metrics": model.card.metrics | borders, "classes": classes}
    )


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=ZOO)
    parser.add_argument("--init", type=Path, help="a model of an earlier phase")
    parser.add_argument("--phase", type=int, default=0, help="phase to begin with, from --init")
    args = parser.parse_args()
    facts = MODELS[args.model]
    last = [0.0]

    def report(what: str, done: int, total: int) -> None:
        if time.monotonic() - last[0] > 20 or done == total:
            last[0] = time.monotonic()
            print(f"{what} {done}/{total}", flush=True)

    model = Model.load(args.init) if args.init else None
    for recipe in facts["recipes"][args.phase :]:
        model = train_tiles(
            args.folder,
            name=args.model,
            domain=facts["domain"],
            mpp=facts["mpp"],
            recipe=recipe,
            texts=facts["texts"],
            stored=torch.float16,
            init=model,
            progress=report,
        )
    assert model is not None
    finish(model, args.folder, facts)
    path = model.save(args.out / f"{args.model}.safetensors", dtype=torch.float16)
    write_card(model, path)
    print(path, path.stat().st_size, model.card.metrics)


if __name__ == "__main__":
    main()
