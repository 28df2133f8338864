"""The selective scan and the choice of who computes it."""

# B sequences, D channels, N states per channel, L steps

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Literal

import torch
from torch.nn import functional

Implementation = Literal["mamba_ssm", "triton", "numba", "torch", "reference"]

_HOME: dict[Implementation, tuple[str, str]] = {
    "mamba_ssm": ("mamba_ssm.ops.selective_scan_interface", "selective_scan_fn"),
    "triton": ("atlas_kernels.selective_scan.kernel", "selective_scan_triton"),
    "numba": ("atlas_kernels.selective_scan.compiled", "selective_scan_compiled"),
    "torch": ("atlas_kernels.selective_scan.chunked", "selective_scan_chunked"),
    "reference": ("atlas_kernels.selective_scan.reference", "selective_scan_reference"),
}
"""Module and function; imported when it is chosen."""


def choose(device: torch.device, dtype: torch.dtype) -> tuple[Implementation, str]:
    """Name who scans tensors of a device and type, and why."""
    if device.type == "cuda" and dtype != torch.float64:
        if _has("mamba_ssm"):
            return "mamba_ssm", "CUDA operator of the installed mamba-ssm"
        if _has("triton"):
            return "triton", "Triton kernel on a GPU"
    if device.type == "cpu" and dtype != torch.float64 and _has("numba"):
        return "numba", "compiled for this CPU by numba"
    return "torch", "torch operations in chunks; works everywhere"


def selective_scan(
    u: torch.Tensor,
    delta: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    delta_bias: torch.Tensor | None = None,
    delta_softplus: bool = False,
    *,
    implementation: Implementation | None = None,
) -> torch.Tensor:
    """Run ``h = exp(delta A) h + delta B u`` and ``y = C h + D u`` along sequences.

    Differentiable in every tensor. Any length, any strides; channels that lie together in memory
    (a transposed `(B, L, D)` tensor) are fastest.

    Parameters
    ----------
    u
        Input `(B, D, L)`.
    delta
        Step sizes `(B, D, L)`.
    A
        Decay rates `(D, N)`, negative.
    B
        Input weights `(B, N, L)`.
    C
        Output weights `(B, N, L)`.
    D
        Share of the input in the output, `(D,)`.
    z
        Gate `(B, D, L)`: the result is multiplied by ``silu(z)``.
    delta_bias
        Added to the step sizes, `(D,)`.
    delta_softplus
        Whether step sizes then pass through a softplus.
    implementation
        Who computes; by default what `choose` says. ``"reference"`` is the plain loop.

    Returns
    -------
    torch.Tensor
        `(B, D, L)` in the type of `u`.

    Raises
    ------
    ValueError
        If shapes do not fit, or the implementation has no such name.
    """
    _check(u, delta, A, B, C, D, z, delta_bias)
    name = implementation or choose(u.device, u.dtype)[0]
    if name not in _HOME:
        raise ValueError(f"no selective scan '{name}'; there are {tuple(_HOME)}")
    module, function = _HOME[name]
    scan = getattr(import_module(module), function)
    if name == "mamba_ssm":
        return scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    zeros = A.new_zeros(len(A))
    D, bias = (zeros if t is None else t for t in (D, delta_bias))
    y = scan(u, delta, A, B, C, D, bias, delta_softplus)
    return (y if z is None else y * functional.silu(z)).to(u.dtype)


@cache
def _has(package: str) -> bool:
    return find_spec(package) is not None


def _check(
    u: torch.Tensor,
    delta: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None,
    z: torch.Tensor | None,
    delta_bias: torch.Tensor | None,
) -> None:
    if u.ndim != 3 or A.ndim != 2:
        raise ValueError(f"u must be (B, D, L) and A (D, N), got {u.shape} and {A.shape}")
    batch, channels, length = u.shape
    states = A.shape[1]
    expected = {
        "delta": (delta, (batch, channels, length)),
        "A": (A, (channels, states)),
        "B": (B, (batch, states, length)),
        "C": (C, (batch, states, length)),
        "D": (D, (channels,)),
        "z": (z, (batch, channels, length)),
        "delta_bias": (delta_bias, (channels,)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{name} has the shape {tuple(tensor.shape)}, expected {shape}")
