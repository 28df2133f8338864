"""Which windows of tokens exist at every scale, and how scales lie over each other.

A token is valid if it lies in the image and its fine window is active, a coarse one if any token
under it is; windows without a valid token are not listed.
"""

# B images, N windows (of one scale), T tokens per window, P tokens of the next scale over a window

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

Alignment = Literal["spatial", "raster"]
Pooling = Literal["max", "mean"]


def count_scales(longer_side: int, *, window: int, ratio: int) -> int:
    """Return how many scales an image has."""
    scales, reach = 1, window
    while reach < longer_side:
        reach *= ratio
        scales += 1
    return scales


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleLayout:
    """The windows of one scale that hold a valid token."""

    grid: tuple[int, int]
    """Tokens of the scale, rows and columns."""
    side: int
    """Tokens along a window's side."""
    windows: tuple[int, int]
    """Windows that cover the grid, rows and columns."""
    where: NDArray[np.int64]
    """`(N, 3)`: image, window row, window column of every window in the list, ascending."""
    valid: torch.Tensor
    """bool `(N, T)`: which tokens are valid, row-major inside the window."""
    is_full: bool
    """Whether every token of every window is valid."""
    parents: tuple[torch.Tensor, ...]
    """For each coarser scale, nearest first: int64 `(N,)`, the window that a window looks up to."""
    up: torch.Tensor
    """int64 `(N, P)`: flat token of the next scale over each part; its count if there is none."""
    down: torch.Tensor
    """int64 `(N' * T',)`: for each token of the next scale, the flat part under it; N * P if none."""
    part_side: int
    """Tokens of the next scale over a window, along one side; 0 at the last scale."""
    pooling: Pooling
    """How its tokens become those of the next scale."""

    @property
    def n_windows(self) -> int:
        """Windows in the list."""
        return len(self.where)

    def parts(self, batch: int | None) -> list[slice]:
        """Return slices of at most `batch` windows; None takes all at once."""
        step = batch or self.n_windows
        return [slice(start, start + step) for start in range(0, self.n_windows, step or 1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """All scales of a batch of images of one size, finest first."""

    n_images: int
    """Images in the batch."""
    scales: tuple[ScaleLayout, ...]
    """Finest first."""
    ratio: int
    """Tokens of a scale per token of the next one, along one side."""

    def to_map(self, scale: int, x_NTC: torch.Tensor) -> torch.Tensor:
        """Lay the tokens of a scale out as `(B, C, rows, cols)`, zero where invalid."""
        at = self.scales[scale]
        m, (wr, wc) = at.side, at.windows
        channels = x_NTC.shape[-1]
        out = x_NTC.new_zeros(self.n_images, channels, wr, m, wc, m)
        b, i, j = (torch.from_numpy(at.where[:, k]).to(x_NTC.device) for k in range(3))
        x_NTC = torch.where(at.valid.to(x_NTC.device)[..., None], x_NTC, 0)
        out.permute(0, 2, 4, 3, 5, 1)[b, i, j] = x_NTC.view(-1, m, m, channels)
        out = out.view(self.n_images, channels, wr * m, wc * m)
        return out[..., : at.grid[0], : at.grid[1]]

    def from_map(self, x_BCYX: torch.Tensor) -> torch.Tensor:
        """Cut a map `(B, C, rows, cols)` into the finest windows, zero where invalid."""
        at = self.scales[0]
        m, (wr, wc) = at.side, at.windows
        n_images, channels, rows, cols = x_BCYX.shape
        x_BCYX = pad_map(x_BCYX, rows=wr * m - rows, cols=wc * m - cols)
        x = x_BCYX.view(n_images, channels, wr, m, wc, m).permute(0, 2, 4, 3, 5, 1)
        b, i, j = (torch.from_numpy(at.where[:, k]).to(x.device) for k in range(3))
        x_NTC = x[b, i, j].reshape(-1, m * m, channels)
        if at.is_full:
            return x_NTC
        return torch.where(at.valid.to(x.device)[..., None], x_NTC, 0)

    def observed(self, valid_NT: torch.Tensor) -> Layout:
        """Restrict the valid tokens to those that were observed, at every scale.

        `valid_NT`: bool `(N, T)` of the finest scale. The windows stay the same, also those
        without a valid token.
        """
        scales = []
        for at in self.scales:
            valid_NT = at.valid & valid_NT.to(at.valid.device)
            scales.append(replace(at, valid=valid_NT, is_full=bool(valid_NT.all())))
            if at.part_side:
                n, m, p = at.n_windows, at.side, at.part_side
                grid = pad_map(
                    valid_NT.view(n, m, m), rows=p * self.ratio - m, cols=p * self.ratio - m
                )
                parts = grid.view(n, p, self.ratio, p, self.ratio).any(dim=4).any(dim=2).flatten()
                parts = torch.cat([parts, parts.new_zeros(1)])
                valid_NT = parts[at.down].view(-1, self.scales[len(scales)].side ** 2)
        return replace(self, scales=tuple(scales))

    def share(self, members: NDArray[np.int64]) -> Layout:
        """Restrict the finest scale to some of its windows."""
        at = self.scales[0]
        index = torch.from_numpy(members).to(at.valid.device)
        valid = at.valid[index]
        mine = replace(
            at,
            where=at.where[members],
            valid=valid,
            is_full=bool(valid.all()),
            parents=tuple(p[index] for p in at.parents),
            up=at.up[index],
            down=at.down[:0],
        )
        return replace(self, scales=(mine, *self.scales[1:]))

    def to(self, device: torch.device) -> Layout:
        """Move the index tensors to a device."""
        if self.scales[0].valid.device == device:
            return self
        moved = tuple(
            replace(
                at,
                valid=at.valid.to(device),
                parents=tuple(p.to(device) for p in at.parents),
                up=at.up.to(device),
                down=at.down.to(device),
            )
            for at in self.scales
        )
        return replace(self, scales=moved)


def pad_map(x_BCYX: torch.Tensor, *, rows: int, cols: int) -> torch.Tensor:
    """Pad a map with zeros below and to the right."""
    return torch.nn.functional.pad(x_BCYX, (0, cols, 0, rows)) if rows or cols else x_BCYX


def plan_layout(
    tokens: tuple[int, int],
    *,
    active: NDArray[np.bool_],
    observed: NDArray[np.bool_] | None = None,
    window: int,
    ratio: int,
    alignment: Alignment = "spatial",
    pooling: Pooling = "max",
    n_scales: int | None = None,
) -> Layout:
    """List the windows of every scale; `active`: bool `(B, rows, cols)` of fine windows.

    `observed`: bool `(B, *tokens)`, which tokens were observed; None if all were.
    """
    n_scales = n_scales or count_scales(max(tokens), window=window, ratio=ratio)
    longer = max(tokens)
    side = min(longer, window)
    expected = tuple(-(-n // side) for n in tokens)
    if active.ndim != 3 or active.shape[1:] != expected:
        raise ValueError(
            f"active windows have the shape {active.shape}, expected (batch, {expected[0]}, "
            f"{expected[1]}): {tokens[0]} x {tokens[1]} tokens in windows of {side} x {side}"
        )
    if not active.any():
        raise ValueError("no window is active; there is nothing to encode")

    valid = active.repeat(side, axis=1).repeat(side, axis=2)[:, : tokens[0], : tokens[1]]
    if observed is not None:
        valid = valid & observed
        if not valid.any():
            raise ValueError("no token is observed; there is nothing to encode")
    grids, cut = [], []
    for _ in range(n_scales):
        grids.append(valid.shape[1:])
        cut.append(_cut(valid, window=window))
        valid = _pool_valid(valid, ratio)
    scales = tuple(
        _scale_layout(s, grids, cut, ratio=ratio, alignment=alignment, pooling=pooling)
        for s in range(n_scales)
    )
    return Layout(n_images=len(active), scales=scales, ratio=ratio)


@dataclass(frozen=True, slots=True)
class _Cut:
    """A scale's validity cut into windows."""

    side: int
    windows: tuple[int, int]
    where: NDArray[np.int64]
    valid: NDArray[np.bool_]
    index: NDArray[np.int64]


def _pool_valid(valid: NDArray[np.bool_], ratio: int) -> NDArray[np.bool_]:
    images, rows, cols = valid.shape
    padded = np.pad(valid, ((0, 0), (0, -rows % ratio), (0, -cols % ratio)))
    blocks = padded.reshape(images, -1, ratio, padded.shape[2] // ratio, ratio)
    return np.asarray(blocks.any(axis=(2, 4)))


def _cut(valid: NDArray[np.bool_], *, window: int) -> _Cut:
    images, rows, cols = valid.shape
    side = min(window, max(rows, cols))
    padded = np.pad(valid, ((0, 0), (0, -rows % side), (0, -cols % side)))
    wr, wc = padded.shape[1] // side, padded.shape[2] // side
    tokens = padded.reshape(images, wr, side, wc, side).transpose(0, 1, 3, 2, 4)
    tokens = tokens.reshape(images, wr, wc, side * side)
    listed = tokens.any(axis=-1)
    where = np.argwhere(listed)
    index = np.full((images, wr, wc), -1, dtype=np.int64)
    index[listed] = np.arange(len(where))
    return _Cut(side, (wr, wc), where, tokens[listed], index)


def _scale_layout(
    s: int,
    grids: Sequence[tuple[int, int]],
    cuts: Sequence[_Cut],
    *,
    ratio: int,
    alignment: Alignment,
    pooling: Pooling,
) -> ScaleLayout:
    cut = cuts[s]
    parents = tuple(
        torch.from_numpy(_parents(cut, cuts[t], step=ratio ** (t - s), alignment=alignment))
        for t in range(s + 1, len(cuts))
    )
    up = np.zeros((len(cut.where), 0), dtype=np.int64)
    down = np.zeros(0, dtype=np.int64)
    part = 0
    if s + 1 < len(cuts):
        part = -(-cut.side // ratio)
        up, down = _parts(cut, cuts[s + 1], grid=grids[s + 1], part=part)
    return ScaleLayout(
        grid=(int(grids[s][0]), int(grids[s][1])),
        side=cut.side,
        windows=cut.windows,
        where=cut.where,
        valid=torch.from_numpy(cut.valid),
        is_full=bool(cut.valid.all()),
        parents=parents,
        up=torch.from_numpy(up),
        down=torch.from_numpy(down),
        part_side=part,
        pooling=pooling,
    )


def _parents(fine: _Cut, coarse: _Cut, *, step: int, alignment: Alignment) -> NDArray[np.int64]:
    b, i, j = fine.where.T
    if alignment == "spatial":
        row = np.minimum(i // step, coarse.windows[0] - 1)
        col = np.minimum(j // step, coarse.windows[1] - 1)
    else:
        share = (fine.windows[0] * fine.windows[1]) // (coarse.windows[0] * coarse.windows[1])
        number = (i * fine.windows[1] + j) // max(1, share)
        row, col = np.divmod(np.minimum(number, coarse.index[0].size - 1), coarse.windows[1])
    return coarse.index[b, row, col]


def _parts(
    fine: _Cut, coarse: _Cut, *, grid: tuple[int, int], part: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    b, i, j = fine.where.T
    rows = (i[:, None] * part + np.arange(part))[:, :, None]
    cols = (j[:, None] * part + np.arange(part))[:, None, :]
    inside = (rows < grid[0]) & (cols < grid[1])
    rows, cols = np.minimum(rows, grid[0] - 1), np.minimum(cols, grid[1] - 1)
    window = coarse.index[b[:, None, None], rows // coarse.side, cols // coarse.side]
    inside &= window >= 0
    n_tokens = len(coarse.where) * coarse.side**2
    flat = window * coarse.side**2 + (rows % coarse.side) * coarse.side + cols % coarse.side
    up = np.where(inside, flat, n_tokens).reshape(len(fine.where), part * part)
    down = np.full(n_tokens, up.size, dtype=np.int64)
    parts = np.arange(up.size).reshape(up.shape)
    down[up[up < n_tokens]] = parts[up < n_tokens]
    return up, down
