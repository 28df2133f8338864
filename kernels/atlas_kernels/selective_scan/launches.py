"""The launches of the scan at the shapes of MambaVision."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atlas_kernels.compile import Launch
from atlas_kernels.selective_scan.kernel import (
    CHANNELS,
    CHUNK,
    backward_choices,
    forward_choices,
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
    """Yield forward (inference, bf16) and both passes of training (fp32)."""
    for name, (channels, states, length) in SHAPES.items():
        chunks = -(-length // CHUNK)
        sizes = {"CHUNK": CHUNK, "STATES": states, "SOFTPLUS": True}
        count = {"channels": channels, "states": states, "length": length, "n_chunks": chunks}
        wide = -(-2 * channels // 16) + 2 * states
        count |= _strides(("B", "C"), {"b": length * wide, "n": 1, "l": wide})
        rows = {"b": length * channels, "d": 1, "l": channels}
        made = ("A", "D", "bias", "saved", "dA", "dB", "dC", "dD", "dbias")
        for kind, save in (("bf16", False), ("fp32", True)):
            tensors = ("u", "delta", "B", "C", "y")
            for choice in forward_choices(channels, states):
                yield Launch(
                    kernel=scan_forward_kernel,
                    shape=f"{name}, {kind}" + (", training" if save else ""),
                    types=dict.fromkeys(tensors, f"*{kind}") | dict.fromkeys(made[:4], "*fp32"),
                    integers={**count, **_strides(("u", "delta", "y"), rows)},
                    constants={**sizes, **dict(choice.constants), "SAVE": save},
                    num_warps=choice.warps,
                )
        for kind in ("bf16", "fp32"):
            given = ("u", "delta", "B", "C", "dy", "du", "ddelta")
            for choice in backward_choices(channels, states):
                yield Launch(
                    kernel=scan_backward_kernel,
                    shape=f"{name}, {kind}",
                    types=dict.fromkeys(given, f"*{kind}") | dict.fromkeys(made, "*fp32"),
                    integers={
                        **count,
                        "groups": -(-channels // CHANNELS),
                        **_strides(("u", "delta", "dy"), rows),
                    },
                    constants={**sizes, **dict(choice.constants)},
                    num_warps=choice.warps,
                )


def _strides(tensors: tuple[str, ...], strides: dict[str, int]) -> dict[str, int]:
    return {f"{t}_{axis}": stride for t in tensors for axis, stride in strides.items()}
