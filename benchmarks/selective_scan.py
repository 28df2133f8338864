"""Compare the selective scan on this CPU with the plain loop, in one run.

    python benchmarks/selective_scan.py

The results are compared with float64 first; nothing is timed if they differ.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import torch

from atlas_kernels import selective_scan


def make_inputs(batch: int, channels: int, states: int, length: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "u": torch.randn(batch, length, channels).mT,
        "delta": (torch.randn(batch, length, channels) * 0.5 - 2).mT,
        "A": -torch.randn(channels, states).exp(),
        "B": torch.randn(batch, states, length),
        "C": torch.randn(batch, states, length),
        "D": torch.randn(channels),
        "delta_bias": torch.randn(channels),
    }


def check(implementation: str) -> None:
    few = make_inputs(4, 160, 8, 196)
    found = selective_scan(**few, delta_softplus=True, implementation=implementation)
    exact = selective_scan(
        **{k: v.double() for k, v in few.items()}, delta_softplus=True, implementation="reference"
    )
    error = (found - exact).abs().max() / exact.abs().max()
    if error > 3e-6:
        sys.exit(f"{implementation} is wrong by {error:.1e}; nothing was timed")


def seconds(inputs: dict[str, torch.Tensor], implementation: str, *, backward: bool) -> float:
    leaves = {k: v.detach().requires_grad_(backward) for k, v in inputs.items()}
    start = time.perf_counter()
    y = selective_scan(**leaves, delta_softplus=True, implementation=implementation)
    if backward:
        y.sum().backward()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", type=int, nargs=4, default=(512, 160, 8, 196))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--backward", action="store_true")
    arguments = parser.parse_args()
    names = ["reference", "torch", "numba"]
    for name in names[1:]:
        check(name)
    inputs = make_inputs(*arguments.shape)
    taken: dict[str, list[float]] = {name: [] for name in names}
    seconds(inputs, "numba", backward=arguments.backward)  # compiles
    for _ in range(arguments.repeats):  # in turns, so that other load affects all equally
        for name in names:
            taken[name].append(seconds(inputs, name, backward=arguments.backward))
    loop = statistics.median(taken["reference"])
    print(f"batch, channels, states, length: {tuple(arguments.shape)}, float32", end="")
    print(
        f", {torch.get_num_threads()} threads" + (", with backward" if arguments.backward else "")
    )
    for name in names:
        middle = statistics.median(taken[name])
        print(f"{name:10s} {middle:7.3f} s (best {min(taken[name]):.3f})  {loop / middle:5.1f} x")


if __name__ == "__main__":
    main()
