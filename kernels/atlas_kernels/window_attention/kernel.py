"""Multi-scale window attention as Triton kernels, forward and backward.

A program owns some queries of one window and one head. It walks the window's own keys, then, by a
table, those of one window of every coarser scale where they lie: nothing is copied per window.
Gradients of keys are made by the owner of the keys, who walks the windows that looked at them
(sorted outside), so that results do not depend on the order of programs.

Import this only when it is chosen: whether a kernel is compiled or interpreted is decided here.
"""

# N windows, T tokens that ask, K keys, C channels, H heads, D channels a head, M coarse windows

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from collections.abc import Sequence

TILES = {
    # kernel, bytes an entry: up to 32 channels a head, more
    ("forward", 2): ((64, 4), (64, 4)),
    ("query_gradient", 2): ((32, 4), (32, 4)),
    ("key_gradient", 2): ((32, 4), (32, 8)),
    ("forward", 4): ((32, 8), (32, 8)),
    ("query_gradient", 4): ((32, 8), (16, 4)),
    ("key_gradient", 4): ((32, 8), (16, 4)),
}
"""Queries and keys of a tile, at most, and warps a program: the largest tiles that compile
without a spilled register on A100, H100 and MI300 (docs/kernels.md)."""

SPLIT_WINDOWS = 64
"""Windows that one program of the keys' gradient walks, at most (on average)."""


@triton.jit
def _scores(q, kv, row, count, valid, HAS_VALID: tl.constexpr, kv_t, scale, d, has_d,
            UPCAST: tl.constexpr, BLOCK_K: tl.constexpr):  # fmt: skip
    """Return scaled scores of the keys ``row ..`` of a window, -inf where there is no key."""
    k_at = row + tl.arange(0, BLOCK_K)
    there = k_at < count
    k = tl.load(kv + k_at[:, None] * kv_t + d[None, :], mask=there[:, None] & has_d[None, :],
                other=0.0)  # fmt: skip
    if UPCAST:
        k = k.to(tl.float32)
    if HAS_VALID:
        there = there & (tl.load(valid + k_at, mask=there, other=0) != 0)
    s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    return tl.where(there[None, :], s, float("-inf")), k, k_at


