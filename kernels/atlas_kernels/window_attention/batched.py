"""Multi-scale window attention in torch: few windows at a time.

Only a few windows' coarse keys are ever laid beside their own, forward and backward, so memory
does not grow with windows times coarse keys. Where all fit, they are joined once and kept for the
backward pass, which is faster than joining them again.
"""

# N windows, T tokens that ask, K keys, C channels, H heads, D channels per head, M coarse windows

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from atlas_kernels.window_attention.reference import join_keys

if TYPE_CHECKING:
    from collections.abc import Sequence

_BATCH_ENTRIES = 2**24
"""Entries of keys and values that are laid side by side at once."""


def window_attention_batched(
    heads: int,
    valid_NK: torch.Tensor | None,
    masks: Sequence[torch.Tensor | None],
    index: Sequence[torch.Tensor],
    q_NTC: torch.Tensor,
    kv_NKC: torch.Tensor,
    *coarse: torch.Tensor,
) -> torch.Tensor:
    """Attend with torch's fused attention; differentiable once."""
    if not coarse:
        return _attend(q_NTC, kv_NKC, valid_NK, heads)
    if len(_parts(q_NTC, kv_NKC, coarse)) == 1:
        kv, valid = join_keys(valid_NK, masks, index, kv_NKC, coarse)
        return _attend(q_NTC, kv, valid, heads)
    return _Batched.apply(heads, valid_NK, masks, index, q_NTC, kv_NKC, *coarse)


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
    def forward(ctx, heads, valid, masks, index, q, kv, *coarse):
        ctx.save_for_backward(q, kv, *coarse)
        ctx.rest = heads, valid, masks, index
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        for part in _parts(q, kv, coarse):
            keys, mask = _join(part, valid, masks, index, kv, coarse)
            out[part] = _attend(q[part], keys, mask, heads)
        return out

    @staticmethod
    def backward(ctx, dout):
        q, kv, *coarse = ctx.saved_tensors
        heads, valid, masks, index = ctx.rest
        dq, dkv = torch.empty_like(q), torch.empty_like(kv)
        dcoarse = [
            torch.zeros_like(c, dtype=torch.promote_types(c.dtype, torch.float32)) for c in coarse
        ]
        for part in _parts(q, kv, coarse):
            keys, mask = _join(part, valid, masks, index, kv, coarse)
            keys = keys.detach().requires_grad_()
            asked = q[part].detach().requires_grad_()
            with torch.enable_grad():
                out = _attend(asked, keys, mask, heads)
            dq[part], dkeys = torch.autograd.grad(out, (asked, keys), dout[part])
            dkv[part], *shares = dkeys.split([k.shape[1] for k in (kv, *coarse)], dim=1)
            for total, at, share in zip(dcoarse, index, shares, strict=True):
                total.index_add_(0, at[part], share.to(total.dtype))
        grads = [t.to(c.dtype) for t, c in zip(dcoarse, coarse, strict=True)]
        return (None, None, None, None, dq, dkv, *grads)


def _parts(q: torch.Tensor, kv: torch.Tensor, coarse: Sequence[torch.Tensor]) -> list[slice]:
    entries = sum(k.shape[1] for k in (kv, *coarse)) * kv.shape[2]
    step = max(1, _BATCH_ENTRIES // max(1, entries))
    return [slice(i, i + step) for i in range(0, len(q), step)]


def _join(part, valid, masks, index, kv, coarse):
    """Join the keys of some windows."""
    own = None if valid is None else valid[part]
    return join_keys(own, masks, [i[part] for i in index], kv[part], coarse)
