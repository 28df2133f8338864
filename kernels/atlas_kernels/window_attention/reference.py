"""Multi-scale window attention as its definition says: every window with all keys it may see."""

# N windows, T tokens that ask, K keys, C channels, H heads, D channels per head, M coarse windows

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence


def window_attention_reference(
    q_NTC: torch.Tensor,
    kv_NKC: torch.Tensor,
    coarse_kv: Sequence[torch.Tensor],
    index: Sequence[torch.Tensor],
    *,
    heads: int,
    valid_NK: torch.Tensor | None = None,
    coarse_valid: Sequence[torch.Tensor | None] = (),
) -> torch.Tensor:
    """Attend in the type of the inputs; differentiable; copies coarse keys for every window.

    Arguments are those of `window_attention`. Returns: `(N, T, C)`; zero where no key exists.
    """
    kv, valid = join_keys(kv_NKC, coarse_kv, index, valid_NK=valid_NK, coarse_valid=coarse_valid)
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
    kv_NKC: torch.Tensor,
    coarse_kv: Sequence[torch.Tensor],
    index: Sequence[torch.Tensor],
    *,
    valid_NK: torch.Tensor | None,
    coarse_valid: Sequence[torch.Tensor | None],
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Put own and coarse keys of every window side by side, and which exist (None: all do)."""
    kv = torch.cat([kv_NKC, *(c[i] for c, i in zip(coarse_kv, index, strict=True))], dim=1)
    masks = [valid_NK, *(coarse_valid or [None] * len(coarse_kv))]
    if all(mask is None for mask in masks):
        return kv, None
    n = len(kv_NKC)
    places = [None, *index]
    parts = []
    for mask, place, keys in zip(masks, places, [kv_NKC, *coarse_kv], strict=True):
        if mask is None:
            parts.append(torch.ones(n, keys.shape[1], dtype=torch.bool, device=kv.device))
        else:
            parts.append(mask if place is None else mask[place])
    return kv, torch.cat(parts, dim=1)
