"""The selective scan as Triton kernels, forward and backward.

A program owns a few channels of one sequence and keeps their states in registers; it walks the
steps and asks for the next step's inputs before it needs them. The forward pass stores the state
before every chunk of steps; the backward pass replays a chunk from there into registers, then
walks it back. Sums over channels (dB, dC) and over sequences (dA, dD, dbias) are stored by program
and added outside, so that results do not depend on the order of programs.

Import this only when it is chosen: whether a kernel is compiled or interpreted is decided here.
"""

# B sequences, D channels, N states per channel, L steps, K steps of a chunk, G groups of channels

from __future__ import annotations

import torch
import triton
import triton.language as tl

from atlas_kernels.tuning import Choice, launch

CHUNK = 7
"""Steps of a chunk: 196 and 49 steps are whole chunks, and the replayed states fit registers."""

CHANNELS = 32
"""Channels per program of the backward pass; its sums are laid out by them."""

FORWARD = {8: ((32, 1), (64, 2), (16, 1), (32, 2)), 16: ((32, 2), (16, 1), (32, 4))}
"""Choices of channels and warps per program by the padded number of states."""

BACKWARD = {8: (2,), 16: (8,)}
"""Choices of warps per program; any other number spills on one of the targets (docs/kernels.md)."""

_KEY = ("channels", "states", "length")


@triton.jit
def _softplus(x):
    e = tl.exp(-tl.abs(x))
    # log(1 + e) without losing small e
    small = e * (1.0 - e * (0.5 - e * (1.0 / 3.0)))
    return tl.maximum(x, 0.0) + tl.where(e < 0.01, small, tl.log(1.0 + e))


@triton.jit
def scan_forward_kernel(
    u, delta, A, B, C, D, bias, y, saved,
    channels, states, length, n_chunks,
    u_b, u_d, u_l, delta_b, delta_d, delta_l, B_b, B_n, B_l, C_b, C_n, C_l, y_b, y_d, y_l,
    SOFTPLUS: tl.constexpr, SAVE: tl.constexpr,
    CHUNK: tl.constexpr, CHANNELS: tl.constexpr, STATES: tl.constexpr,
):  # fmt: skip
    """Scan one sequence over a group of channels."""
    b = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    n = tl.arange(0, STATES)
    has_d, has_n = d < channels, n < states
    has_dn = has_d[:, None] & has_n[None, :]
    at_dn = d[:, None] * states + n[None, :]
    u += b * u_b + d * u_d
    delta += b * delta_b + d * delta_d
    B += b * B_b + n * B_n
    C += b * C_b + n * C_n
    y += b * y_b + d * y_d
    saved += b * n_chunks * channels * states + at_dn
    a = tl.load(A + at_dn, mask=has_dn, other=0.0).to(tl.float32) * 1.4426950408889634
    skip = tl.load(D + d, mask=has_d, other=0.0).to(tl.float32)
    shift = tl.load(bias + d, mask=has_d, other=0.0).to(tl.float32)
    h = tl.zeros((CHANNELS, STATES), tl.float32)
    next_x = tl.load(delta, mask=has_d, other=0.0)
    next_v = tl.load(u, mask=has_d, other=0.0)
    next_B = tl.load(B, mask=has_n, other=0.0)
    next_C = tl.load(C, mask=has_n, other=0.0)
    for step in range(length):
        if SAVE:  # noqa: SIM102  # decided when compiled
            if step % CHUNK == 0:
                tl.store(saved, h, mask=has_dn)
                saved += channels * states
        x, v = next_x.to(tl.float32) + shift, next_v.to(tl.float32)
        weight, read = next_B.to(tl.float32), next_C.to(tl.float32)
        more = step + 1 < length
        next_x = tl.load(delta + (step + 1) * delta_l, mask=has_d & more, other=0.0)
        next_v = tl.load(u + (step + 1) * u_l, mask=has_d & more, other=0.0)
        next_B = tl.load(B + (step + 1) * B_l, mask=has_n & more, other=0.0)
        next_C = tl.load(C + (step + 1) * C_l, mask=has_n & more, other=0.0)
        if SOFTPLUS:
            x = _softplus(x)
        h = tl.exp2(x[:, None] * a) * h + (x * v)[:, None] * weight[None, :]
        out = tl.sum(h * read[None, :], axis=1) + skip * v
        tl.store(y + step * y_l, out.to(y.dtype.element_ty), mask=has_d)


