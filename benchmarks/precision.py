"""Count the heatmap cells whose class bfloat16 changes.

    python benchmarks/precision.py SLIDE... --mpp 0.5

`--mpp` is for files without a resolution.
"""

from __future__ import annotations

import argparse

import atlas_wsi
from atlas_wsi.errors import MissingResolutionError


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("slides", nargs="+")
    parser.add_argument("--model")
    parser.add_argument("--mpp", type=float)
    parser.add_argument("--cell", type=int, default=64)
    args = parser.parse_args()
    print(f"{'':<40} {'model':<14}  cells  changed")
    for path in args.slides:
        try:
            slide = atlas_wsi.open_slide(path)
            slide.require_mpp()
        except MissingResolutionError:
            slide = atlas_wsi.open_slide(path, mpp=args.mpp)
        with slide:
            maps = [
                atlas_wsi.predict(slide, args.model, precision=precision, cell_px=args.cell)
                for precision in ("float32", "bfloat16")
            ]
        exact, fast = (one.argmax() for one in maps)
        known = exact >= 0
        share = (exact != fast)[known].mean() if known.any() else 0.0
        print(f"{slide.name:<40} {maps[0].run.model.name:<14} {known.sum():6d} {share:8.2%}")


if __name__ == "__main__":
    main()
