"""Make small slides with one label each, as examples for `atlas-wsi train slides`.

    python scripts/make_weak_slides.py FOLDER [--lesion 0.015]

Pink or violet tissue; with --lesion, pink tissue with or without a violet piece.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tifffile

if TYPE_CHECKING:
    from numpy.typing import NDArray

PINK, VIOLET = (205, 120, 180), (110, 80, 170)
MPP = 1.0


def make_slide(path: Path, *, lesion: float, side_px: int, seed: int) -> None:
    """Write glass with three round pieces of tissue."""
    rng = np.random.default_rng(seed)
    row, col = np.mgrid[:side_px, :side_px]
    tissue = np.zeros((side_px, side_px), bool)
    for _ in range(3):
        y, x = rng.integers(side_px // 5, side_px - side_px // 5, 2)
        tissue |= (row - y) ** 2 + (col - x) ** 2 < rng.integers(side_px // 8, side_px // 5) ** 2
    pixels = np.full((side_px, side_px, 3), 242.0)
    pixels[tissue] = PINK
    pixels[_around(tissue, lesion, rng)] = VIOLET
    pixels += rng.normal(0, 6, 3) + rng.normal(0, 5, pixels.shape)
    tifffile.imwrite(
        path,
        pixels.clip(0, 255).astype(np.uint8),
        photometric="rgb",
        tile=(256, 256),
        resolution=(1e4 / MPP, 1e4 / MPP),
        resolutionunit="CENTIMETER",
    )


def _around(
    tissue: NDArray[np.bool_], share: float, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return a fraction of the tissue pixels: those nearest to a given one."""
    places = np.argwhere(tissue)
    apart = ((places - places[rng.integers(len(places))]) ** 2).sum(axis=1)
    nearest = places[np.argsort(apart)[: round(share * len(places))]]
    return nearest[:, 0], nearest[:, 1]


def main() -> None:
    """Make the slides and their table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--lesion", type=float, help="fraction of the tissue; all of it by default")
    parser.add_argument("--slides", type=int, default=24, help="per class")
    parser.add_argument("--side-px", type=int, default=512)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    names = ("pink", "violet") if given.lesion is None else ("healthy", "lesion")
    with (given.folder / "slides.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("slide", "label", "group"))
        for k, name in enumerate(names):
            for i in range(given.slides):
                path, share = given.folder / f"{name}-{i:02}.tif", k * (given.lesion or 1.0)
                make_slide(path, lesion=share, side_px=given.side_px, seed=1000 * k + i)
                table.writerow((path.name, name, f"patient-{name}-{i // 2}"))


if __name__ == "__main__":
    main()
