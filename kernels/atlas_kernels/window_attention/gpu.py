"""Multi-scale window attention on a GPU: sizes, launches and gradients.

The kernels are in `kernel`; this prepares their arguments and joins their results.
"""

# N windows, T tokens that ask, K keys, C channels, H heads, D channels per head, M coarse windows

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton

from atlas_kernels.tuning import Choice, is_interpreted, launch
from atlas_kernels.window_attention.kernel import (
    attention_forward_kernel,
    attention_key_gradient_kernel,
    attention_query_gradient_kernel,
)
from atlas_kernels.window_attention.reference import complete_masks

if TYPE_CHECKING:
    from collections.abc import Sequence

TILES = {
    # kernel, bytes an entry: choices of (queries, keys, warps) for up to 32 channels per head, more
    ("forward", 2): (((64, 64, 4), (64, 64, 8), (32, 32, 4)), ((64, 64, 4), (64, 32, 4))),
    ("query_gradient", 2): (((32, 32, 4), (64, 32, 4)), ((32, 32, 4), (32, 64, 4))),
    ("key_gradient", 2): (((32, 32, 4), (32, 64, 8)), ((32, 32, 8), (16, 32, 4))),
    ("forward", 4): (((32, 32, 8), (32, 16, 4)), ((32, 32, 8), (16, 32, 4))),
    ("query_gradient", 4): (((32, 32, 8), (16, 32, 4)), ((16, 16, 4), (32, 16, 8))),
    ("key_gradient", 4): (((32, 32, 8), (16, 16, 4)), ((16, 16, 4), (16, 16, 8))),
}
"""Queries and keys of a tile, at most, and warps per program. All compile without a spilled register
on A100, H100 and MI300 (docs/kernels.md); on a GPU, the fastest is kept for every shape."""

_KEYS = ("tokens", "keys", "dim")

SPLIT_WINDOWS = 64
"""Windows that one program of the keys' gradient walks, at most (on average)."""


def tiles(kernel: str, entry_bytes: int, dim: int, *, tokens: int, keys: int) -> tuple[Choice, ...]:
    """Return the sizes that a kernel may be launched with."""
    most_q, most_k = (max(16, triton.next_power_of_2(n)) for n in (tokens, keys))
    return tuple(
        dict.fromkeys(  # each once, in order
            Choice((("BLOCK_Q", min(q, most_q)), ("BLOCK_K", min(k, most_k))), warps)
            for q, k, warps in TILES[kernel, entry_bytes][dim > 32]
        )
    )


def block_d(dim: int) -> int:
    """Return the channels of a tile."""
    return max(16, triton.next_power_of_2(dim))


def _bytes(mask: torch.Tensor | None) -> torch.Tensor | None:
    return None if mask is None else mask.contiguous().view(torch.uint8)


def _rows(t: torch.Tensor) -> torch.Tensor:
    return t if t.stride(-1) == 1 else t.contiguous()


