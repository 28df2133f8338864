"""Who computes the operators that models are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atlas_kernels import explain

if TYPE_CHECKING:
    import torch


def name_kernels(device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """Name who computes each operator on a device, and why."""
    return explain(device, dtype=dtype)
