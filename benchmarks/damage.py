"""Predict damaged copies of files and compare them with the undamaged ones.

    python benchmarks/damage.py SLIDE... [--zarr] [--variants 200] [--seed 1] [--side 768]

Each variant has bytes flipped anywhere, its tail cut, or blocks of 512 B to 64 KiB zeroed; `--zarr`
damages an OME-Zarr copy, of which a chunk may also be missing. The model is a tiny one with random
weights. Columns:

- refused, complete, incomplete (over 1% of the tissue unreadable); differ: of the complete ones,
  those whose pixels differ although all decoded, which no reader can notice
- errors: other exceptions than AtlasError
- empty: cells without a single pixel that was read, which have a class
- alone: cells that changed where nothing in reach changed, each window seen alone
- context: the same cells with context: the share whose class differs, and the largest change

`errors`, `empty` and `alone` must be 0; else the exit code is 1.
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import atlas_wsi
from atlas_wsi.errors import AtlasError, MissingScaleError
from atlas_wsi.grid import Box
from atlas_wsi.models.stems.base import times
from atlas_wsi.slides.synthetic_scenes import make_ome_zarr
from atlas_wsi.slides.tile_reader import OBSERVED
from atlas_wsi.streaming.working_image import open_working_image

if TYPE_CHECKING:
    from collections.abc import Iterator

    from atlas_wsi.slides.slide import Slide

MODEL, CELL_PX, MAX_UNREADABLE = "atlas_test", 16, 0.01
COLUMNS = ("refused", "complete", "differ", "incomplete", "errors", "empty", "alone")


class Reading:
    """A slide's pixels as the model sees them, and its maps with context and without."""

    def __init__(self, slide: Slide, model: str) -> None:
        model = atlas_wsi.load_model(model)
        self.image = open_working_image(slide, mpp=model.card.mpp)
        rows, cols = self.image.shape
        self.pixels, state = self.image.read_masked(Box(row=0, col=0, rows=rows, cols=cols))
        self.is_read = np.ones(self.image.shape, bool) if state is None else state == OBSERVED
        self.alone: dict[Box, np.ndarray] = {}  # the first map of a window is that without context
        heatmap = atlas_wsi.predict(
            slide,
            model,
            cell_px=CELL_PX,
            precision="float32",
            batch_size=1,
            preview=lambda so_far, box: self.alone.setdefault(
                box, so_far.probabilities[part(box)].copy()
            ),
        )
        self.lost = heatmap.run.unreadable_fraction
        self.map = heatmap.probabilities
        self.reach = model.encoder.stem.reach

    def n_empty_with_class(self) -> int:
        """Count cells without a pixel that was read, which have a class."""
        rows, cols = self.map.shape[1:]
        height, width = self.image.shape
        padding = ((0, rows * CELL_PX - height), (0, cols * CELL_PX - width))
        cells = np.pad(self.is_read, padding).reshape(rows, CELL_PX, cols, CELL_PX)
        return int((~cells.any(axis=(1, 3)) & ~np.isnan(self.map[0])).sum())

    def unchanged_windows(self, other: Reading, changed: np.ndarray) -> Iterator[Box]:
        """List the windows of both in whose reach no pixel changed."""
        for box in self.alone.keys() & other.alone.keys():
            if not changed[self.pixels_of(box).slices].any():
                yield box

    def pixels_of(self, window: Box) -> Box:
        """Return the pixels that a window, given in cells, depends on."""
        return self.reach(times(window, CELL_PX), self.image.shape)


def part(box: Box) -> tuple[slice, slice, slice]:
    """Index a map with the cells of a box."""
    return (slice(None), *box.slices)


def change(ours: np.ndarray, theirs: np.ndarray) -> tuple[int, int, int, float]:
    """Compare two maps: cells in both, that differ, of other class, and the largest difference."""
    both = ~(np.isnan(ours[0]) | np.isnan(theirs[0]))
    a, b = ours[:, both], theirs[:, both]
    n_other = int((a.argmax(0) != b.argmax(0)).sum())
    return int(both.sum()), int((a != b).any(0).sum()), n_other, float(abs(a - b).max(initial=0))


def options_of(path: Path, side: int) -> dict[str, Any]:
    """Say how to open a file, so that its longer side has at most so many working pixels."""
    with atlas_wsi.open_slide(path) as slide:
        options: dict[str, Any] = {"mpp": min(1.0, side / max(slide.shape))}
        try:
            slide.require_samples()
        except MissingScaleError:
            options["scale"] = (0.0, 10_000.0)
    return options