class _Call:
    """What the launches of one call share."""

    def __init__(
        self,
        heads: int,
        valid: torch.Tensor | None,
        masks: Sequence[torch.Tensor | None],
        index: Sequence[torch.Tensor],
        q: torch.Tensor,
        kv: torch.Tensor,
        coarse: Sequence[torch.Tensor],
    ) -> None:
        self.heads, self.index = heads, index
        self.windows, self.tokens, self.channels = q.shape
        self.keys, self.dim = kv.shape[1], q.shape[2] // heads
        self.scale = self.dim**-0.5
        self.q, self.kv = _rows(q), _rows(kv)
        self.valid = _bytes(valid)
        self.coarse = [c.contiguous() for c in coarse]
        self.masks = [_bytes(mask) for mask in complete_masks(masks, coarse)]
        self.bytes = q.element_size()
        # the interpreter's dot misreads bfloat16
        self.upcast = self.bytes == 2 and is_interpreted(attention_forward_kernel)

    def coarse_arguments(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return all coarse keys in one row, their validity, and where each window's lie."""
        q, coarse = self.q, self.coarse
        if not coarse:
            none = torch.zeros(1, dtype=torch.int64, device=q.device)
            return self.kv, none, none, none
        flat = [c.flatten(0, 1) for c in coarse]
        row = flat[0] if len(flat) == 1 else torch.cat(flat)
        masks = [m for m in self.masks if m is not None]
        valid = torch.cat([m.flatten() for m in masks]) if masks else row
        counts = torch.tensor([c.shape[1] for c in coarse], dtype=torch.int32, device=q.device)
        starts, before = [], 0
        for c, i in zip(coarse, self.index, strict=True):
            starts.append(before + i * c.shape[1])
            before += c.shape[0] * c.shape[1]
        return row, valid, torch.stack(starts, dim=1), counts

    def query_launch(self, kernel: str) -> dict[str, Any]:
        """Return the arguments to launch a kernel that owns queries."""
        row, coarse_valid, starts, counts = self.coarse_arguments()
        longest = max([self.keys, *(c.shape[1] for c in self.coarse)])
        return {
            "choices": tiles(kernel, self.bytes, self.dim, tokens=self.tokens, keys=longest),
            "grid": lambda sizes: (
                self.windows, triton.cdiv(self.tokens, sizes["BLOCK_Q"]), self.heads
            ),
            "key": (*_KEYS, "n_scales"), "BLOCK_D": block_d(self.dim),
            "q": self.q, "kv": self.kv, "valid": self.q if self.valid is None else self.valid,
            "coarse": row, "coarse_valid": coarse_valid, "starts": starts, "counts": counts,
            "tokens": self.tokens, "keys": self.keys, "channels": self.channels, "dim": self.dim,
            "heads": self.heads, "n_scales": len(self.coarse), "scale": self.scale,
            "q_n": self.q.stride(0), "q_t": self.q.stride(1),
            "kv_n": self.kv.stride(0), "kv_t": self.kv.stride(1), "coarse_t": 2 * self.channels,
            "HAS_VALID": self.valid is not None,
            "HAS_COARSE_VALID": any(m is not None for m in self.masks),
            "UPCAST": self.upcast,
        }  # fmt: skip

    def key_gradient(
        self,
        kv: torch.Tensor,
        valid: torch.Tensor | None,
        index: torch.Tensor | None,
        dout: torch.Tensor,
        lse: torch.Tensor,
        delta: torch.Tensor,
    ) -> torch.Tensor:
        """Return the gradient of one scale's keys and values."""
        windows, keys = kv.shape[:2]
        if index is None:
            order = torch.arange(windows, device=kv.device)
            bounds = torch.arange(windows + 1, device=kv.device)
        else:
            ordered, order = torch.sort(index)
            every = torch.arange(windows + 1, device=kv.device, dtype=ordered.dtype)
            bounds = torch.searchsorted(ordered, every)
        splits = max(1, triton.cdiv(len(order), SPLIT_WINDOWS * max(1, windows)))
        dkv = torch.empty(
            splits, windows, keys, 2 * self.channels, device=kv.device,
            dtype=kv.dtype if splits == 1 else torch.float32,
        )  # fmt: skip
        if dkv.numel():
            launch(
                attention_key_gradient_kernel,
                tiles("key_gradient", self.bytes, self.dim, tokens=self.tokens, keys=keys),
                key=_KEYS,
                grid=lambda sizes: (
                    windows * splits, triton.cdiv(keys, sizes["BLOCK_K"]), self.heads
                ),
                q=self.q, kv=kv, valid=self.q if valid is None else valid,
                order=order, bounds=bounds, dout=dout, lse=lse, delta=delta, dkv=dkv,
                windows=windows, tokens=self.tokens, keys=keys, channels=self.channels,
                dim=self.dim, heads=self.heads, splits=splits, scale=self.scale,
                q_n=self.q.stride(0), q_t=self.q.stride(1),
                kv_n=kv.stride(0), kv_t=kv.stride(1),
                HAS_VALID=valid is not None, UPCAST=self.upcast, BLOCK_D=block_d(self.dim),
            )  # fmt: skip
        return dkv[0] if splits == 1 else dkv.sum(dim=0).to(kv.dtype)


class _Attention(torch.autograd.Function):
    """Attend on a GPU; differentiable once."""

    @staticmethod
    def forward(ctx, heads, valid, masks, index, q, kv, *coarse):
        call = _Call(heads, valid, masks, index, q, kv, coarse)
        out = q.new_empty(q.shape)
        lse = torch.empty(call.windows, heads, call.tokens, device=q.device, dtype=torch.float32)
        if out.numel():
            launch(attention_forward_kernel, out=out, lse=lse, **call.query_launch("forward"))
        ctx.save_for_backward(q, kv, *coarse, out, lse)
        ctx.rest = heads, valid, masks, index
        return out

    @staticmethod
    def backward(ctx, dout):
        q, kv, *coarse, out, lse = ctx.saved_tensors
        heads, valid, masks, index = ctx.rest
        call = _Call(heads, valid, masks, index, q, kv, coarse)
        dout = dout.contiguous()
        split = (*out.shape[:2], call.heads, call.dim)
        delta = (dout.view(split).float() * out.view(split).float()).sum(-1).transpose(1, 2)
        delta = delta.contiguous()
        dq = q.new_empty(q.shape)
        if dq.numel():
            launch(
                attention_query_gradient_kernel,
                dout=dout, lse=lse, delta=delta, dq=dq, **call.query_launch("query_gradient"),
            )  # fmt: skip
        scales = zip(call.coarse, call.masks, call.index, strict=True)
        return (
            None, None, None, None, dq,
            call.key_gradient(call.kv, call.valid, None, dout, lse, delta),
            *(call.key_gradient(c, m, i, dout, lse, delta) for c, m, i in scales),
        )  # fmt: skip


window_attention_triton = _Attention.apply
