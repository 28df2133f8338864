"""Time and memory of the three backbones against the size of the image.

    python benchmarks/backbones.py --sizes 512 1024 2048 4096 --plot backbones.png

Atlas-S, MambaVision-S and the levels 0-2 of MambaVision-S under Multi-Scale Attention run the
streamed pass over noise in memory, as `predict` runs it, each in a process of its own, so that its
peak is its own; what the process held before the pass is taken off. The slope is that of log time
against log pixels: 1 is linear.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

NAMES = ("Atlas-S", "MambaVision-S", "MambaVision-S + MSA")
COLORS = ("#3c5488", "#e64b35", "#00a087")


def make_model(name: str, size: int):
    """Make a model with random weights and the depths that the size asks for."""
    import torch

    from atlas_wsi.models import AtlasConfig, Model, ModelCard, ModelClass
    from atlas_wsi.models.mambavision import VARIANTS

    card = ModelCard(
        name="bench",
        domain="slide",
        mpp=1.0,
        classes=tuple(ModelClass(name=f"c{i}", color="#000000") for i in range(100)),
    )
    scales = 2 if size <= 1024 else 3
    trunk = VARIANTS["S"]
    if name == "Atlas-S":
        depths = (2, 10) if scales == 2 else (2, 2, 8)
        config = AtlasConfig(dim=384, heads=6, depths=depths, n_scales=scales)
    elif name == "MambaVision-S":
        config = AtlasConfig(
            dim=trunk.level_dim(3), heads=1, depths=(), n_scales=1, window=28, mambavision=trunk
        )
    else:
        depths = (2, 2) if scales == 2 else (2, 2, 2)
        aligned = replace(trunk, window_size=(8, 8, 16, 8))
        config = AtlasConfig(dim=384, heads=6, depths=depths, n_scales=scales, mambavision=aligned)
    torch.manual_seed(0)
    return Model(config, card).eval()


def run(name: str, size: int, precision: str, repeats: int) -> dict[str, float]:
    """Time one backbone at one size in this process."""
    import psutil
    import torch

    from atlas_wsi.inference.bench import encode_array
    from atlas_wsi.inference.engine import choose_dtype, prepare
    from atlas_wsi.inference.predict import peak_memory_bytes

    cpu = torch.device("cpu")
    model = prepare(make_model(name, size), device=cpu, dtype=choose_dtype(cpu, precision))
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    layout = model.encoder.plan((size, size))
    small = model.encoder.plan((256, 256))
    encode_array(model, small, pixels[:256, :256], batch=16, side=4)
    before = psutil.Process().memory_info().rss
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        encode_array(model, layout, pixels, batch=16, side=4)
        seconds.append(time.perf_counter() - start)
    return {"seconds": min(seconds), "peak_mib": (peak_memory_bytes() - before) / 2**20}


def plot(found: dict[str, dict[int, dict[str, float]]], path: Path, title: str) -> None:
    """Draw time and memory against pixels."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for (name, rows), color in zip(found.items(), COLORS, strict=True):
        pixels = [(size**2) / 1e6 for size in rows]
        for ax, key in zip(axes, ("seconds", "peak_mib"), strict=True):
            ax.plot(pixels, [row[key] for row in rows.values()], "o-", color=color, label=name)
    for ax, label in zip(axes, ("seconds", "memory over the start, MiB"), strict=True):
        ax.set(xscale="log", yscale="log", xlabel="megapixels", ylabel=label)
        ax.grid(visible=True, which="both", alpha=0.2)
    axes[0].legend(frameon=False, fontsize=9)
    fig.suptitle(title, fontsize=10)
    fig.savefig(path, dpi=110)


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024, 2048, 4096])
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        name, size = args.one
        print(json.dumps(run(name, int(size), args.precision, args.repeats)))
        return
    found: dict[str, dict[int, dict[str, float]]] = {name: {} for name in NAMES}
    print(f"{'':<20} " + " ".join(f"{size:>7} px {'MiB':>6}" for size in args.sizes) + "   slope")
    for name in NAMES:
        for size in args.sizes:
            options = ["--precision", args.precision, "--repeats", str(args.repeats)]
            command = [sys.executable, __file__, "--one", name, str(size), *options]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[name][size] = json.loads(done.stdout)
        rows = found[name]
        logs = np.log([[size**2, row["seconds"]] for size, row in rows.items()])
        slope = np.polyfit(*logs.T, 1)[0] if len(rows) > 1 else np.nan
        cells = " ".join(f"{r['seconds']:8.2f} s {r['peak_mib']:6.0f}" for r in rows.values())
        print(f"{name:<20} {cells} {slope:7.2f}", flush=True)
    if args.plot:
        plot(found, args.plot, f"streamed pass on the CPU, {args.precision} precision")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
