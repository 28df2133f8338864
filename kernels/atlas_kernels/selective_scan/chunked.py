"""The selective scan on the CPU in torch alone: vectorized over windows, states and channels.

A few windows at a time, so that the state stays in the cache; exponentials and the readout of a
chunk of steps are one operation each, and a step of the recurrence is one fused multiply-add.
"""

# B sequences, D channels, N states per channel, L steps, K steps of a chunk

from __future__ import annotations

import torch
from torch.nn import functional

_CHUNK = 8
_STATE_FLOATS = 2**15
"""Floats of state that are worked on at once."""


def selective_scan_chunked(
    u_BDL: torch.Tensor,
    delta_BDL: torch.Tensor,
    A_DN: torch.Tensor,
    B_BNL: torch.Tensor,
    C_BNL: torch.Tensor,
    D_D: torch.Tensor,
    bias_D: torch.Tensor,
    softplus: bool,
) -> torch.Tensor:
    """Scan in float32, or in float64 if the input is; differentiable."""
    dtype = torch.float64 if u_BDL.dtype == torch.float64 else torch.float32
    tensors = (u_BDL, delta_BDL, A_DN, B_BNL, C_BNL, D_D, bias_D)
    u, delta, A, B, C, D, bias = (t.to(dtype) for t in tensors)
    delta = delta + bias[:, None]
    if softplus:
        delta = functional.softplus(delta)
    step = max(1, _STATE_FLOATS // A.numel())
    parts = []
    for at in range(0, len(u), step):
        part = slice(at, at + step)
        parts.append(_scan(u[part], delta[part], A.t(), B[part], C[part]))
    y_BDL = torch.cat(parts) if parts else torch.zeros_like(u)
    return y_BDL + D[:, None] * u


def _scan(
    u_BDL: torch.Tensor,
    delta_BDL: torch.Tensor,
    A_ND: torch.Tensor,
    B_BNL: torch.Tensor,
    C_BNL: torch.Tensor,
) -> torch.Tensor:
    batch, channels, length = u_BDL.shape
    delta_LBD, input_LBD = (t.permute(2, 0, 1).contiguous() for t in (delta_BDL, delta_BDL * u_BDL))
    B_LBN, C_LBN = (t.permute(2, 0, 1).contiguous() for t in (B_BNL, C_BNL))
    A_ND = A_ND.contiguous()
    h_BND = u_BDL.new_zeros(batch, len(A_ND), channels)
    y = []
    for at in range(0, length, _CHUNK):
        part = slice(at, at + _CHUNK)
        decay_KBND = (delta_LBD[part, :, None] * A_ND).exp()
        new_KBND = input_LBD[part, :, None] * B_LBN[part, ..., None]
        states = []
        for decay_BND, new_BND in zip(decay_KBND.unbind(), new_KBND.unbind(), strict=True):
            h_BND = torch.addcmul(new_BND, decay_BND, h_BND)
            states.append(h_BND)
        y.append((C_LBN[part, :, None] @ torch.stack(states))[:, :, 0])
    return torch.cat(y).permute(1, 2, 0) if y else u_BDL