def copy_as_zarr(path: Path, folder: Path) -> Path:
    """Write level 0 of a file as OME-Zarr."""
    with atlas_wsi.open_slide(path) as slide:
        pixels = slide.read_region(0, 0, *slide.shape)
    copy = folder / f"{path.stem}.ome.zarr"
    make_ome_zarr(copy, pixels)
    return copy


def damage(path: Path, rng: random.Random) -> None:
    """Damage a file, or one of the files of a folder."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    file = rng.choices(files, [one.stat().st_size for one in files])[0]
    kind = rng.choice(["flip", "cut", "zero", *(["delete"] if path.is_dir() else [])])
    if kind == "delete":
        file.unlink()
        return
    data = bytearray(file.read_bytes())
    if kind == "cut":
        del data[rng.randrange(len(data)) :]
    elif kind == "flip":
        for _ in range(rng.randint(1, 64)):
            data[rng.randrange(len(data))] ^= rng.randint(1, 255)
    else:
        for _ in range(rng.randint(1, 8)):
            start, size = rng.randrange(len(data)), 512 << rng.randint(0, 7)
            data[start : start + size] = bytes(len(data[start : start + size]))
    file.write_bytes(data)


def try_variant(
    path: Path, whole: Reading, rng: random.Random, options: dict[str, Any], seen: Counter
) -> None:
    """Predict a damaged copy, and count what was found."""
    damage(path, rng)
    try:
        is_cut_allowed = rng.random() < 0.5
        with atlas_wsi.open_slide(path, allow_truncated=is_cut_allowed, **options) as slide:
            found = Reading(slide, MODEL)
    except AtlasError:
        seen["refused"] += 1
        return
    except Exception:  # noqa: BLE001 - counted, as a user would see a traceback
        seen["errors"] += 1
        traceback.print_exc()
        return
    seen["empty"] += found.n_empty_with_class()
    if found.lost > MAX_UNREADABLE:
        seen["incomplete"] += 1
    else:
        seen["complete"] += 1
    if found.image.shape != whole.image.shape:  # its tables were damaged: it is another image
        seen["differ"] += 1
        return
    is_other_state = found.is_read != whole.is_read
    changed = (found.pixels != whole.pixels).any(axis=2) | is_other_state
    seen["differ"] += bool(changed.any() and not is_other_state.any())
    for box in whole.unchanged_windows(found, changed):
        seen["alone"] += change(whole.alone[box], found.alone[box])[1]
        n, _, n_other, most = change(whole.map[part(box)], found.map[part(box)])
        seen["cells"] += n
        seen["other class"] += n_other
        seen["most"] = max(seen["most"], most)


def run(path: Path, *, as_zarr: bool, variants: int, seed: int, side: int) -> Counter:
    """Damage a file many times, and count what happened."""
    seen: Counter = Counter()
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = options_of(path, side)
        source = copy_as_zarr(path, Path(name)) if as_zarr else path
        with atlas_wsi.open_slide(source, **options) as slide:
            whole = Reading(slide, MODEL)
        for number in range(variants):
            copy = Path(name) / "damaged" / source.name
            copy.parent.mkdir()
            (shutil.copytree if source.is_dir() else shutil.copyfile)(source, copy)
            try_variant(copy, whole, random.Random(f"{seed} {number}"), options, seen)
            shutil.rmtree(copy.parent)
    return seen


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("slides", nargs="+", type=Path)
    parser.add_argument("--zarr", action="store_true")
    parser.add_argument("--variants", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--side", type=int, default=768)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"| file | variants | {' | '.join(COLUMNS)} | context |")
    print(f"|---|{'--:|' * (len(COLUMNS) + 2)}")
    n_wrong = 0
    for path in args.slides:
        seen = run(path, as_zarr=args.zarr, variants=args.variants, seed=args.seed, side=args.side)
        n_wrong += seen["errors"] + seen["empty"] + seen["alone"]
        context = f"{seen['other class'] / max(1, seen['cells']):.2%}, {seen['most']:.2g}"
        counts = " | ".join(str(seen[column]) for column in COLUMNS)
        print(f"| `{path.name}` | {args.variants} | {counts} | {context} |", flush=True)
    raise SystemExit(n_wrong > 0)


if __name__ == "__main__":
    main()
