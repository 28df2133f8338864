"""Time `predict` against the loop that a user would write: openslide-python, tile by tile.

    python benchmarks/end_to_end.py --gigapixels 0.4 --memory 1GB

The loop reads each tissue window with `openslide.read_region`, resamples it to the working
resolution with Pillow, and runs the same model on it in float32; windows and weights are the same
for all. It processes every window on its own, without the context of the slide. Each contender has
its own process; the fastest repeat counts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

LOOPS = {"plain loop, one tile at a time": 1, "plain loop, 16 tiles at a time": 16}
OURS = {"predict float32": "float32", "predict auto": "auto"}


def plain_loop(path: str, name: str, batch: int) -> int:
    """Run the loop; return the number of windows."""
    import openslide
    import torch
    from PIL import Image

    import atlas_wsi
    from atlas_wsi.tissue.windows import plan_windows

    model = atlas_wsi.load_model(name)
    side, mpp = model.config.window_px, model.card.mpp
    with atlas_wsi.open_slide(path) as slide:
        mask = atlas_wsi.tissue_mask(slide)
        grid = plan_windows(slide.shape, slide.require_mpp(), mask, mpp=mpp, window_px=side)
    slide = openslide.OpenSlide(path)
    zoom = mpp / float(slide.properties[openslide.PROPERTY_NAME_MPP_X])
    level = slide.get_best_level_for_downsample(zoom)
    size = round(side * zoom / slide.level_downsamples[level])
    answers, waiting = {}, []

    def flush() -> None:
        with torch.inference_mode():
            x = model.normalize(torch.from_numpy(np.stack([tile for _, tile in waiting])))
            cells = torch.softmax(model(x).cells, dim=1).numpy()
        answers.update(zip((where for where, _ in waiting), cells, strict=True))
        waiting.clear()

    for row, col in np.argwhere(grid.active):
        corner = (round(col * side * zoom), round(row * side * zoom))
        tile = slide.read_region(corner, level, (size, size)).convert("RGB")
        tile = tile.resize((side, side), Image.Resampling.BILINEAR)
        waiting.append(((row, col), np.asarray(tile)))
        if len(waiting) == batch:
            flush()
    if waiting:
        flush()
    return len(answers)


def run(kind: str, path: str, model: str, memory: str) -> dict[str, object]:
    """Time one of the contenders in this process."""
    import atlas_wsi
    from atlas_wsi.inference.provenance import peak_memory_bytes

    start = time.perf_counter()
    if kind in LOOPS:
        windows = plain_loop(path, model, LOOPS[kind])
    else:
        result = atlas_wsi.predict(path, model, memory=memory, precision=OURS[kind])
        windows = result.run.parameters["windows"]
    took = time.perf_counter() - start
    return {"seconds": took, "windows": windows, "peak_bytes": peak_memory_bytes()}


def main() -> None:
    """Run."""
    from atlas_wsi.slides.synthetic import make_svs

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigapixels", type=float, default=0.4)
    parser.add_argument("--folder", type=Path, default=Path("gigapixel-slides"))
    parser.add_argument("--model", default="lung-he")
    parser.add_argument("--memory", default="1GB")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--kind", help=argparse.SUPPRESS)
    args = parser.parse_args()
    path = args.folder / f"{args.gigapixels:g}.svs"
    if args.kind:
        print(json.dumps(run(args.kind, str(path), args.model, args.memory)))
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        side = round((args.gigapixels * 1e9) ** 0.5)
        part = path.with_suffix(".part.svs")
        make_svs(part, shape=(side, side), mpp=0.5, tissue=0.3)
        part.replace(path)
    found = {}
    for kind in (*LOOPS, *OURS):
        rows = []
        for _ in range(args.repeats):
            command = [sys.executable, __file__, *sys.argv[1:], "--kind", kind]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            rows.append(json.loads(done.stdout))
        found[kind] = min(rows, key=lambda row: row["seconds"])
    base = found[next(iter(LOOPS))]["seconds"]
    print(f"{'':<34} windows  seconds  ratio  peak MiB")
    for kind, row in found.items():
        print(
            f"{kind:<34} {row['windows']:7d} {row['seconds']:8.1f} {base / row['seconds']:6.1f} "
            f"{row['peak_bytes'] / 2**20:9.0f}"
        )
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
