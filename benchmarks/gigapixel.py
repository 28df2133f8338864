"""Measure time and peak memory of `predict` on synthetic slides of growing size, 30% tissue.

    python benchmarks/gigapixel.py --gigapixels 0.1 0.4 1.6 6.4 --memory 1GB

Each size has its own process, so that its peak is measured separately. Slides are generated once in
--folder. The slope is that of log time against log pixels.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

RUN = """
import json, sys, time
import atlas_wsi
path, model, memory = sys.argv[1:]
start = time.perf_counter()
result = atlas_wsi.predict(path, model, memory=memory)
from atlas_wsi.inference.provenance import peak_memory_bytes
print(json.dumps({
    "seconds": time.perf_counter() - start,
    "stages": result.run.stages_s,
    "peak_bytes": peak_memory_bytes(),
    "windows": result.run.parameters["windows"],
    "tokens_in_ram": result.run.parameters["tokens_in_ram"],
}))
"""


def main() -> None:
    """Run."""
    from atlas_wsi.slides.synthetic import make_svs

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigapixels", type=float, nargs="+", default=[0.1, 0.4, 1.6, 6.4])
    parser.add_argument("--folder", type=Path, default=Path("gigapixel-slides"))
    parser.add_argument("--model", default="lung-he")
    parser.add_argument("--memory", default="1GB")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    rows = []
    print(f"{'Gpx':>6} {'windows':>8} {'seconds':>8} {'Mpx/s':>7} {'peak MiB':>9}  tokens")
    for size in args.gigapixels:
        side = round((size * 1e9) ** 0.5)
        path = args.folder / f"{size:g}.svs"
        if not path.exists():
            part = path.with_suffix(".part.svs")
            make_svs(part, shape=(side, side), mpp=0.5, tissue=0.3)
            part.replace(path)
        command = [sys.executable, "-c", RUN, str(path), args.model, args.memory]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        row = json.loads(done.stdout) | {"gigapixels": size}
        rows.append(row)
        print(
            f"{size:6g} {row['windows']:8d} {row['seconds']:8.1f} "
            f"{size * 1e3 / row['seconds']:7.1f} {row['peak_bytes'] / 2**20:9.0f}  "
            f"{'memory' if row['tokens_in_ram'] else 'file'}",
            flush=True,
        )
    if len(rows) > 1:
        logs = np.log([[r["gigapixels"], r["seconds"]] for r in rows])
        print(f"slope of log time against log pixels: {np.polyfit(*logs.T, 1)[0]:.2f}")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
