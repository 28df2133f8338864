"""From the tokens of all scales to class logits of heatmap cells, and of the whole image."""

# B images, K classes, G gates, N windows, T tokens per window, C channels, Y rows, X columns

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence

    from atlas_wsi.models.layout import Layout

_GATES = 32


class DenseHead(nn.Module):
    """Logits of cells: the mean of fine readings plus interpolated readings of coarser scales."""

    def __init__(self, dim: int, n_classes: int, *, n_scales: int, is_plain: bool = False) -> None:
        super().__init__()
        self.n_classes = n_classes
        self.norms = nn.ModuleList(
            nn.Identity() if is_plain and not s else nn.LayerNorm(dim) for s in range(n_scales)
        )
        self.reads = nn.ModuleList(nn.Linear(dim, n_classes, bias=s == 0) for s in range(n_scales))

    def start_with_finest(self) -> None:
        """Read nothing from the coarser scales until that is trained."""
        for read in list(self.reads)[1:]:
            for weight in read.parameters():
                nn.init.zeros_(weight)

    def read(self, scale: int, x_NTC: torch.Tensor) -> torch.Tensor:
        """Read the tokens of a scale: logits `(N, T, K)`."""
        s = min(scale, len(self.reads) - 1)
        return self.reads[s](self.norms[s](x_NTC))

    def forward(
        self, tokens: Sequence[torch.Tensor], layout: Layout, *, cell_tokens: int = 4
    ) -> torch.Tensor:
        """Read all scales, finest first: logits `(B, K, rows, cols)`, zero without a token."""
        fine = self.fine(tokens[0], layout, cell_tokens=cell_tokens)
        return fine + self.coarse(tokens[1:], layout, cell_tokens=cell_tokens)

    def fine(self, x_NTC: torch.Tensor, layout: Layout, *, cell_tokens: int = 4) -> torch.Tensor:
        """Read the finest scale and average it over cells: logits `(B, K, rows, cols)`."""
        logits = layout.to_map(0, self.read(0, x_NTC))
        valid = valid_map(layout, 0, like=logits)
        return _mean_cells(logits, valid, cell_tokens)

    def coarse(
        self, tokens: Sequence[torch.Tensor], layout: Layout, *, cell_tokens: int = 4
    ) -> torch.Tensor:
        """Read the scales from 1 on at the centers of cells: logits `(B, K, rows, cols)`."""
        rows, cols = (-(-n // cell_tokens) for n in layout.scales[0].grid)
        total = next(self.parameters()).new_zeros(layout.n_images, self.n_classes, rows, cols)
        for s, x_NTC in enumerate(tokens, start=1):
            logits = layout.to_map(s, self.read(s, x_NTC))
            valid = valid_map(layout, s, like=logits)
            step = cell_tokens / layout.ratio**s
            total += interpolate(logits, valid, step=step, shape=(rows, cols))
        return total


class AttentionPool(nn.Module):
    """Logits of an image: the mean of its cells' logits, weighted for each class by gated attention.

    Source: arXiv 1802.04712, equation 9, with the logits of the heatmap as embedding.
    """

    def __init__(self, dim: int, n_classes: int, *, n_scales: int) -> None:
        super().__init__()
        self.gate = DenseHead(dim, 2 * _GATES, n_scales=n_scales)
        self.weigh = nn.Linear(_GATES, n_classes, bias=False)
        nn.init.normal_(self.weigh.weight)  # cells that weigh alike would learn apart slowly

    def forward(
        self, gates_BGYX: torch.Tensor, logits_BKYX: torch.Tensor, valid_B1YX: torch.Tensor
    ) -> torch.Tensor:
        """Return logits `(B, K)`; cells that are not valid have no weight."""
        a, b = gates_BGYX.flatten(2).transpose(1, 2).chunk(2, dim=2)
        scores_BKN = self.weigh(a.tanh() * b.sigmoid()).float().transpose(1, 2)
        valid_B1N = valid_B1YX.flatten(2)
        scores_BKN = scores_BKN.masked_fill(~valid_B1N, torch.finfo(torch.float32).min)
        weights_BKN = scores_BKN.softmax(dim=2) * valid_B1N
        return (weights_BKN * logits_BKYX.flatten(2).float()).sum(dim=2)


def valid_map(layout: Layout, scale: int, *, like: torch.Tensor) -> torch.Tensor:
    """Return which tokens of a scale are valid: ones and zeros, `(B, 1, rows, cols)`."""
    valid = layout.scales[scale].valid[..., None].to(like)
    return layout.to_map(scale, valid)


def interpolate(
    x_BKYX: torch.Tensor, valid_B1YX: torch.Tensor, *, step: float, shape: tuple[int, int]
) -> torch.Tensor:
    """Interpolate a map linearly between its valid tokens.

    `shape`: Rows and columns of cells; cell centers lie at ``(i + 0.5) * step - 0.5`` of the map.
    Returns: `(B, K, *shape)`; zero where no valid token is near.
    """
    if step == 1 and tuple(x_BKYX.shape[-2:]) == shape:
        return x_BKYX
    rows, cols = (
        _weights(n, size, step, x_BKYX) for n, size in zip(shape, x_BKYX.shape[-2:], strict=True)
    )
    both = torch.cat([x_BKYX, valid_B1YX], dim=1)
    both = rows @ both @ cols.T
    weight = both[:, -1:]
    return torch.where(weight > 1e-6, both[:, :-1] / weight.clamp(min=1e-6), 0)


def _weights(n: int, size: int, step: float, like: torch.Tensor) -> torch.Tensor:
    """Weights `(n, size)` of linear interpolation, clamped at the borders."""
    at = ((torch.arange(n, dtype=torch.float64) + 0.5) * step - 0.5).clamp(0, size - 1)
    low = at.floor().long()
    high = (low + 1).clamp(max=size - 1)
    share = (at - low).unsqueeze(1)
    weights = torch.zeros(n, size, dtype=torch.float64)
    weights.scatter_add_(1, low[:, None], 1 - share)
    weights.scatter_add_(1, high[:, None], share)
    return weights.to(like)


def _mean_cells(x_BKYX: torch.Tensor, valid_B1YX: torch.Tensor, cell_tokens: int) -> torch.Tensor:
    if cell_tokens == 1:
        return x_BKYX
    pooled = functional.avg_pool2d(
        torch.cat([x_BKYX, valid_B1YX], dim=1), cell_tokens, ceil_mode=True, divisor_override=1
    )
    return pooled[:, :-1] / pooled[:, -1:].clamp(min=1)
