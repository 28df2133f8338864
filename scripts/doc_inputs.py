"""Make the files that the commands of README and docs name: slides, a scene, tiles, networks."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

import atlas_wsi
from atlas_wsi.slides.synthetic import make_svs
from atlas_wsi.slides.synthetic_scenes import make_scene

if TYPE_CHECKING:
    from pathlib import Path

COLORS = {"pink": (220, 140, 190), "violet": (120, 80, 160)}


def make_inputs(folder: Path) -> None:
    """Make one of each file in an existing, empty folder."""
    shutil.copy(atlas_wsi.fetch_sample(), folder / "slide.svs")
    make_scene(folder / "scene.tif", (512, 768))
    _slides(folder)
    _tiles(folder / "my_tiles")
    _areas(folder)
    _networks(folder)


def _slides(folder: Path) -> None:
    (folder / "slides").mkdir()
    rows = ["slide,regions"]
    for seed in range(4):
        make_svs(folder / "slides" / f"{seed}.svs", (512, 768), seed=seed, tissue=0.5)
        rows.append(f"slides/{seed}.svs,slides/{seed}.geojson")
        pink, violet = ((0, 0, 256, 512), (256, 0, 512, 512))
        areas = [_area(pink, "pink"), _area(violet, "violet")]
        _write_areas(folder / "slides" / f"{seed}.geojson", areas)
    (folder / "regions.csv").write_text("\n".join(rows) + "\n")
    known, test = ("train", "test")
    facts = [("dense", known), ("sparse", known), ("dense", test), ("sparse", test)]
    lines = [f"slides/{i}.svs,{label},{part}" for i, (label, part) in enumerate(facts)]
    (folder / "slides.csv").write_text("\n".join(["slide,label,split", *lines]) + "\n")


def _tiles(folder: Path) -> None:
    random = np.random.default_rng(0)
    rows = ["path,class,group"]
    for name, color in COLORS.items():
        (folder / name).mkdir(parents=True)
        for i in range(20):
            noise = random.normal(0, 20, (64, 64, 3))
            pixels = np.clip(np.array(color) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
            rows.append(f"{name}/{i}.png,{name},{name}{i // 2}")
    (folder / "groups.csv").write_text("\n".join(rows) + "\n")


def _areas(folder: Path) -> None:
    _write_areas(folder / "areas.geojson", [_area((400, 400, 2000, 1800), "Tumor")])
    mask = np.zeros((297, 222), np.uint8)
    mask[40:260, 40:200] = 255
    Image.fromarray(mask).save(folder / "tissue.png")


def _area(box: tuple[int, int, int, int], name: str) -> dict[str, object]:
    top, left, bottom, right = box
    ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"objectType": "annotation", "classification": {"name": name}},
    }


def _write_areas(path: Path, areas: list[dict[str, object]]) -> None:
    path.write_text(json.dumps({"type": "FeatureCollection", "features": areas}))


def _networks(folder: Path) -> None:
    import timm
    import torch
    from safetensors.torch import save_file

    network = timm.create_model("resnet18", pretrained=False)
    save_file(network.state_dict(), folder / "resnet18.safetensors")

    place = folder / "lymphocytes"
    place.mkdir()
    classifier = torch.nn.Sequential(
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 2)
    )
    example = torch.zeros(1, 3, 100, 100)
    torch.jit.trace(classifier.eval(), example).save(str(place / "torchscript_model.pt"))
    config = {
        "spec_version": "1.0",
        "architecture": "linear",
        "num_classes": 2,
        "class_names": ["other", "lymphocytes"],
        "name": "lymphocytes",
        "patch_size_pixels": 100,
        "spacing_um_px": 0.5,
        "transform": [
            {"name": "Resize", "arguments": {"size": 100}},
            {"name": "ToTensor"},
            {"name": "Normalize", "arguments": {"mean": [0.5] * 3, "std": [0.5] * 3}},
        ],
    }
    (place / "config.json").write_text(json.dumps(config))
