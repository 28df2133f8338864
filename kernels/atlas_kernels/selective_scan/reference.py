"""The selective scan as its definition says: one step after the other.

Source: arXiv 2312.00752, algorithm 2; arXiv 2407.08083.
"""

# B sequences, D channels, N states per channel, L steps

from __future__ import annotations

import torch
from torch.nn import functional


def selective_scan_reference(
    u_BDL: torch.Tensor,
    delta_BDL: torch.Tensor,
    A_DN: torch.Tensor,
    B_BNL: torch.Tensor,
    C_BNL: torch.Tensor,
    D_D: torch.Tensor,
    bias_D: torch.Tensor,
    softplus: bool,
) -> torch.Tensor:
    """Scan in the type of the inputs; differentiable; slow."""
    delta = delta_BDL + bias_D[:, None]
    if softplus:
        delta = functional.softplus(delta)
    h_BDN = u_BDL.new_zeros(u_BDL.shape[0], *A_DN.shape)
    y = []
    for step in range(u_BDL.shape[2]):
        dt, B, C = delta[:, :, step, None], B_BNL[:, None, :, step], C_BNL[:, None, :, step]
        h_BDN = torch.exp(dt * A_DN) * h_BDN + dt * B * u_BDL[:, :, step, None]
        y.append((C * h_BDN).sum(dim=-1))
    y_BDL = torch.stack(y, dim=-1) if y else torch.zeros_like(u_BDL)
    return y_BDL + D_D[:, None] * u_BDL
