"""The selective scan on the CPU, compiled by numba: float32, forward and backward.

Sixteen channels are the lanes of a vector; a window's steps run one after the other, so that the
state never leaves the registers and the cache. The exponential is a polynomial that the compiler
can vectorize (relative error below 3e-7).
"""

# B sequences, D channels, N states per channel, L steps, W lanes

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

if TYPE_CHECKING:
    from collections.abc import Callable

_LANES = 16
_LOG2E = np.float32(1.4426950408889634)
_ONE, _HALF, _TWO, _ZERO = (np.float32(x) for x in (1, 0.5, 2, 0))
_compiled = njit(
    nogil=True, cache=True, error_model="numpy", fastmath={"contract", "nsz", "reassoc"}
)
_inline = njit(inline="always", error_model="numpy")


@intrinsic
def _as_float(typing, bits):
    """Read the bits of an int32 as a float32."""

    def code(context, builder, signature, values):
        return builder.bitcast(values[0], ir.FloatType())

    return types.float32(types.int32), code


@_inline
def _exp2(x):
    x = min(max(x, np.float32(-126)), np.float32(126))
    whole = np.int32(x + np.float32(127.5))
    f = x - np.float32(whole - np.int32(127))
    p = np.float32(1.5403530e-4)
    p = p * f + np.float32(1.3333558e-3)
    p = p * f + np.float32(9.6181291e-3)
    p = p * f + np.float32(5.5504109e-2)
    p = p * f + np.float32(2.4022651e-1)
    p = p * f + np.float32(6.9314718e-1)
    p = p * f + _ONE
    return p * _as_float(whole << np.int32(23))  # type: ignore[call-arg]


@_inline
def _softplus(x):
    e = _exp2(-abs(x) * _LOG2E)
    s = e / (_TWO + e)  # log(1 + e) = 2 artanh(e / (2 + e))
    q = s * s
    p = np.float32(1 / 13)
    p = p * q + np.float32(1 / 11)
    p = p * q + np.float32(1 / 9)
    p = p * q + np.float32(1 / 7)
    p = p * q + np.float32(1 / 5)
    p = p * q + np.float32(1 / 3)
    p = p * q + _ONE
    return max(x, _ZERO) + _TWO * s * p


@_inline
def _load(row, at, width, out):
    for i in range(width):
        out[i] = row[at + i]


@_compiled
def _forward(start, stop, u, delta, A, B, C, D, bias, softplus, y):
    length, channels = u.shape[1:]
    states = A.shape[1]
    groups = (channels + _LANES - 1) // _LANES
    a = np.zeros((states, _LANES), np.float32)
    h = np.zeros((states, _LANES), np.float32)
    lanes = np.zeros((5, _LANES), np.float32)
    d, du, out, skip, shift = lanes[0], lanes[1], lanes[2], lanes[3], lanes[4]
    for job in range(start, stop):
        b, at = job // groups, (job % groups) * _LANES
        width = min(_LANES, channels - at)
        h[:] = 0
        _load(D, at, width, skip)
        _load(bias, at, width, shift)
        for n in range(states):
            for i in range(width):
                a[n, i] = A[at + i, n] * _LOG2E
        for step in range(length):
            _load(delta[b, step], at, width, d)
            _load(u[b, step], at, width, du)
            for i in range(_LANES):
                x = d[i] + shift[i]
                d[i] = _softplus(x) if softplus else x
            for i in range(_LANES):
                out[i] = skip[i] * du[i]
                du[i] *= d[i]
            for n in range(states):
                weight, read = B[b, step, n], C[b, step, n]
                for i in range(_LANES):
                    new = _exp2(d[i] * a[n, i]) * h[n, i] + weight * du[i]
                    h[n, i] = new
                    out[i] += read * new
            for i in range(width):
                y[b, step, at + i] = out[i]


@_inline
def _sigmoid(x):
    e = _exp2(-abs(x) * _LOG2E)
    return (_ONE if x >= _ZERO else e) / (_ONE + e)


@_inline
def _replay(b, at, width, u, delta, a, B, shift, softplus, d, decay, h):
    """Run forward over the lanes of one group, keeping step sizes, decays and states."""
    x = np.zeros(_LANES, np.float32)
    v = np.zeros(_LANES, np.float32)
    for step in range(len(d)):
        _load(delta[b, step], at, width, x)
        _load(u[b, step], at, width, v)
        for i in range(_LANES):
            z = x[i] + shift[i]
            d[step, i] = _softplus(z) if softplus else z
        for n in range(len(a)):
            weight = B[b, step, n]
            for i in range(_LANES):
                e = _exp2(d[step, i] * a[n, i] * _LOG2E)
                decay[step, n, i] = e
                h[step + 1, n, i] = e * h[step, n, i] + weight * d[step, i] * v[i]


@_inline
def _back_step(a, B, C, gy, d, v, decay, before, after, g, grad_a, gv, gd, dB, dC):
    """Take one step back; ``g`` is the gradient of the state after it, then of that before it."""
    for n in range(len(a)):
        weight, read = B[n], C[n]
        sum_b, sum_c = _ZERO, _ZERO
        for i in range(_LANES):
            gn = g[n, i] + gy[i] * read
            sum_c += gy[i] * after[n, i]
            sum_b += gn * d[i] * v[i]
            gv[i] += gn * weight
            kept = gn * decay[n, i]
            back = kept * before[n, i]
            gd[i] += a[n, i] * back
            grad_a[n, i] += d[i] * back
            g[n, i] = kept
        dB[n] += sum_b
        dC[n] += sum_c