@triton.jit
def scan_backward_kernel(
    u, delta, A, B, C, D, bias, saved, dy, du, ddelta, dA, dB, dC, dD, dbias,
    channels, states, length, n_chunks, groups,
    u_b, u_d, u_l, delta_b, delta_d, delta_l, B_b, B_n, B_l, C_b, C_n, C_l, dy_b, dy_d, dy_l,
    SOFTPLUS: tl.constexpr,
    CHUNK: tl.constexpr, CHANNELS: tl.constexpr, STATES: tl.constexpr,
):  # fmt: skip
    """Return the gradients of one sequence over a group of channels."""
    b = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1)
    d = group * CHANNELS + tl.arange(0, CHANNELS)
    n = tl.arange(0, STATES)
    has_d, has_n = d < channels, n < states
    has_dn = has_d[:, None] & has_n[None, :]
    at_dn = d[:, None] * states + n[None, :]
    u += b * u_b + d * u_d
    delta += b * delta_b + d * delta_d
    B += b * B_b + n * B_n
    C += b * C_b + n * C_n
    dy += b * dy_b + d * dy_d
    saved += (b + 1) * n_chunks * channels * states + at_dn
    # gradients of (B, L, D) and (B, G, L, N) are laid out by us
    du += b * length * channels + d
    ddelta += b * length * channels + d
    dB += (b * groups + group) * length * states + n
    dC += (b * groups + group) * length * states + n
    a = tl.load(A + at_dn, mask=has_dn, other=0.0).to(tl.float32)
    skip = tl.load(D + d, mask=has_d, other=0.0).to(tl.float32)
    shift = tl.load(bias + d, mask=has_d, other=0.0).to(tl.float32)
    g = tl.zeros((CHANNELS, STATES), tl.float32)
    grad_a = tl.zeros((CHANNELS, STATES), tl.float32)
    grad_skip = tl.zeros((CHANNELS,), tl.float32)
    grad_shift = tl.zeros((CHANNELS,), tl.float32)
    for back in range(n_chunks):
        chunk = n_chunks - 1 - back
        saved -= channels * states
        h = tl.load(saved, mask=has_dn, other=0.0)
        states_before = ()
        for k in tl.static_range(CHUNK):
            step = chunk * CHUNK + k
            there = step < length
            states_before = states_before + (h,)  # type: ignore[assignment]  # noqa: RUF005
            x = tl.load(delta + step * delta_l, mask=has_d & there, other=0.0).to(tl.float32)
            v = tl.load(u + step * u_l, mask=has_d & there, other=0.0).to(tl.float32)
            weight = tl.load(B + step * B_l, mask=has_n & there, other=0.0).to(tl.float32)
            x += shift
            if SOFTPLUS:
                x = _softplus(x)
            h = tl.exp(x[:, None] * a) * h + (x * v)[:, None] * weight[None, :]
        for j in tl.static_range(CHUNK):
            step = chunk * CHUNK + (CHUNK - 1 - j)
            there = step < length
            raw = tl.load(delta + step * delta_l, mask=has_d & there, other=0.0).to(tl.float32)
            v = tl.load(u + step * u_l, mask=has_d & there, other=0.0).to(tl.float32)
            weight = tl.load(B + step * B_l, mask=has_n & there, other=0.0).to(tl.float32)
            read = tl.load(C + step * C_l, mask=has_n & there, other=0.0).to(tl.float32)
            gy = tl.load(dy + step * dy_l, mask=has_d & there, other=0.0).to(tl.float32)
            raw += shift
            x = raw
            if SOFTPLUS:
                x = _softplus(raw)
            before = states_before[CHUNK - 1 - j]  # type: ignore[var-annotated]
            decay = tl.exp(x[:, None] * a)
            new = (x * v)[:, None] * weight[None, :]
            g += gy[:, None] * read[None, :]
            tl.store(dC + step * states, tl.sum(gy[:, None] * (decay * before + new), axis=0),
                     mask=has_n & there)  # fmt: skip
            tl.store(dB + step * states, tl.sum(g * (x * v)[:, None], axis=0),
                     mask=has_n & there)  # fmt: skip
            into = tl.sum(g * weight[None, :], axis=1)
            # steps past the end do not decay
            g = tl.where(there, g * decay, g)
            kept = g * before
            grad_x = tl.sum(kept * a, axis=1) + into * v
            grad_a += tl.where(there, kept * x[:, None], 0.0)
            if SOFTPLUS:
                grad_x *= tl.sigmoid(raw)
            grad_x = tl.where(there, grad_x, 0.0)
            grad_shift += grad_x
            grad_skip += gy * v
            grad_v = into * x + gy * skip
            tl.store(du + step * channels, grad_v.to(du.dtype.element_ty), mask=has_d & there)
            tl.store(ddelta + step * channels, grad_x.to(ddelta.dtype.element_ty),
                     mask=has_d & there)  # fmt: skip
    tl.store(dA + b * channels * states + at_dn, grad_a, mask=has_dn)
    tl.store(dD + b * channels + d, grad_skip, mask=has_d)
    tl.store(dbias + b * channels + d, grad_shift, mask=has_d)


