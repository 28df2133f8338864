"""Kernels with a plain reference, a fast CPU path and a Triton form each.

Each dispatcher picks by device and type; `explain` says what it would pick here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from atlas_kernels import selective_scan as _scan
from atlas_kernels import window_attention as _attention
from atlas_kernels.selective_scan import selective_scan
from atlas_kernels.window_attention import multiscale_window_attention

if TYPE_CHECKING:
    import torch

__all__ = ["explain", "multiscale_window_attention", "selective_scan"]


def explain(
    device: str | torch.device = "cpu", *, dtype: torch.dtype | None = None
) -> dict[str, str]:
    """Name who computes each kernel on a device, and why.

    Parameters
    ----------
    device
        Such as ``"cpu"`` or ``"cuda"``.
    dtype
        Type of the tensors; float32 by default.

    Returns
    -------
    dict
        A sentence by kernel.
    """
    import torch

    device, dtype = torch.device(device), dtype or torch.float32
    chosen = {
        "selective_scan": _scan.choose(device, dtype),
        "multiscale_window_attention": _attention.choose(device, dtype),
    }
    return {kernel: f"{name}: {why}" for kernel, (name, why) in chosen.items()}
