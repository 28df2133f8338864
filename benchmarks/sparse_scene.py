"""Time `predict` on a sparse scene: only blocks that exist are read.

    python benchmarks/sparse_scene.py --side 200000 --parts 40 --square 1024

Writes a GeoTIFF of side x side pixels of 10 m of which `parts` squares hold data (40 of 1,024
pixels are 0.1% of 200,000 x 200,000 px), and predicts it in a process of its own, to all
formats. For comparison another process reads as many pixels of data with rasterio.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np


def make(path: Path, side: int, parts: int, square: int) -> list[tuple[int, int]]:
    """Write the scene; return the corners of its data."""
    import rasterio
    from rasterio.windows import Window

    rng = np.random.default_rng(0)
    where = rasterio.transform.from_origin(0, 0, 10, 10)
    places = rng.choice((side // square) ** 2, parts, replace=False)
    corners = [
        (int(p) // (side // square) * square, int(p) % (side // square) * square) for p in places
    ]
    options = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate"}
    with rasterio.open(
        path, "w", driver="GTiff", count=3, height=side, width=side, dtype="uint8", nodata=0,
        crs="EPSG:32633", transform=where, SPARSE_OK="TRUE", BIGTIFF="YES", **options,
    ) as raster:  # fmt: skip
        for row, col in corners:
            fields = rng.integers(40, 160, (3, square // 32, square // 32), dtype=np.uint8)
            fields = fields.repeat(32, 1).repeat(32, 2)
            raster.write(fields, window=Window(col, row, square, square))
    return corners


def predict(path: str) -> None:
    """Predict the scene."""
    import atlas_wsi

    with tempfile.TemporaryDirectory() as out:
        atlas_wsi.predict_to_folder(path, out, model="landcover-rgb")


def read(path: str, corners: list[tuple[int, int]], square: int) -> None:
    """Read its data with rasterio."""
    import rasterio
    from rasterio.windows import Window

    with rasterio.open(path) as raster:
        for row, col in corners:
            raster.read(window=Window(col, row, square, square))


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=200_000)
    parser.add_argument("--parts", type=int, default=40)
    parser.add_argument("--square", type=int, default=1024)
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        what, facts = args.run
        path, corners = json.loads(facts)
        started = time.perf_counter()
        predict(path) if what == "predict" else read(path, corners, args.square)
        wall, used = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
        cpu = used.ru_utime + used.ru_stime
        print(f"{what:<8} {wall:8.1f} s, {cpu:8.1f} s of processor, {used.ru_maxrss >> 10} MiB")
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "sparse.tif")
        facts = json.dumps([str(path), make(path, args.side, args.parts, args.square)])
        share = args.parts * args.square**2 / args.side**2
        print(f"{args.side} x {args.side} px, {share:.2%} of data", flush=True)
        for what in ("read", "predict"):
            subprocess.run(
                [sys.executable, __file__, "--square", str(args.square), "--run", what, facts],
                check=True,
            )


if __name__ == "__main__":
    main()
