"""Multi-scale window attention as its definition says: every window with all keys it may see."""

# N windows, T tokens that ask, K keys, C channels, H heads, D channels per head, M coarse windows

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence


def window_attention_reference(
    heads: int,
    valid_NK: torch.Tensor | None,
    masks: Sequence[torch.Tensor | None],
    index: Sequence[torch.Tensor],
    q_NTC: torch.Tensor,
    kv_NKC: torch.Tensor,
    *coarse: torch.Tensor,
) -> torch.Tensor:
    """Attend in the type of the inputs; differentiable; copies coarse keys for every window."""
    kv, valid = join_keys(valid_NK, masks, index, kv_NKC, coarse)
    n, t, c = q_NTC.shape
    q_NHTD = q_NTC.view(n, t, heads, c // heads).transpose(1, 2)
    k_NHKD, v_NHKD = kv.view(n, kv.shape[1], 2, heads, c // heads).permute(2, 0, 3, 1, 4)
    scores = q_NHTD @ k_NHKD.mT * (c // heads) ** -0.5
    if valid is not None:
        scores = scores.masked_fill(~valid[:, None, None], -torch.inf)
        scores = scores.masked_fill(~valid.any(dim=1)[:, None, None, None], 0)
    a = scores.softmax(dim=-1)
    if valid is not None:
        a = a * valid[:, None, None]
    return (a @ v_NHKD).transpose(1, 2).reshape(n, t, c)


def join_keys(
    valid_NK: torch.Tensor | None,
    masks: Sequence[torch.Tensor | None],
    index: Sequence[torch.Tensor],
    kv_NKC: torch.Tensor,
    coarse: Sequence[torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Put own and coarse keys of every window side by side, and which exist (None: all do)."""
    kv = torch.cat([kv_NKC, *(c[i] for c, i in zip(coarse, index, strict=True))], dim=1)
    own, *others = complete_masks([valid_NK, *masks], [kv_NKC, *coarse])
    if own is None:
        return kv, None
    return kv, torch.cat([own, *(m[i] for m, i in zip(others, index, strict=True))], dim=1)


def complete_masks(
    masks: Sequence[torch.Tensor | None], keys: Sequence[torch.Tensor]
) -> Sequence[Any]:
    """Give all scales a mask if one has one."""
    if all(mask is None for mask in masks):
        return masks
    return [
        torch.ones(k.shape[:2], dtype=torch.bool, device=k.device) if m is None else m
        for m, k in zip(masks, keys, strict=True)
    ]
