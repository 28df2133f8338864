"""The launches of the scan at the shapes of MambaVision."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atlas_kernels.compile import Launch
from atlas_kernels.selective_scan.kernel import (
    CHANNELS,
    CHUNK,
    N_WARPS,
    scan_backward_kernel,
    scan_forward_kernel,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

SHAPES = {
    "MambaVision-T, 196 steps, state 8": (160, 8, 196),
    "196 steps, state 16": (160, 16, 196),
}
"""Channels, states and steps."""


def scan_launches() -> Iterator[Launch]:
    """Yield forward (inference, bf16) and both passes of training (fp32).

    Yields
    ------
    Launch
        One kernel at one shape.
    """
    for name, (channels, states, length) in SHAPES.items():
        chunks = -(-length // CHUNK)
        sizes = {"CHUNK": CHUNK, "CHANNELS": CHANNELS, "STATES": states, "SOFTPLUS": True}
        count = {"channels": channels, "states": states, "length": length, "n_chunks": chunks}
        rank = -(-2 * channels // 16)
        wide = {"b": length * (rank + 2 * states), "n": 1, "l": rank + 2 * states}
        rows = {"b": length * channels, "d": 1, "l": channels}
        warps = N_WARPS[8 if states <= 8 else 16]
        for kind, save in (("bf16", False), ("fp32", True)):
            tensors = ("u", "delta", "B", "C", "y")
            yield Launch(
                kernel=scan_forward_kernel,
                shape=f"{name}, {kind}" + (", training" if save else ""),
                pointers={
                    **dict.fromkeys(tensors, f"*{kind}"),
                    **dict.fromkeys(("A", "D", "bias", "saved"), "*fp32"),
                },
                integers={
                    **count,
                    **{f"{t}_{k}": v for t in ("u", "delta", "y") for k, v in rows.items()},
                    **{f"{t}_{k}": v for t in ("B", "C") for k, v in wide.items()},
                },
                constants={**sizes, "SAVE": save},
                num_warps=warps[0],
            )
        for kind in ("bf16", "fp32"):
            given = ("u", "delta", "B", "C", "dy", "du", "ddelta")
            made = ("A", "D", "bias", "saved", "dA", "dB", "dC", "dD", "dbias")
            yield Launch(
                kernel=scan_backward_kernel,
                shape=f"{name}, {kind}",
                pointers={**dict.fromkeys(given, f"*{kind}"), **dict.fromkeys(made, "*fp32")},
                integers={
                    **count,
                    "groups": -(-channels // CHANNELS),
                    **{f"{t}_{k}": v for t in ("u", "delta", "dy") for k, v in rows.items()},
                    **{f"{t}_{k}": v for t in ("B", "C") for k, v in wide.items()},
                },
                constants=sizes,
                num_warps=warps[1],
            )
