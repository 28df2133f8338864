"""Who computes the operators that models are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atlas_kernels import explain

if TYPE_CHECKING:
    import torch


def name_kernels(device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """Name who computes each operator on a device, and why.

    Parameters
    ----------
    device
        Where a model would run.
    dtype
        What it would compute in.

    Returns
    -------
    dict
        A sentence by operator, such as ``numba: compiled for this CPU by numba``.
    """
    return explain(device, dtype=dtype)
