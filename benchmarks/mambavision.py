"""Compare MambaVision-T at 224 px with a plain implementation of the same model, in one run.

    python benchmarks/mambavision.py                # batch 16, a table in Markdown
    python benchmarks/mambavision.py --variant S --size 512 --batch 4

The plain implementation: float32, one step of the scan after the other, batch norm not folded,
channels first, convolutions along tokens by `conv1d`, torch's linear layers. Outputs are compared
before anything is timed. Implementations take turns, so that other load affects all equally; the
median of the repeats counts.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from types import MethodType
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from atlas_kernels import selective_scan
from atlas_wsi.models.linear import Linear
from atlas_wsi.models.mambavision import VARIANTS, make_variant
from atlas_wsi.models.mambavision_blocks import MambaMixer, Mlp

if TYPE_CHECKING:
    from atlas_wsi.models import MambaVision

GOALS = {"ours, float32": 1.3, "ours, bfloat16": 3.0}


def plain(model: MambaVision) -> MambaVision:
    """Return a plain implementation of the same model."""
    model = copy.deepcopy(model)

    def forward(self: MambaMixer, x: torch.Tensor) -> torch.Tensor:
        a, z = self.in_proj(x).transpose(1, 2).chunk(2, dim=1)
        halves = ((a, self.conv1d_x), (z, self.conv1d_z))
        a, z = (
            functional.silu(functional.conv1d(h, c.weight, padding=1, groups=c.groups))
            for h, c in halves
        )
        sizes = [self.dt_proj.in_features, 8, 8]
        dt, b, c = self.x_proj(a.transpose(1, 2)).split(sizes, dim=-1)
        delta = self.dt_proj(dt).transpose(1, 2)
        y = selective_scan(
            a, delta, -self.A_log.exp(), b.transpose(1, 2), c.transpose(1, 2), self.D,
            delta_bias=self.dt_proj.bias, delta_softplus=True, implementation="reference",
        )  # fmt: skip
        return self.out_proj(torch.cat([y, z], dim=1).transpose(1, 2))

    def mlp(self: Mlp, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(functional.gelu(self.fc1(x)))

    for module in model.modules():
        if isinstance(module, Linear):
            module.__class__ = nn.Linear  # torch's own, same weights
        elif isinstance(module, MambaMixer):
            module.forward = MethodType(forward, module)
        elif isinstance(module, Mlp):
            module.forward = MethodType(mlp, module)
    return model


def make_model(variant: str) -> MambaVision:
    """Make a model whose batch norms and step sizes differ from the initial ones."""
    torch.manual_seed(0)
    model = make_variant(variant).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.5)
    return model


def off(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest error as a share of the largest logit."""
    return float((found.float() - expected).abs().max() / expected.abs().max())


@torch.inference_mode()
def main() -> None:
    """Compare, time and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variant", choices=VARIANTS, default="T")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    model = make_model(args.variant)
    x = torch.randn(args.batch, 3, args.size, args.size)
    fast = copy.deepcopy(model).fold_()
    half = copy.deepcopy(fast).to(torch.bfloat16)
    last = x.contiguous(memory_format=torch.channels_last)
    low = last.to(torch.bfloat16)
    loop = plain(model)
    who = {
        "plain, float32": lambda: loop(x),
        "ours, float32": lambda: fast(last),
        "ours, bfloat16": lambda: half(low),
    }
    expected = who["plain, float32"]()
    errors = {name: off(call(), expected) for name, call in who.items()}
    if errors["ours, float32"] > 1e-4 or errors["ours, bfloat16"] > 5e-2:
        sys.exit(f"Outputs differ, nothing was timed: {errors}")
    taken: dict[str, list[float]] = {name: [] for name in who}
    for _ in range(args.repeats):
        for name, call in who.items():
            start = time.perf_counter()
            call()
            taken[name].append(time.perf_counter() - start)
    print(
        f"MambaVision-{args.variant}, {args.batch} x {args.size} px, "
        f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}\n"
    )
    print("| implementation | seconds | images per second | speedup | target | largest error |")
    print("|---|--:|--:|--:|--:|--:|")
    base = statistics.median(taken["plain, float32"])
    for name, times in taken.items():
        middle = statistics.median(times)
        goal = f"{GOALS[name]:.1f} x" if name in GOALS else ""
        print(
            f"| {name} | {middle:.3f} | {args.batch / middle:.1f} | {base / middle:.2f} x | {goal} "
            f"| {errors[name]:.0e} |"
        )


if __name__ == "__main__":
    main()
