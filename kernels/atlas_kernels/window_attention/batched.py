"""Multi-scale window attention in torch: few windows at a time.

Only a few windows' coarse keys are ever laid beside their own, forward and backward, so memory
does not grow with windows times coarse keys. Where all fit, they are joined once and kept for the
backward pass, which is faster than joining them again.
"""

# N windows, T tokens that ask, K keys, C channels, H heads, D channels per head, M coarse windows

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from atlas_kernels.window_attention.reference import join_keys

if TYPE_CHECKING:
    from collections.abc import Sequence

_BATCH_ENTRIES = 2**24
"""Entries of keys and values that are laid side by side at once."""


def window_attention_batched(
    q_NTC: torch.Tensor,
    kv_NKC: torch.Tensor,
    coarse_kv: Sequence[torch.Tensor],
    index: Sequence[torch.Tensor],
    *,
    heads: int,
    valid_NK: torch.Tensor | None = None,
    coarse_valid: Sequence[torch.Tensor | None] = (),
) -> torch.Tensor:
    """Attend with torch's fused attention; differentiable once.

    `kv_NKC`: Own keys and values `(N, K, 2C)`, keys first. `coarse_kv`: Those of every coarser
    scale, `(M, K', 2C)`. `index`: The coarse window of every window, one `(N,)` a coarser scale.
    `coarse_valid`: Which coarse keys exist, `(M, K')` a scale. Returns: `(N, T, C)`; zero where no
    key exists.
    """
    if not coarse_kv:
        return _attend(q_NTC, kv_NKC, valid_NK, heads)
    if len(_parts(q_NTC, kv_NKC, coarse_kv)) == 1:
        kv, valid = join_keys(
            kv_NKC, coarse_kv, index, valid_NK=valid_NK, coarse_valid=coarse_valid
        )
        return _attend(q_NTC, kv, valid, heads)
    masks = list(coarse_valid) or [None] * len(coarse_kv)
    return _Batched.apply(heads, valid_NK, masks, list(index), q_NTC, kv_NKC, *coarse_kv)


def _attend(
    q_NTC: torch.Tensor, kv_NKC: torch.Tensor, valid_NK: torch.Tensor | None, heads: int
) -> torch.Tensor:
    n, t, c = q_NTC.shape
    q_NHTD = q_NTC.reshape(n, t, heads, c // heads).transpose(1, 2)
    k_NHKD, v_NHKD = kv_NKC.reshape(n, kv_NKC.shape[1], 2, heads, c // heads).permute(2, 0, 3, 1, 4)
    if valid_NK is None:
        a_NHTD = functional.scaled_dot_product_attention(q_NHTD, k_NHKD, v_NHKD)
        return a_NHTD.transpose(1, 2).reshape(n, t, c)
    some = valid_NK.any(dim=1)
    mask = (valid_NK | ~some[:, None])[:, None, None]  # softmax over no key would be NaN
    a_NHTD = functional.scaled_dot_product_attention(q_NHTD, k_NHKD, v_NHKD, attn_mask=mask)
    return torch.where(some[:, None, None], a_NHTD.transpose(1, 2).reshape(n, t, c), 0)


class _Batched(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        heads: int,
        valid: torch.Tensor | None,
        masks: list[torch.Tensor | None],
        index: list[torch.Tensor],
        q: torch.Tensor,
        kv: torch.Tensor,
        *coarse: torch.Tensor,
    ) -> torch.Tensor:
        ctx.save_for_backward(q, kv, *coarse)
        ctx.rest = heads, valid, masks, index
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        for part in _parts(q, kv, coarse):
            picked = [c[i[part]] for c, i in zip(coarse, index, strict=True)]
            keys, mask = _join(part, kv, picked, valid, masks, index)
            out[part] = _attend(q[part], keys, mask, heads)
        return out

    @staticmethod
    def backward(ctx: Any, dout: torch.Tensor) -> Any:
        q, kv, *coarse = ctx.saved_tensors
        heads, valid, masks, index = ctx.rest
        dq, dkv = torch.empty_like(q), torch.empty_like(kv)
        dcoarse = [torch.zeros_like(c, dtype=_wide(c.dtype)) for c in coarse]
        for part in _parts(q, kv, coarse):
            picked = [c[i[part]] for c, i in zip(coarse, index, strict=True)]
            keys, mask = _join(part, kv, picked, valid, masks, index)
            keys.requires_grad_()
            asked = q[part].detach().requires_grad_()
            with torch.enable_grad():
                out = _attend(asked, keys, mask, heads)
            dq[part], dkeys = torch.autograd.grad(out, (asked, keys), dout[part])
            dkv[part], *shares = dkeys.split([k.shape[1] for k in (kv, *coarse)], dim=1)
            for total, at, share in zip(dcoarse, index, shares, strict=True):
                total.index_add_(0, at[part], share.to(total.dtype))
        grads = [t.to(c.dtype) for t, c in zip(dcoarse, coarse, strict=True)]
        return (None, None, None, None, dq, dkv, *grads)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _parts(q: torch.Tensor, kv: torch.Tensor, coarse: Sequence[torch.Tensor]) -> list[slice]:
    entries = sum(k.shape[1] for k in (kv, *coarse)) * kv.shape[2]
    step = max(1, _BATCH_ENTRIES // max(1, entries))
    return [slice(i, i + step) for i in range(0, len(q), step)]


def _join(
    part: slice,
    kv: torch.Tensor,
    picked: Sequence[torch.Tensor],
    valid: torch.Tensor | None,
    masks: Sequence[torch.Tensor | None],
    index: Sequence[torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor | None]:
    own = kv[part].detach()
    every = [torch.arange(len(own), device=own.device)] * len(picked)
    return join_keys(
        own,
        picked,
        every,
        valid_NK=None if valid is None else valid[part],
        coarse_valid=[None if m is None else m[i[part]] for m, i in zip(masks, index, strict=True)],
    )