@_compiled
def _backward(
    start, stop, u, delta, A, B, C, D, bias, softplus, dy, du, ddelta, dA, dB, dC, dD, dbias
):
    length, channels = u.shape[1:]
    states = A.shape[1]
    a, grad_a, g = np.zeros((3, states, _LANES), np.float32)
    lanes = np.zeros((9, _LANES), np.float32)
    v, gy, gv, gd = lanes[0], lanes[1], lanes[2], lanes[3]
    skip, shift, grad_skip, grad_shift, raw = lanes[4], lanes[5], lanes[6], lanes[7], lanes[8]
    d = np.zeros((length, _LANES), np.float32)
    decay = np.zeros((length, states, _LANES), np.float32)
    h = np.zeros((length + 1, states, _LANES), np.float32)
    for b in range(start, stop):
        for at in range(0, channels, _LANES):
            width = min(_LANES, channels - at)
            lanes[:], a[:], g[:], grad_a[:] = _ZERO, _ZERO, _ZERO, _ZERO
            _load(D, at, width, skip)
            _load(bias, at, width, shift)
            for n in range(states):
                _load(A[:, n], at, width, a[n])
            _replay(b, at, width, u, delta, a, B, shift, softplus, d, decay, h)
            for step in range(length - 1, -1, -1):
                _load(delta[b, step], at, width, raw)
                _load(u[b, step], at, width, v)
                _load(dy[b, step], at, width, gy)
                gv[:], gd[:] = _ZERO, _ZERO
                _back_step(
                    a, B[b, step], C[b, step], gy, d[step], v, decay[step], h[step], h[step + 1],
                    g, grad_a, gv, gd, dB[b, step], dC[b, step],
                )  # fmt: skip
                for i in range(_LANES):
                    slope = _sigmoid(raw[i] + shift[i]) if softplus else _ONE
                    gd[i] = (gd[i] + gv[i] * v[i]) * slope
                    grad_shift[i] += gd[i]
                    grad_skip[i] += gy[i] * v[i]
                    gv[i] = gv[i] * d[step, i] + gy[i] * skip[i]
                for i in range(width):
                    du[b, step, at + i] = gv[i]
                    ddelta[b, step, at + i] = gd[i]
            for i in range(width):
                dD[b, at + i] = grad_skip[i]
                dbias[b, at + i] = grad_shift[i]
                for n in range(states):
                    dA[b, at + i, n] = grad_a[n, i]


def _split(count: int, work: Callable[[int, int], None]) -> None:
    """Run ``work(start, stop)`` on as many threads as torch uses."""
    threads = min(torch.get_num_threads(), count)
    if threads <= 1:
        work(0, count)
        return
    bounds = [count * i // threads for i in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, bounds[:-1], bounds[1:]))


def _array(t: torch.Tensor) -> np.ndarray[Any, Any]:
    """Return a contiguous array, `(B, L, D)` of `(B, D, L)`; no copy if it is one already."""
    rows = t.detach().transpose(1, 2) if t.ndim == 3 else t.detach()
    return rows.to(torch.float32).contiguous().numpy()


def _empty(like: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return torch.empty(like.shape).numpy()  # by torch, so that tests can poison it


class _Scan(torch.autograd.Function):
    """Scan in float32; differentiable once. Channels that lie together in memory save a copy."""

    @staticmethod
    def forward(ctx, u, delta, A, B, C, D, bias, softplus):
        ctx.save_for_backward(u, delta, A, B, C, D, bias)
        ctx.softplus = softplus
        arrays = [_array(t) for t in (u, delta, A, B, C, D, bias)]
        y = _empty(arrays[0])
        groups = -(-u.shape[1] // _LANES)
        arguments = [*arrays, softplus, y]
        _split(len(u) * groups, lambda i, j: _forward(i, j, *arguments))
        return torch.from_numpy(y).to(u.dtype).transpose(1, 2)

    @staticmethod
    def backward(ctx, dy):
        saved = ctx.saved_tensors
        arrays = [_array(t) for t in saved]
        batch, _, channels = arrays[0].shape
        du, ddelta = _empty(arrays[0]), _empty(arrays[0])
        dB, dC = np.zeros_like(arrays[3]), np.zeros_like(arrays[4])
        dA = np.zeros((batch, *arrays[2].shape), np.float32)
        dD, dbias = np.zeros((2, batch, channels), np.float32)
        arguments = [*arrays, ctx.softplus, _array(dy), du, ddelta, dA, dB, dC, dD, dbias]
        _split(batch, lambda i, j: _backward(i, j, *arguments))
        grads = (
            *(torch.from_numpy(t).transpose(1, 2) for t in (du, ddelta)),
            torch.from_numpy(dA).sum(dim=0),
            *(torch.from_numpy(t).transpose(1, 2) for t in (dB, dC)),
            *(torch.from_numpy(t).sum(dim=0) for t in (dD, dbias)),
        )
        return (*(g.to(t.dtype) for g, t in zip(grads, saved, strict=True)), None)


selective_scan_compiled = _Scan.apply
