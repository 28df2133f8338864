"""Multi-Scale Attention (arXiv 2503.12355, section 3): a block, and its steps for streaming."""

# B images, N windows, T tokens per window, K keys, C channels, H heads, D channels per head
# P tokens of the next scale over one window

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import nn
from torch.nn import functional

from atlas_kernels import multiscale_window_attention
from atlas_wsi.models.linear import Linear

if TYPE_CHECKING:
    from collections.abc import Sequence

    from atlas_wsi.models.layout import Layout, ScaleLayout


Part: TypeAlias = "slice | torch.Tensor"
"""Some windows of a list: a slice, or their places."""

_ALL = slice(None)


class Position(nn.Module):
    """An MLP of a token's place in its window."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(2, 512)
        self.fc2 = nn.Linear(512, dim, bias=False)

    def forward(self, side: int) -> torch.Tensor:
        """Return `(side * side, dim)` for a window of `side` x `side` tokens."""
        weight = self.fc1.weight
        half = side // 2
        steps = torch.arange(side, device=weight.device, dtype=weight.dtype)
        place = (steps - half) / half if half else torch.zeros_like(steps)
        rows, cols = torch.meshgrid(place, place, indexing="ij")
        where = torch.stack([rows.flatten(), cols.flatten()], dim=-1)
        return self.fc2(torch.relu(self.fc1(where)))


class ScaleUnit(nn.Module):
    """What one scale owns in one block: position, attention and MLP."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.position = Position(dim)
        self.norm_q = nn.LayerNorm(dim, eps=1e-5)
        self.norm_kv = nn.LayerNorm(dim, eps=1e-5)
        self.q = Linear(dim, dim)
        self.kv = Linear(dim, 2 * dim)
        self.proj = Linear(dim, dim)
        self.norm_mlp = nn.LayerNorm(dim, eps=1e-5)
        self.fc1 = Linear(dim, 4 * dim)
        self.fc2 = Linear(4 * dim, dim)

    def start_as_identity(self) -> None:
        """Set what is added to the tokens to zero; they pass unchanged until it is trained."""
        for layer in (self.position.fc2, self.proj, self.fc2):
            for weight in layer.parameters():
                nn.init.zeros_(weight)

    def keys_values(self, x_NTC: torch.Tensor) -> torch.Tensor:
        """Project tokens to keys and values, `(N, T, 2C)`, keys first."""
        return self.kv(self.norm_kv(x_NTC))

    def update(
        self,
        x_NTC: torch.Tensor,
        kv_NKC: torch.Tensor,
        valid_NK: torch.Tensor | None,
        *,
        coarse_kv: Sequence[torch.Tensor] = (),
        index: Sequence[torch.Tensor] = (),
        coarse_valid: Sequence[torch.Tensor | None] = (),
    ) -> torch.Tensor:
        """Attend to the keys, then run the MLP, each with its residual.

        `kv_NKC`: Own keys and values `(N, K, 2C)`. `coarse_kv`: Keys and values of coarser scales,
        `(N', K', 2C)` each. `index`: The coarse window that a window sees, `(N,)` a coarser scale.
        `coarse_valid`: Which coarse keys exist, `(N', K')` or None a coarser scale. Returns: The
        updated tokens `(N, T, C)`.
        """
        a_NTC = multiscale_window_attention(
            self.q(self.norm_q(x_NTC)),
            kv_NKC,
            coarse_kv,
            index,
            heads=self.heads,
            valid=valid_NK,
            coarse_valid=coarse_valid,
        )
        x_NTC = x_NTC + self.proj(a_NTC)
        return x_NTC + self.fc2(self.fc1.gelu(self.norm_mlp(x_NTC)))


