"""Make the table of annotated slides that epithelium-he is trained on.

    python scripts/make_epithelium_table.py EBHI MASKS OUT

EBHI-SEG (Shi et al. 2023, figshare 21540159, CC BY 4.0) has images of colorectal biopsies and masks
of their epithelium. EBHI holds them in a folder per class with groups.csv (path, class, group,
mask; a group is a patient), MASKS the masks. The images are photographs of 2048 x 1536 pixels
squeezed to a square; they are put side by side in their original form at 1/8 of its size, a sheet
per patient. EBHI-SEG states no resolution. Crypts suggest 1.1 to 1.5 um/px: every sheet is given
one of these. OUT gets the sheets, epithelium.csv and epithelium-classes.csv.
"""

from __future__ import annotations

import argparse
import csv
import math
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 256, 192
LEAST, MOST = 1.1, 1.5  # um/px
PER_SHEET = 20
NO_LABEL = 255


def write(path: Path, *rows: tuple[object, ...]) -> None:
    """Write a CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("ebhi", "masks", "out"):
        parser.add_argument(name, type=Path)
    args = parser.parse_args()
    patients: dict[str, list[tuple[Image.Image, Image.Image]]] = {}
    with (args.ebhi / "groups.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if not row["mask"]:
                continue
            image = Image.open(args.ebhi / row["path"]).convert("RGB")
            image = image.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
            mask = Image.open(args.masks / row["mask"]).convert("L").resize(image.size)
            inside = Image.fromarray((np.asarray(mask) > 127).astype(np.uint8))
            patients.setdefault(row["group"], []).append((image, inside))
    (args.out / "epithelium").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    rows: list[tuple[object, ...]] = [("slide", "regions", "group", "mpp")]
    for patient, images in sorted(patients.items()):
        for first in range(0, len(images), PER_SHEET):
            part = images[first : first + PER_SHEET]
            n_cols = math.ceil(math.sqrt(len(part)))
            size = n_cols * WIDTH, math.ceil(len(part) / n_cols) * HEIGHT
            sheet, labels = Image.new("RGB", size, "white"), Image.new("L", size, NO_LABEL)
            for i, (image, inside) in enumerate(part):
                at = i % n_cols * WIDTH, i // n_cols * HEIGHT
                sheet.paste(image, at)
                labels.paste(inside, at)
            paths = [f"epithelium/{patient}-{first}{kind}.png" for kind in ("", ".labels")]
            for path, picture in zip(paths, (sheet, labels), strict=True):
                picture.save(args.out / path)
            mpp = math.exp(rng.uniform(math.log(LEAST), math.log(MOST)))
            rows.append((*paths, patient, round(mpp, 3)))
    write(args.out / "epithelium.csv", *rows)
    classes = ("value", "class"), (0, "other tissue"), (1, "epithelium")
    write(args.out / "epithelium-classes.csv", *classes)
    print(args.out / "epithelium.csv", len(rows) - 1)


if __name__ == "__main__":
    main()
