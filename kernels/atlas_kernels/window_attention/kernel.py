"""Multi-scale window attention as Triton kernels, forward and backward: what runs on the GPU.

A program owns some queries of one window and one head. It walks the window's own keys, then, by a
table, those of one window of every coarser scale where they lie: nothing is copied per window.
Gradients of keys are made by the owner of the keys, who walks the windows that looked at them
(sorted outside), so that results do not depend on the order of programs.

Import this only when it is chosen: whether a kernel is compiled or interpreted is decided here.
"""

from __future__ import annotations

import triton
import triton.language as tl


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