class MsaBlock(nn.Module):
    """One block of Multi-Scale Attention."""

    def __init__(self, dim: int, heads: int, *, n_scales: int) -> None:
        super().__init__()
        self.scales = nn.ModuleList(ScaleUnit(dim, heads) for _ in range(n_scales))

    def unit(self, scale: int) -> ScaleUnit:
        """Return the parameters of a scale."""
        unit = self.scales[min(scale, len(self.scales) - 1)]
        assert isinstance(unit, ScaleUnit)
        return unit

    def forward(
        self, tokens: Sequence[torch.Tensor], layout: Layout, *, batch: int | None = None
    ) -> list[torch.Tensor]:
        """Update the tokens of all scales, finest first, `batch` windows at a time."""
        scales = layout.scales[len(layout.scales) - len(tokens) :]
        x = [t + self.unit(s).position(scales[s].side) for s, t in enumerate(tokens)]
        x = pool_up(x, scales, layout.ratio, batch=batch)
        x[1:], kv = self.down_coarse(x[1:], scales[1:], first=1, batch=batch)
        at = scales[0]
        x[0] = torch.cat(
            [self.down(0, x[0][p], at, kv, scales[1:], part=p) for p in at.parts(batch)]
        )
        return self.up(x, scales, first=0, batch=batch)

    def down_coarse(
        self,
        x: Sequence[torch.Tensor],
        scales: Sequence[ScaleLayout],
        *,
        first: int,
        batch: int | None,
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Do the way down (step 3) of several scales, coarsest first; return keys and values too."""
        x = list(x)
        kv: list[torch.Tensor] = []
        for s in range(len(x) - 1, -1, -1):
            at, unit = scales[s], self.unit(first + s)
            parts = at.parts(batch)
            x[s] = torch.cat(
                [self.down(first + s, x[s][p], at, kv, scales[s + 1 :], part=p) for p in parts]
            )
            kv.insert(0, torch.cat([unit.keys_values(x[s][p]) for p in parts]))
        return x, kv

    def down(
        self,
        scale: int,
        x_NTC: torch.Tensor,
        at: ScaleLayout,
        coarse_kv: Sequence[torch.Tensor],
        coarse: Sequence[ScaleLayout],
        *,
        part: Part = _ALL,
    ) -> torch.Tensor:
        """Let windows attend to themselves and one window of every coarser scale (step 3)."""
        unit = self.unit(scale)
        return unit.update(
            x_NTC,
            unit.keys_values(x_NTC),
            None if at.is_full else at.valid[part],
            coarse_kv=coarse_kv,
            index=[parents[part] for parents in at.parents],
            coarse_valid=[None if c.is_full else c.valid for c in coarse],
        )

    def up(
        self,
        x: Sequence[torch.Tensor],
        scales: Sequence[ScaleLayout],
        *,
        first: int,
        batch: int | None,
    ) -> list[torch.Tensor]:
        """Let every coarser scale attend to the windows under it (step 4)."""
        x = list(x)
        for s in range(1, len(x)):
            below, unit = scales[s - 1], self.unit(first + s - 1)
            new = [
                self.up_parts(first + s, x[s], below, unit.keys_values(x[s - 1][p]), part=p)
                for p in below.parts(batch)
            ]
            x[s] = replace(x[s], torch.cat(new), below)
        return x

    def up_parts(
        self,
        scale: int,
        x_NTC: torch.Tensor,
        below: ScaleLayout,
        kv_NKC: torch.Tensor,
        *,
        part: Part = _ALL,
    ) -> torch.Tensor:
        """Update the tokens `(N, P, C)` of a scale over windows of the scale below (step 4)."""
        q_NPC = _rows(x_NTC.flatten(0, 1), below.up[part])
        valid = None if below.is_full else below.valid[part]
        return self.unit(scale).update(q_NPC, kv_NKC, valid)


def pool(x_NTC: torch.Tensor, at: ScaleLayout, ratio: int, *, part: Part = _ALL) -> torch.Tensor:
    """Pool windows to the tokens `(N, P, C)` of the next scale, zero where none is valid."""
    n, _, c = x_NTC.shape
    m, p = at.side, at.part_side
    x = x_NTC.view(n, m, m, c)
    if at.pooling == "mean":
        valid = at.valid[part].view(n, m, m, 1)
        both = torch.cat([torch.where(valid, x, 0), valid.to(x)], dim=-1)
        both = functional.pad(both, (0, 0, 0, p * ratio - m, 0, p * ratio - m))
        both = both.view(n, p, ratio, p, ratio, c + 1).sum(dim=(2, 4)).view(n, p * p, c + 1)
        return both[..., :-1] / both[..., -1:].clamp(min=1)
    if at.is_full and m == p * ratio:
        return x.view(n, p, ratio, p, ratio, c).amax(dim=(2, 4)).view(n, p * p, c)
    lowest = torch.finfo(x.dtype).min
    x = torch.where(at.valid[part].view(n, m, m, 1), x, lowest)
    x = functional.pad(x, (0, 0, 0, p * ratio - m, 0, p * ratio - m), value=lowest)
    x = x.view(n, p, ratio, p, ratio, c).amax(dim=(2, 4)).view(n, p * p, c)
    return torch.where(x == lowest, 0, x)


def pool_up(
    x: Sequence[torch.Tensor], scales: Sequence[ScaleLayout], ratio: int, *, batch: int | None
) -> list[torch.Tensor]:
    """Add to the tokens of every coarser scale what is pooled from the scale below (step 2)."""
    x = list(x)
    for s, at in enumerate(scales[: len(x) - 1]):
        pooled = torch.cat([pool(x[s][p], at, ratio, part=p) for p in at.parts(batch)])
        x[s + 1] = x[s + 1] + place_parts(pooled, at, x[s + 1])
    return x


def coarse_tokens(parts_NPC: torch.Tensor, layout: Layout) -> list[torch.Tensor]:
    """Make the initial tokens of the coarser scales from the pooled tokens of the finest one."""
    tokens: list[torch.Tensor] = []
    for below, above in pairwise(layout.scales):
        if tokens:
            parts_NPC = pool(tokens[-1], below, layout.ratio)
        like = parts_NPC.new_empty(above.n_windows, above.side**2, parts_NPC.shape[-1])
        tokens.append(place_parts(parts_NPC, below, like))
    return tokens


def place_parts(
    parts_NPC: torch.Tensor, below: ScaleLayout, like_NTC: torch.Tensor
) -> torch.Tensor:
    """Put the parts over windows below into the order of their own scale; others are zero."""
    return _rows(parts_NPC.flatten(0, 1), below.down).view(like_NTC.shape)


def replace(x_NTC: torch.Tensor, parts_NPC: torch.Tensor, below: ScaleLayout) -> torch.Tensor:
    """Replace the tokens over windows below by their updated selves; the others are invalid."""
    has_part = (below.down < below.up.numel()).view(*x_NTC.shape[:2], 1)
    return torch.where(has_part, place_parts(parts_NPC, below, x_NTC), x_NTC)


def _rows(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Pick rows of ``x``; an index past the end gives zeros."""
    missing = index >= len(x)
    rows = x[index.clamp(max=len(x) - 1)]
    return rows.masked_fill(missing[..., None], 0) if missing.any() else rows