@triton.jit
def _attend(acc, top, total, q, kv, count, valid, HAS_VALID: tl.constexpr, kv_t, scale, channels,
            d, has_d, UPCAST: tl.constexpr,
            BLOCK_K: tl.constexpr):  # fmt: skip
    for row in range(0, count, BLOCK_K):
        s, _, k_at = _scores(q, kv, row, count, valid, HAS_VALID, kv_t, scale, d, has_d,
                             UPCAST, BLOCK_K)  # fmt: skip
        v = tl.load(kv + k_at[:, None] * kv_t + channels + d[None, :],
                    mask=(k_at < count)[:, None] & has_d[None, :], other=0.0)  # fmt: skip
        if UPCAST:
            v = v.to(tl.float32)
        new_top = tl.maximum(top, tl.max(s, axis=1))
        level = tl.where(new_top == float("-inf"), 0.0, new_top)
        p = tl.exp(s - level[:, None])
        shrink = tl.exp(top - level)
        total = total * shrink + tl.sum(p, axis=1)
        acc = acc * shrink[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
        top = new_top
    return acc, top, total


@triton.jit
def attention_forward_kernel(
    q, kv, valid, coarse, coarse_valid, starts, counts, out, lse,
    tokens, keys, channels, dim, heads, n_scales, scale,
    q_n, q_t, kv_n, kv_t, coarse_t,
    HAS_VALID: tl.constexpr, HAS_COARSE_VALID: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Attend for some queries of one window and one head."""
    n = tl.program_id(0).to(tl.int64)
    t = tl.program_id(1) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    head = tl.program_id(2)
    d = tl.arange(0, BLOCK_D)
    has_t, has_d = t < tokens, d < dim
    has = has_t[:, None] & has_d[None, :]
    asked = tl.load(q + n * q_n + t[:, None] * q_t + head * dim + d[None, :], mask=has, other=0.0)
    if UPCAST:
        asked = asked.to(tl.float32)
    acc = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    top = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_Q,), tl.float32)
    acc, top, total = _attend(
        acc, top, total, asked, kv + n * kv_n + head * dim, keys, valid + n * keys, HAS_VALID,
        kv_t, scale, channels, d, has_d, UPCAST, BLOCK_K,
    )  # fmt: skip
    for s in range(n_scales):
        start = tl.load(starts + n * n_scales + s)
        count = tl.load(counts + s)
        acc, top, total = _attend(
            acc, top, total, asked, coarse + start * coarse_t + head * dim, count,
            coarse_valid + start, HAS_COARSE_VALID,
            coarse_t, scale, channels, d, has_d, UPCAST, BLOCK_K,
        )  # fmt: skip
    empty = total == 0.0
    acc = acc / tl.where(empty, 1.0, total)[:, None]
    tl.store(out + (n * tokens + t[:, None]) * channels + head * dim + d[None, :],
             acc.to(out.dtype.element_ty), mask=has)  # fmt: skip
    level = tl.where(empty, float("inf"), top + tl.log(tl.where(empty, 1.0, total)))
    tl.store(lse + (n * heads + head) * tokens + t, level, mask=has_t)


@triton.jit
def _back_query(dq, q, dout, level, delta, kv, count, valid, HAS_VALID: tl.constexpr, kv_t, scale,
                channels, d, has_d, UPCAST: tl.constexpr,
                BLOCK_K: tl.constexpr):  # fmt: skip
    for row in range(0, count, BLOCK_K):
        s, k, k_at = _scores(q, kv, row, count, valid, HAS_VALID, kv_t, scale, d, has_d,
                             UPCAST, BLOCK_K)  # fmt: skip
        v = tl.load(kv + k_at[:, None] * kv_t + channels + d[None, :],
                    mask=(k_at < count)[:, None] & has_d[None, :], other=0.0)  # fmt: skip
        if UPCAST:
            v = v.to(tl.float32)
        p = tl.exp(s - level[:, None])
        dp = tl.dot(dout, tl.trans(v), input_precision="ieee")
        ds = p * (dp - delta[:, None]) * scale
        dq += tl.dot(ds.to(k.dtype), k, input_precision="ieee")
    return dq


@triton.jit
def attention_query_gradient_kernel(
    q, kv, valid, coarse, coarse_valid, starts, counts, dout, lse, delta, dq,
    tokens, keys, channels, dim, heads, n_scales, scale,
    q_n, q_t, kv_n, kv_t, coarse_t,
    HAS_VALID: tl.constexpr, HAS_COARSE_VALID: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Return the gradient of some queries of one window and one head."""
    n = tl.program_id(0).to(tl.int64)
    t = tl.program_id(1) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    head = tl.program_id(2)
    d = tl.arange(0, BLOCK_D)
    has_t, has_d = t < tokens, d < dim
    has = has_t[:, None] & has_d[None, :]
    asked = tl.load(q + n * q_n + t[:, None] * q_t + head * dim + d[None, :], mask=has, other=0.0)
    at = (n * tokens + t[:, None]) * channels + head * dim + d[None, :]
    grad = tl.load(dout + at, mask=has, other=0.0)
    if UPCAST:
        asked, grad = asked.to(tl.float32), grad.to(tl.float32)
    level = tl.load(lse + (n * heads + head) * tokens + t, mask=has_t, other=float("inf"))
    inner = tl.load(delta + (n * heads + head) * tokens + t, mask=has_t, other=0.0)
    acc = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    acc = _back_query(
        acc, asked, grad, level, inner, kv + n * kv_n + head * dim, keys, valid + n * keys,
        HAS_VALID, kv_t, scale, channels, d, has_d, UPCAST, BLOCK_K,
    )  # fmt: skip
    for s in range(n_scales):
        start = tl.load(starts + n * n_scales + s)
        count = tl.load(counts + s)
        acc = _back_query(
            acc, asked, grad, level, inner, coarse + start * coarse_t + head * dim, count,
            coarse_valid + start, HAS_COARSE_VALID,
            coarse_t, scale, channels, d, has_d, UPCAST, BLOCK_K,
        )  # fmt: skip
    tl.store(dq + at, acc.to(dq.dtype.element_ty), mask=has)


@triton.jit
def attention_key_gradient_kernel(
    q, kv, valid, order, bounds, dout, lse, delta, dkv,
    windows, tokens, keys, channels, dim, heads, splits, scale,
    q_n, q_t, kv_n, kv_t,
    HAS_VALID: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Return the gradient of some keys of one window, one head and some windows that look."""
    m = (tl.program_id(0) // splits).to(tl.int64)
    split = (tl.program_id(0) % splits).to(tl.int64)
    k_at = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    head = tl.program_id(2)
    d = tl.arange(0, BLOCK_D)
    has_k, has_d = k_at < keys, d < dim
    has = has_k[:, None] & has_d[None, :]
    kv_at = kv + m * kv_n + k_at[:, None] * kv_t + head * dim + d[None, :]
    k = tl.load(kv_at, mask=has, other=0.0)
    v = tl.load(kv_at + channels, mask=has, other=0.0)
    if UPCAST:
        k, v = k.to(tl.float32), v.to(tl.float32)
    there = has_k
    if HAS_VALID:
        there = there & (tl.load(valid + m * keys + k_at, mask=has_k, other=0) != 0)
    first, last = tl.load(bounds + m), tl.load(bounds + m + 1)
    share = tl.cdiv(last - first, splits)
    first += split * share
    last = tl.minimum(first + share, last)
    dk = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    dv = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    for i in range(first, last):
        n = tl.load(order + i).to(tl.int64)
        for row in range(0, tokens, BLOCK_Q):
            t = row + tl.arange(0, BLOCK_Q)
            has_t = t < tokens
            has_q = has_t[:, None] & has_d[None, :]
            asked = tl.load(q + n * q_n + t[:, None] * q_t + head * dim + d[None, :],
                            mask=has_q, other=0.0)  # fmt: skip
            grad = tl.load(dout + (n * tokens + t[:, None]) * channels + head * dim + d[None, :],
                           mask=has_q, other=0.0)  # fmt: skip
            if UPCAST:
                asked, grad = asked.to(tl.float32), grad.to(tl.float32)
            at = (n * heads + head) * tokens + t
            level = tl.load(lse + at, mask=has_t, other=float("inf"))
            inner = tl.load(delta + at, mask=has_t, other=0.0)
            s = tl.dot(k, tl.trans(asked), input_precision="ieee") * scale
            p = tl.exp(tl.where(there[:, None], s, float("-inf")) - level[None, :])
            dv += tl.dot(p.to(grad.dtype), grad, input_precision="ieee")
            dp = tl.dot(v, tl.trans(grad), input_precision="ieee")
            ds = p * (dp - inner[None, :]) * scale
            dk += tl.dot(ds.to(asked.dtype), asked, input_precision="ieee")
    out = dkv + ((split * windows + m) * keys + k_at[:, None]) * 2 * channels
    out += head * dim + d[None, :]
    tl.store(out, dk.to(dkv.dtype.element_ty), mask=has)
    tl.store(out + channels, dv.to(dkv.dtype.element_ty), mask=has)


def tile(kernel: str, entry_bytes: int, dim: int, *, tokens: int, keys: int) -> dict[str, int]:
    """Return the sizes that a kernel is launched with.

    Parameters
    ----------
    kernel
        ``"forward"``, ``"query_gradient"`` or ``"key_gradient"``.
    entry_bytes
        Bytes of a query's entry.
    dim
        Channels a head.
    tokens
        Queries a window.
    keys
        Keys of the largest window.

    Returns
    -------
    dict
        Constants and warps.
    """
    most, warps = TILES[kernel, entry_bytes][dim > 32]
    block_q, block_k = (min(most, max(16, triton.next_power_of_2(n))) for n in (tokens, keys))
    block_d = max(16, triton.next_power_of_2(dim))
    return {"BLOCK_Q": block_q, "BLOCK_K": block_k, "BLOCK_D": block_d, "num_warps": warps}


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
        self.valid = None if valid is None else valid.contiguous().view(torch.uint8)
        self.coarse = [c.contiguous() for c in coarse]
        self.masks = _same(masks, coarse)
        self.bytes = q.element_size()
        # the interpreter's dot misreads bfloat16
        self.upcast = self.bytes == 2 and _is_interpreted()

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

    def query_launch(self, kernel: str) -> tuple[tuple[int, int, int], dict[str, Any]]:
        """Return grid and keyword arguments of a kernel that owns queries."""
        row, coarse_valid, starts, counts = self.coarse_arguments()
        longest = max([self.keys, *(c.shape[1] for c in self.coarse)])
        sizes = tile(kernel, self.bytes, self.dim, tokens=self.tokens, keys=longest)
        grid = (self.windows, triton.cdiv(self.tokens, sizes["BLOCK_Q"]), self.heads)
        return grid, {
            "q": self.q, "kv": self.kv, "valid": self.q if self.valid is None else self.valid,
            "coarse": row, "coarse_valid": coarse_valid, "starts": starts, "counts": counts,
            "tokens": self.tokens, "keys": self.keys, "channels": self.channels, "dim": self.dim,
            "heads": self.heads, "n_scales": len(self.coarse), "scale": self.scale,
            "q_n": self.q.stride(0), "q_t": self.q.stride(1),
            "kv_n": self.kv.stride(0), "kv_t": self.kv.stride(1), "coarse_t": 2 * self.channels,
            "HAS_VALID": self.valid is not None,
            "HAS_COARSE_VALID": any(m is not None for m in self.masks),
            "UPCAST": self.upcast, **sizes,
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
        sizes = tile("key_gradient", self.bytes, self.dim, tokens=self.tokens, keys=keys)
        if dkv.numel():
            attention_key_gradient_kernel[windows * splits, triton.cdiv(keys, sizes["BLOCK_K"]), self.heads](
                self.q, kv, self.q if valid is None else valid, order, bounds,
                dout, lse, delta, dkv,
                windows, self.tokens, keys, self.channels, self.dim, self.heads, splits, self.scale,
                self.q.stride(0), self.q.stride(1), kv.stride(0), kv.stride(1),
                HAS_VALID=valid is not None, UPCAST=self.upcast, **sizes,
            )  # fmt: skip
        return dkv[0] if splits == 1 else dkv.sum(dim=0).to(kv.dtype)


def _same(
    masks: Sequence[torch.Tensor | None], coarse: Sequence[torch.Tensor]
) -> list[torch.Tensor | None]:
    """Return masks as bytes; if one scale has a mask, all get one."""
    masks = list(masks) or [None] * len(coarse)
    if all(m is None for m in masks):
        return masks
    return [
        (torch.ones(c.shape[:2], dtype=torch.bool, device=c.device) if m is None else m)
        .contiguous()
        .view(torch.uint8)
        for m, c in zip(masks, coarse, strict=True)
    ]


def _is_interpreted() -> bool:
    return not isinstance(attention_forward_kernel, triton.JITFunction)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        heads: int,
        valid: torch.Tensor | None,
        masks: Sequence[torch.Tensor | None],
        index: Sequence[torch.Tensor],
        q: torch.Tensor,
        kv: torch.Tensor,
        *coarse: torch.Tensor,
    ) -> torch.Tensor:
        call = _Call(heads, valid, masks, index, q, kv, coarse)
        out = q.new_empty(q.shape)
        lse = torch.empty(call.windows, heads, call.tokens, device=q.device, dtype=torch.float32)
        grid, arguments = call.query_launch("forward")
        if out.numel():
            attention_forward_kernel[grid](out=out, lse=lse, **arguments)
        ctx.save_for_backward(q, kv, *coarse, out, lse)
        ctx.rest = heads, valid, masks, index
        return out

    @staticmethod
    def backward(ctx: Any, dout: torch.Tensor) -> Any:
        q, kv, *coarse, out, lse = ctx.saved_tensors
        heads, valid, masks, index = ctx.rest
        call = _Call(heads, valid, masks, index, q, kv, coarse)
        dout = dout.contiguous()
        split = (*out.shape[:2], call.heads, call.dim)
        delta = (dout.view(split).float() * out.view(split).float()).sum(-1).transpose(1, 2)
        delta = delta.contiguous()
        dq = q.new_empty(q.shape)
        grid, arguments = call.query_launch("query_gradient")
        if dq.numel():
            attention_query_gradient_kernel[grid](
                dout=dout, lse=lse, delta=delta, dq=dq, **arguments
            )
        scales = zip(call.coarse, call.masks, call.index, strict=True)
        return (
            None, None, None, None, dq,
            call.key_gradient(call.kv, call.valid, None, dout, lse, delta),
            *(call.key_gradient(c, m, i, dout, lse, delta) for c, m, i in scales),
        )  # fmt: skip


def window_attention_triton(
    q_NTC: torch.Tensor,
    kv_NKC: torch.Tensor,
    coarse_kv: Sequence[torch.Tensor],
    index: Sequence[torch.Tensor],
    *,
    heads: int,
    valid_NK: torch.Tensor | None = None,
    coarse_valid: Sequence[torch.Tensor | None] = (),
) -> torch.Tensor:
    """Attend on a GPU; differentiable once.

    Parameters
    ----------
    q_NTC
        Queries.
    kv_NKC
        Own keys and values `(N, K, 2C)`, keys first.
    coarse_kv
        Those of every coarser scale, `(M, K', 2C)`.
    index
        The coarse window of every window, one `(N,)` a coarser scale.
    heads
        Attention heads.
    valid_NK
        Which own keys exist.
    coarse_valid
        Which coarse keys exist, `(M, K')` a scale.

    Returns
    -------
    torch.Tensor
        `(N, T, C)`; zero where no key exists.
    """
    return _Attention.apply(heads, valid_NK, coarse_valid, index, q_NTC, kv_NKC, *coarse_kv)
