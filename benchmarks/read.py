"""Mpx/s of atlas_wsi's reader beside openslide-python, tiffslide and bare JPEG decoding.

    python benchmarks/read.py [--size 20000] [--repeats 3] [--json read.json]

Every reader opens the slide anew, reads the same regions in the same order and turns them into
RGB arrays; repeats alternate between readers. The pixels are compared first: if they differ from
OpenSlide's by more than the decoder's rounding, nothing is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import imagecodecs
import numpy as np
import openslide
import tifffile
import tiffslide

from atlas_wsi.slides.open import open_slide
from atlas_wsi.slides.synthetic import make_svs

if TYPE_CHECKING:
    from collections.abc import Callable

TILE = 256
REGION = 2048
TOLERANCE = 1


def atlas(path: Path) -> Callable[[int, int, int], Any]:
    slide = open_slide(path)
    return lambda y, x, side: slide.read_region(y, x, side, side)


def openslide_python(path: Path) -> Callable[[int, int, int], Any]:
    slide = openslide.OpenSlide(path)
    return lambda y, x, side: np.asarray(slide.read_region((x, y), 0, (side, side)).convert("RGB"))


def tiffslide_(path: Path) -> Callable[[int, int, int], Any]:
    slide = tiffslide.TiffSlide(path)
    return lambda y, x, side: slide.read_region((x, y), 0, (side, side), as_array=True)


def bare_jpeg(path: Path) -> Callable[[int, int, int], Any]:
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
    """Stop if atlas_wsi and OpenSlide see different pixels."""
    ours, theirs = atlas(path), openslide_python(path)
    for y, x in regions:
        worst = int(np.abs(ours(y, x, side).astype(np.int16) - theirs(y, x, side)).max())
        if worst > TOLERANCE:
            sys.exit(f"Pixels at row {y}, column {x} differ from OpenSlide's by {worst}.")


def measure(
    open_reader: Callable[[Path], Any],
    path: Path,
    regions: list[tuple[int, int]],
    *,
    side: int,
    threads: int,
) -> float:
    """Return Mpx/s over all regions."""
    read = open_reader(path)
    read(0, 0, side)  # import, allocate

    def work(thread: int) -> None:
        for y, x in regions[thread::threads]:
            read(y, x, side)

    with ThreadPoolExecutor(threads) as pool:
        start = time.perf_counter()
        list(pool.map(work, range(threads)))
    return len(regions) * side**2 / (time.perf_counter() - start) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=20_000, help="side of the slide in pixels")
    parser.add_argument("--tissue", type=float, default=0.6, help="share of the slide")
    parser.add_argument("--repeats", type=int, default=3)
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
    corners = {
        side: [(y, x) for y in range(0, last, side) for x in range(0, last, side)]
        for side in (TILE, REGION)
    }
    check(path, corners[TILE][:: max(1, len(corners[TILE]) // 400)], TILE)
    check(path, corners[REGION][::7], REGION)
    print(
        f"{platform.machine()}, {os.cpu_count()} cores; slide {arguments.size} x "
        f"{arguments.size} px, {path.stat().st_size / 1e6:.0f} MB, Q75, {TILE} px tiles, "
        f"median of {arguments.repeats}; pixels equal OpenSlide's\n"
    )
    rates: dict[str, dict[str, float]] = {}
    for side in (TILE, REGION):
        for threads in (1, 2):
            samples: dict[str, list[float]] = {name: [] for name in READERS}
            for _ in range(arguments.repeats):
                for name, open_reader in READERS.items():
                    rate = measure(open_reader, path, corners[side], side=side, threads=threads)
                    samples[name].append(rate)
            case = f"{side} px regions, {threads} thread{'s' * (threads > 1)}"
            rates[case] = {name: float(np.median(values)) for name, values in samples.items()}
            show(case, rates[case])
    return {"size": arguments.size, "tissue": arguments.tissue, "mpx_a_second": rates}


def show(case: str, rates: dict[str, float]) -> None:
    print(f"{case:28s}{'Mpx/s':>8s}{'atlas_wsi is':>15s}")
    for name, rate in rates.items():
        ratio = rates["atlas_wsi"] / rate
        print(f"  {name:26s}{rate:8.0f}{ratio:14.2f}x")
    print(flush=True)


if __name__ == "__main__":
    main()
