"""Time the encoder against a plain implementation of the same model and against timm's backbones.

    python benchmarks/encode.py --sizes 512 1024 2048 4096 --json encode.json

Needs timm (`pip install timm`; its models run with random weights). The outputs of the plain
implementation and ours are compared first; nothing is printed if they differ. Models take turns in
one process; the fastest repeat counts; ratios are to plain float32 of the same size.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from plain_atlas import PlainAtlas

from atlas_wsi.inference.benchmark import encode_array
from atlas_wsi.models import AtlasConfig, Model, ModelCard, ModelClass
from atlas_wsi.streaming.device import prepare

CARD = ModelCard(
    name="bench",
    domain="slide",
    mpp=1.0,
    classes=tuple(ModelClass(name=f"c{i}", color="#000000") for i in range(100)),
)
PEERS = ("vit_base_patch16_224", "swin_base_patch4_window7_224", "convnext_base")
CPU = torch.device("cpu")


def make_atlas(dim: int, size: int) -> Model:
    """Make Atlas-B (dim 768) or Atlas-S (384) with the published depths for a size."""
    scales = 2 if size <= 1024 else 3
    depths = (2, 10) if scales == 2 else (2, 2, 8)
    torch.manual_seed(0)
    return Model(AtlasConfig(dim=dim, heads=dim // 64, depths=depths, n_scales=scales), CARD).eval()


def streamed(model: Model, dtype: torch.dtype, image: np.ndarray):
    """Return a call that runs the streamed pass as `predict` does."""
    ready = prepare(model, device=CPU, dtype=dtype)
    layout = model.encoder.plan(image.shape[:2])
    return lambda: encode_array(ready, layout, image, batch=16, side=8).slide


def peer(name: str, size: int, dtype: torch.dtype):
    """Return a call that runs one of timm's backbones."""
    import timm

    sized = {"img_size": size} if "convnext" not in name else {}
    if "swin" in name:
        sized["img_size"] = -(-size // 224) * 224 if size % 224 else size
    model = timm.create_model(name, pretrained=False, num_classes=100, **sized).eval().to(dtype)
    side = sized.get("img_size", size)
    x = torch.randn(1, 3, side, side).to(dtype)
    if "convnext" in name:
        model, x = (
            model.to(memory_format=torch.channels_last),
            x.contiguous(memory_format=torch.channels_last),
        )
    return lambda: model(x)


@torch.inference_mode()
def best(call, repeats: int, limit_s: float) -> float:
    """Return the fastest of a few runs after a warm-up."""
    times = []
    for i in range(repeats + 1):
        start = time.perf_counter()
        call()
        took = time.perf_counter() - start
        if i or took > limit_s:
            times.append(took)
        if took > limit_s:
            break
    return min(times)


@torch.inference_mode()
def check(dim: int) -> None:
    """Stop if the outputs differ."""
    model = make_atlas(dim, 512)
    image = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    expected = PlainAtlas(model.encoder)(model.normalize(torch.from_numpy(image[None])))[0]
    found = streamed(model, torch.float32, image)()
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def measure(
    size: int, args: argparse.Namespace, before: dict[int, dict[str, float]]
) -> dict[str, float]:
    """Time everything at one size, except what would take longer than --patience."""
    image = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    found: dict[str, float] = {}

    def is_hopeless(name: str) -> bool:
        last = max(before, default=0)
        if not last:
            return False
        least = before[last].get(name, np.inf) * (size / last) ** 2
        return least > args.patience

    def put(name: str, call) -> None:
        found[name] = best(call, args.repeats, args.limit)
        print(f"{size:5d} px  {name:<44} {found[name]:8.3f} s", flush=True)

    for label, dim in (("atlas-b", 768), ("atlas-s", 384)):
        model = make_atlas(dim, size)
        x = model.normalize(torch.from_numpy(image[None])).contiguous()
        plain = PlainAtlas(model.encoder)
        put(f"{label} plain float32", lambda plain=plain, x=x: plain(x))
        with torch.autocast("cpu", torch.bfloat16):
            put(f"{label} plain bf16 autocast", lambda plain=plain, x=x: plain(x))
        put(f"{label} ours float32", streamed(model, torch.float32, image))
        put(f"{label} ours bfloat16", streamed(model, torch.bfloat16, image))
    for name in args.peers:
        for dtype in (torch.float32, torch.bfloat16):
            label = f"{name} {str(dtype).removeprefix('torch.')}"
            if not is_hopeless(label):
                put(label, peer(name, size, dtype))
    return found


def table(results: dict[int, dict[str, float]]) -> None:
    """Print ratios to plain float32, and how time grows with pixels."""
    sizes = list(results)
    print("\nspeedup over plain float32 Atlas-B")
    print(f"{'':<44}" + "".join(f"{s:>9} px" for s in sizes) + "   slope")
    for name in results[sizes[0]]:
        seconds = np.array([results[s].get(name, np.nan) for s in sizes])
        ratios = np.array([results[s]["atlas-b plain float32"] for s in sizes]) / seconds
        known = np.isfinite(seconds)
        pixels = np.log(np.array(sizes)[known] ** 2.0)
        slope = np.polyfit(pixels, np.log(seconds[known]), 1)[0] if known.sum() > 1 else np.nan
        print(f"{name:<44}" + "".join(f"{r:12.2f}" for r in ratios) + f"{slope:8.2f}")


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024, 2048, 4096])
    parser.add_argument("--peers", nargs="*", default=list(PEERS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=float, default=20, help="seconds; slower models run once")
    parser.add_argument(
        "--patience",
        type=float,
        default=200,
        help="seconds; models that would take longer are skipped",
    )
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    check(768)
    check(384)
    results: dict[int, dict[str, float]] = {}
    for size in args.sizes:
        results[size] = measure(size, args, results)
    table(results)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
