"""Compare Mpx/s of atlas_wsi's reader with openslide-python, tiffslide and bare JPEG decoding.

    python benchmarks/read.py [--size 20000] [--repeats 3] [--json read.json]

Every reader reads the same regions in the same order, each once, and turns them into RGB arrays;
readers take turns every 16 Mpx. The pixels are compared first: if they differ from
OpenSlide's by more than the decoder's rounding, nothing is measured. Processor time (of all
threads) is given beside wall time; other load on the machine affects it less.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import openslide
import tifffile
import tiffslide

from atlas_wsi.slides.open import open_slide
from atlas_wsi.slides.synthetic import make_svs

TILE = 256
REGION = 2048
BATCH_PX = 4 * REGION**2
TOLERANCE = 1

Reader = Callable[[int, int, int], Any]
Rates = dict[str, np.ndarray]


def atlas(path: Path) -> Reader:
    slide = open_slide(path)
    return lambda y, x, side: slide.read_region(y, x, side, side)


def openslide_python(path: Path) -> Reader:
    slide = openslide.OpenSlide(path)
    return lambda y, x, side: np.asarray(slide.read_region((x, y), 0, (side, side)).convert("RGB"))


def tiffslide_(path: Path) -> Reader:
    slide = tiffslide.TiffSlide(path)
    return lambda y, x, side: slide.read_region((x, y), 0, (side, side), as_array=True)


def bare_jpeg(path: Path) -> Reader:
    with tifffile.TiffFile(path) as tif:
        page = tif.pages.first
        offsets, counts, tables = page.dataoffsets, page.databytecounts, page.jpegtables
        across = -(-page.imagewidth // TILE)
    file = path.open("rb", buffering=0)

    def decode(y: int, x: int, side: int) -> None:
        for row in range(y // TILE, (y + side) // TILE):
            for col in range(x // TILE, (x + side) // TILE):
                index = row * across + col
                encoded = os.pread(file.fileno(), counts[index], offsets[index])
                imagecodecs.jpeg8_decode(encoded, tables=tables, outcolorspace="RGB")

    return decode


READERS = {
    "atlas_wsi": atlas,
    "openslide-python": openslide_python,
    "tiffslide": tiffslide_,
    "bare JPEG decoding": bare_jpeg,
}


def check(path: Path, regions: list[tuple[int, int]], side: int) -> None:
    """Stop if atlas_wsi and OpenSlide read different pixels."""
    ours, theirs = atlas(path), openslide_python(path)
    for y, x in regions:
        worst = int(np.abs(ours(y, x, side).astype(np.int16) - theirs(y, x, side)).max())
        if worst > TOLERANCE:
            sys.exit(f"Pixels at row {y}, column {x} differ from OpenSlide's by {worst}.")


def measure(path: Path, *, side: int, threads: int, size: int, repeats: int) -> Rates:
    """Return Mpx/s of each reader, an array `(batches, 2)` of wall and processor time.

    Readers take turns every batch (16 Mpx), so that other load on the machine affects them equally.
    """
    last = size // REGION * REGION
    corners = [(y, x) for y in range(0, last, side) for x in range(0, last, side)]
    n_batch = BATCH_PX // side**2
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in READERS}
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(repeats):
            readers = {name: open_reader(path) for name, open_reader in READERS.items()}
            for start in range(0, len(corners) - n_batch + 1, n_batch):
                batch = corners[start : start + n_batch]
                for name, read in readers.items():
                    rates[name].append(time_batch(pool, threads, read, batch, side))
    return {name: np.array(values) for name, values in rates.items()}


def time_batch(
    pool: ThreadPoolExecutor, threads: int, read: Reader, batch: list[tuple[int, int]], side: int
) -> tuple[float, float]:
    def work(thread: int) -> None:
        for y, x in batch[thread::threads]:
            read(y, x, side)

    wall, cpu = time.perf_counter(), time.process_time()
    list(pool.map(work, range(threads)))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    mpx = len(batch) * side**2 / 1e6
    return mpx / wall, mpx / cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--size", type=int, default=20_000, help="height and width of the slide in pixels"
    )
    parser.add_argument("--tissue", type=float, default=0.6, help="fraction of the slide to read")
    parser.add_argument("--repeats", type=int, default=1, help="passes over the slide")
    parser.add_argument("--json", type=Path, help="file to write the results to")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slide.svs"
        make_svs(path, (arguments.size, arguments.size), tissue=arguments.tissue)
        results = run(path, arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


def run(path: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    last = arguments.size // REGION * REGION
    for side in (TILE, REGION):
        corners = [(y, x) for y in range(0, last, side) for x in range(0, last, side)]
        check(path, corners[:: max(1, len(corners) // 300)][: 300 * TILE // side], side)
    print(
        f"{platform.machine()}, {os.cpu_count()} cores; slide {arguments.size} x "
        f"{arguments.size} px, {path.stat().st_size / 1e6:.0f} MB, Q75, {TILE} px tiles; "
        f"medians over batches of 16 Mpx; pixels equal OpenSlide's\n"
    )
    cases = {}
    for side in (TILE, REGION):
        for threads in (1, 2):
            case = f"{side} px regions, {threads} thread{'s' * (threads > 1)}"
            options = {"size": arguments.size, "repeats": arguments.repeats}
            rates = measure(path, side=side, threads=threads, **options)
            cases[case] = summarize(rates)
            show(case, cases[case])
    return {"size": arguments.size, "tissue": arguments.tissue, "cases": cases}


def summarize(rates: Rates) -> dict[str, dict[str, float]]:
    ours = rates["atlas_wsi"]
    return {
        name: {
            "mpx_a_second": float(np.median(values[:, 0])),
            "mpx_a_cpu_second": float(np.median(values[:, 1])),
            "atlas_wsi_is": float(np.median(ours[:, 0] / values[:, 0])),
            "atlas_wsi_is_by_cpu": float(np.median(ours[:, 1] / values[:, 1])),
        }
        for name, values in rates.items()
    }


def show(case: str, summary: dict[str, dict[str, float]]) -> None:
    print(f"{case:28s}{'Mpx/s':>8s}{'atlas_wsi is':>14s}{'Mpx/CPU s':>12s}{'atlas_wsi is':>14s}")
    for name, found in summary.items():
        wall, cpu, by_wall, by_cpu = found.values()
        print(f"  {name:26s}{wall:8.0f}{by_wall:13.2f}x{cpu:12.0f}{by_cpu:13.2f}x")
    print(flush=True)


if __name__ == "__main__":
    main()
