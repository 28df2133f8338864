"""Measure time and memory of the three backbones by image size, in one run, with a plot.

    python benchmarks/backbones.py --sizes 512 1024 2048 4096
    python benchmarks/backbones.py --sizes 512 1024 --precision float32 --repeats 1

Atlas-S (384 channels), MambaVision-S, and MambaVision-S under the coarse scales of Atlas-S, all
through the streamed pass that `predict` uses; random weights. Each measurement has its own process,
so that peak memory is measured separately; memory held before the pass (torch, the model, the image)
is listed apart. Backbones take turns; the fastest repeat counts.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

BACKBONES = {"atlas": "Atlas-S", "mambavision": "MambaVision-S", "mambavision+msa": "MambaVision-S + MSA"}  # fmt: skip
COLORS = {"atlas": "#d55e00", "mambavision": "#0072b2", "mambavision+msa": "#009e73"}
PLOT = Path(__file__).parents[1] / "docs" / "images" / "backbones.png"


def measure(backbone: str, size: int, precision: str, repeats: int) -> dict[str, float]:
    """Encode a random image in this process; return seconds and MiB."""
    import torch

    from atlas_wsi.inference.benchmark import encode_array
    from atlas_wsi.models import AtlasConfig, Model, ModelCard, ModelClass
    from atlas_wsi.models.mambavision import VARIANTS
    from atlas_wsi.streaming.device import prepare

    scales = 2 if size <= 1024 else 3
    depths = (2, 10) if scales == 2 else (2, 2, 8)
    trunk = VARIANTS["S"]
    sizes = {
        "atlas": {"dim": 384, "heads": 6, "depths": depths, "n_scales": scales},
        "mambavision": {
            "dim": trunk.level_dim(3), "heads": 12, "depths": (), "n_scales": 1,
            "stem": "mambavision", "stem_options": asdict(trunk),
        },
        "mambavision+msa": {
            "dim": trunk.level_dim(2), "heads": 6, "depths": depths, "n_scales": scales,
            "stem": "mambavision", "stem_options": asdict(trunk),
        },
    }  # fmt: skip
    classes = tuple(ModelClass(name=f"c{i}", color="#000000") for i in range(10))
    card = ModelCard(name="bench", domain="slide", mpp=1.0, classes=classes)
    torch.manual_seed(0)
    model = Model(AtlasConfig(n_classes=10, **sizes[backbone]), card).eval()
    ready = prepare(model, device=torch.device("cpu"), dtype=getattr(torch, precision))
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    del model
    image = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    layout = ready.encoder.plan(image.shape[:2])
    before = resident_mib()
    times = []
    with torch.inference_mode():
        small = image[:512, :512]  # warms up: numba's code, oneDNN's kernels
        encode_array(ready, ready.encoder.plan(small.shape[:2]), small, batch=16, side=8)
        for _ in range(repeats):
            start = time.perf_counter()
            encode_array(ready, layout, image, batch=16, side=8)
            times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": min(times), "mib": peak - before, "held_mib": before, "millions": millions}


def resident_mib() -> float:
    """Return the resident memory of this process."""
    import psutil

    return psutil.Process().memory_info().rss / 2**20


def draw(rows: list[dict], path: Path) -> None:
    """Plot seconds and memory against pixels, both axes logarithmic."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for backbone, name in BACKBONES.items():
        own = [r for r in rows if r["backbone"] == backbone]
        pixels = [r["size"] ** 2 / 1e6 for r in own]
        style = {"marker": "o", "color": COLORS[backbone], "label": name}
        left.loglog(pixels, [r["seconds"] for r in own], **style)
        right.loglog(pixels, [r["mib"] for r in own], **style)
    x = np.array([min(r["size"] for r in rows), max(r["size"] for r in rows)]) ** 2 / 1e6
    first = min(r["seconds"] for r in rows)
    left.loglog(x, first * x / x[0], color="0.6", linestyle=":", label="linear in pixels")
    for axes, title in ((left, "seconds"), (right, "memory of the pass, MiB")):
        axes.set_title(title)
        axes.set_xlabel("megapixels")
        axes.grid(visible=True, color="0.9")
    left.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def table(rows: list[dict]) -> None:
    """Print Markdown: seconds, memory, and how time grows with pixels."""
    sizes = sorted({r["size"] for r in rows})
    for key, unit in (("seconds", "s"), ("mib", "MiB")):
        print(f"\n| {key}, {unit} | " + " | ".join(f"{s} px" for s in sizes) + " | exponent |")
        print("|---|" + "--:|" * (len(sizes) + 1))
        for backbone, name in BACKBONES.items():
            found = {r["size"]: r[key] for r in rows if r["backbone"] == backbone}
            values = [found[s] for s in sizes]
            slope = "" if len(sizes) == 1 else f"{np.polyfit(np.log(sizes), np.log(values), 1)[0] / 2:.2f}"  # fmt: skip
            print(f"| {name} | " + " | ".join(f"{v:.3g}" for v in values) + f" | {slope} |")
    print("\nThe exponent is that of pixels: 1 is linear.")


def main() -> None:
    """Run every measurement in its own process, then print and plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024, 2048, 4096])
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, default=PLOT)
    parser.add_argument("--one", nargs=2, metavar=("BACKBONE", "SIZE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        found = measure(args.one[0], int(args.one[1]), args.precision, args.repeats)
        print(json.dumps(found))
        return
    rows = []
    for size in args.sizes:
        for backbone, name in BACKBONES.items():
            command = [sys.executable, __file__, "--one", backbone, str(size)]
            command += ["--precision", args.precision, "--repeats", str(args.repeats)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            rows.append({"backbone": backbone, "size": size, **found})
            print(
                f"{size:5d} px  {name:20s} {found['seconds']:8.2f} s  {found['mib']:7.0f} MiB "
                f"plus {found['held_mib']:.0f} held before, {found['millions']:.1f} M weights",
                flush=True,
            )
    table(rows)
    draw(rows, args.plot)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
