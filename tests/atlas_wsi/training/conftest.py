"""Tiny labeled tiles: textures that differ in form, not only in color."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from PIL import Image

CLASSES = ("dots", "lines", "plain")


def draw(name: str, rng: np.random.Generator, side: int) -> np.ndarray:
    """A texture on a ground of random color."""
    ground = rng.integers(120, 200, 3)
    tile = np.broadcast_to(ground, (side, side, 3)).astype(float).copy()
    if name == "lines":
        tile[(np.arange(side) + rng.integers(8)) % 8 < 3] -= 90
    if name == "dots":
        at = rng.random((side // 8, side // 8)) < 0.4
        tile[at.repeat(8, axis=0).repeat(8, axis=1)] -= 90
    return np.clip(tile + rng.normal(0, 3, tile.shape), 0, 255).astype(np.uint8)


def make_tiles(folder, *, n=24, side=64, classes=CLASSES, copies=1):
    """Write class folders; with copies, groups.csv tells which tiles belong together."""
    rng = np.random.default_rng(7)
    rows = []
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(n):
            path = folder / name / f"{i:03}.png"
            Image.fromarray(draw(name, rng, side)).save(path)
            rows.append((f"{name}/{i:03}.png", name, f"{name}-{i // copies}"))
    if copies > 1:
        with (folder / "groups.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("path", "class", "group"), *rows])
    return folder


@pytest.fixture(scope="session")
def tile_folder(tmp_path_factory):
    return make_tiles(tmp_path_factory.mktemp("tiles"), copies=3)


@pytest.fixture
def make_folder(tmp_path):
    return lambda **kwargs: make_tiles(tmp_path / "tiles", **kwargs)