def forward_choices(channels: int, states: int) -> tuple[Choice, ...]:
    """Return the sizes that the forward kernel may be launched with."""
    most = triton.next_power_of_2(channels)
    return tuple(
        dict.fromkeys(  # each once, in order
            Choice((("CHANNELS", min(wide, most)),), warps)
            for wide, warps in FORWARD[8 if states <= 8 else 16]
        )
    )


def backward_choices(channels: int, states: int) -> tuple[Choice, ...]:
    """Return the sizes that the backward kernel may be launched with."""
    wide = min(CHANNELS, triton.next_power_of_2(channels))
    return tuple(
        Choice((("CHANNELS", wide),), warps) for warps in BACKWARD[8 if states <= 8 else 16]
    )


def _strides(**tensors: torch.Tensor) -> dict[str, int]:
    """Name the strides of tensors as the kernels do: ``u_b, u_d, u_l``, ``B_b, B_n, B_l``."""
    return {
        f"{name}_{axis}": stride
        for name, tensor in tensors.items()
        for axis, stride in zip("bnl" if name in "BC" else "bdl", tensor.stride(), strict=True)
    }


class _Scan(torch.autograd.Function):
    """Scan with states in float32; differentiable once."""

    @staticmethod
    def forward(ctx, u, delta, A, B, C, D, bias, softplus):
        batch, channels, length = u.shape
        states = A.shape[1]
        n_chunks = triton.cdiv(length, CHUNK)
        A, D, bias = (t.contiguous() for t in (A, D, bias))
        y = u.new_empty(batch, length, channels).mT
        needs = any(ctx.needs_input_grad)
        saved = A.new_empty(
            (batch, n_chunks, channels, states) if needs else (0,), dtype=torch.float32
        )
        if y.numel():
            launch(
                scan_forward_kernel,
                forward_choices(channels, states),
                key=_KEY,
                grid=lambda sizes: (batch, triton.cdiv(channels, sizes["CHANNELS"])),
                u=u, delta=delta, A=A, B=B, C=C, D=D, bias=bias, y=y, saved=saved,
                channels=channels, states=states, length=length, n_chunks=n_chunks,
                **_strides(u=u, delta=delta, B=B, C=C, y=y),
                SOFTPLUS=softplus, SAVE=needs, CHUNK=CHUNK, STATES=triton.next_power_of_2(states),
            )  # fmt: skip
        ctx.save_for_backward(u, delta, A, B, C, D, bias, saved)
        ctx.softplus = softplus
        return y

    @staticmethod
    def backward(ctx, dy):
        u, delta, A, B, C, D, bias, saved = ctx.saved_tensors
        batch, channels, length = u.shape
        states = A.shape[1]
        choices = backward_choices(channels, states)
        groups = triton.cdiv(channels, dict(choices[0].constants)["CHANNELS"])
        du, ddelta = (t.new_empty(batch, length, channels) for t in (u, delta))
        float32 = {"dtype": torch.float32, "device": u.device}
        dA = torch.empty(batch, channels, states, **float32)
        dB, dC = (torch.empty(batch, groups, length, states, **float32) for _ in range(2))
        dD, dbias = (torch.empty(batch, channels, **float32) for _ in range(2))
        if u.numel():
            launch(
                scan_backward_kernel,
                choices,
                key=_KEY,
                grid=lambda _: (batch, groups),
                u=u, delta=delta, A=A, B=B, C=C, D=D, bias=bias, saved=saved, dy=dy,
                du=du, ddelta=ddelta, dA=dA, dB=dB, dC=dC, dD=dD, dbias=dbias,
                channels=channels, states=states, length=length, n_chunks=saved.shape[1],
                groups=groups, **_strides(u=u, delta=delta, B=B, C=C, dy=dy),
                SOFTPLUS=ctx.softplus, CHUNK=CHUNK, STATES=triton.next_power_of_2(states),
            )  # fmt: skip
        else:
            for t in (dA, dD, dbias):
                t.zero_()
        return (
            du.mT, ddelta.mT, dA.sum(0).to(A.dtype), dB.sum(1).mT.to(B.dtype),
            dC.sum(1).mT.to(C.dtype), dD.sum(0).to(D.dtype), dbias.sum(0).to(bias.dtype), None,
        )  # fmt: skip


selective_scan_triton = _Scan.apply
