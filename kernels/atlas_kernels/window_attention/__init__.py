"""Multi-scale window attention and the choice of who computes it."""

# N windows, T tokens that ask, K keys, C channels, M coarse windows

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

Implementation = Literal["triton", "torch", "reference"]

_HOME: dict[Implementation, tuple[str, str]] = {
    "triton": ("atlas_kernels.window_attention.gpu", "window_attention_triton"),
    "torch": ("atlas_kernels.window_attention.batched", "window_attention_batched"),
    "reference": ("atlas_kernels.window_attention.reference", "window_attention_reference"),
}
"""Module and function; imported when it is chosen."""


def choose(device: torch.device, dtype: torch.dtype) -> tuple[Implementation, str]:
    """Name who attends for tensors of a device and type, and why."""
    if device.type == "cuda" and dtype != torch.float64 and find_spec("triton") is not None:
        return "triton", "Triton kernel on a GPU; coarse keys are read where they lie"
    return "torch", "torch's fused attention, few windows at a time"


def multiscale_window_attention(
    q: torch.Tensor,
    kv: torch.Tensor,
    coarse_kv: Sequence[torch.Tensor] = (),
    index: Sequence[torch.Tensor] = (),
    *,
    heads: int,
    valid: torch.Tensor | None = None,
    coarse_valid: Sequence[torch.Tensor | None] = (),
    implementation: Implementation | None = None,
) -> torch.Tensor:
    """Let windows attend to their own keys and to one window of every coarser scale.

    Differentiable in queries, keys and values. Coarse keys are never copied for all windows.

    Parameters
    ----------
    q
        Queries `(N, T, C)`.
    kv
        Own keys and values `(N, K, 2C)`, keys first.
    coarse_kv
        Keys and values of every coarser scale, `(M, K', 2C)` each.
    index
        int64 `(N,)` a coarser scale: the coarse window that a window sees.
    heads
        Attention heads; divides C. Scores are scaled by ``(C / heads) ** -0.5``.
    valid
        bool `(N, K)`: which own keys exist; None if all do.
    coarse_valid
        bool `(M, K')` or None a coarser scale; empty if all coarse keys exist.
    implementation
        Who computes; by default what `choose` says.

    Returns
    -------
    torch.Tensor
        `(N, T, C)` in the type of `q`; zero for a window that sees no key that exists.

    Raises
    ------
    ValueError
        If the implementation has no such name.
    """
    _check(q, kv, coarse_kv, index, heads, valid, coarse_valid)
    name = implementation or choose(q.device, q.dtype)[0]
    if name not in _HOME:
        raise ValueError(f"no window attention '{name}'; there are {tuple(_HOME)}")
    module, function = _HOME[name]
    masks = coarse_valid or [None] * len(coarse_kv)
    return getattr(import_module(module), function)(heads, valid, masks, index, q, kv, *coarse_kv)


def _check(
    q: torch.Tensor,
    kv: torch.Tensor,
    coarse_kv: Sequence[torch.Tensor],
    index: Sequence[torch.Tensor],
    heads: int,
    valid: torch.Tensor | None,
    coarse_valid: Sequence[torch.Tensor | None],
) -> None:
    if q.ndim != 3 or kv.ndim != 3 or kv.shape[::2] != (q.shape[0], 2 * q.shape[2]):
        raise ValueError(
            f"q {tuple(q.shape)} and kv {tuple(kv.shape)} must be (N, T, C) and (N, K, 2C)"
        )
    if q.shape[2] % heads:
        raise ValueError(f"{q.shape[2]} channels do not divide by {heads} heads")
    if len(index) != len(coarse_kv) or (coarse_valid and len(coarse_valid) != len(coarse_kv)):
        raise ValueError(
            f"{len(coarse_kv)} coarser scales, but {len(index)} tables and "
            f"{len(coarse_valid)} validities"
        )
    for mask, keys in zip((valid, *coarse_valid), (kv, *coarse_kv), strict=False):
        if mask is not None and mask.shape != keys.shape[:2]:
            raise ValueError(f"validity {tuple(mask.shape)} of keys {tuple(keys.shape)}")
    for table, keys in zip(index, coarse_kv, strict=True):
        if table.shape != q.shape[:1] or keys.shape[2] != kv.shape[2]:
            raise ValueError(f"table {tuple(table.shape)} of keys {tuple(keys.shape)}")
