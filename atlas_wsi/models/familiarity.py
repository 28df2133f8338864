"""How like the images that a model was trained on others are, by the tokens of its stem.

A Gaussian of the mean tokens of cells of 4 x 4, with its largest variances along axes of their
own and one variance for all other directions (probabilistic PCA: Tipping and Bishop 1999). Tokens
of the stem know no context, so a tile of a training folder and the same tile on a slide are alike.
"""

# N cells or windows, T tokens per window, C channels

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from atlas_wsi.models.card import FamiliarImages

if TYPE_CHECKING:
    from collections.abc import Callable

    from atlas_wsi.models.card import MeasuredOn

CELL_TOKENS = 4
"""Tokens along the side of the cells that are judged."""
_HELD_OUT = 0.95  # of the cells that set the limit, those within it
_MAX_AXES, _CELLS_PER_AXIS = 64, 20


class Familiarity(nn.Module):
    """Recognizes cells like those that a model was trained on, always in float32."""

    center: torch.Tensor
    axes: torch.Tensor
    variances: torch.Tensor

    def __init__(self, dim: int, facts: FamiliarImages) -> None:
        super().__init__()
        self.facts = facts
        self.register_buffer("center", torch.zeros(dim))
        self.register_buffer("axes", torch.zeros(dim, facts.axes))
        self.register_buffer("variances", torch.ones(facts.axes + 1))

    @classmethod
    def fit(
        cls, known_NC: torch.Tensor, others_NC: torch.Tensor, measured_on: MeasuredOn
    ) -> Familiarity:
        """Describe the cells of training images; others set the limit."""
        n, dim = known_NC.shape
        n_axes = max(1, min(_MAX_AXES, dim - 1, n // _CELLS_PER_AXIS))
        values, vectors = torch.linalg.eigh(torch.cov(known_NC.double().T, correction=0))
        values = values.clamp(min=1e-9 * max(1e-9, float(values[-1])))
        facts = FamiliarImages(axes=n_axes, limit=1.0, measured_on=measured_on)
        made = cls(dim, facts)
        made.center.copy_(known_NC.double().mean(dim=0))
        made.axes.copy_(vectors[:, -n_axes:])
        made.variances.copy_(torch.cat([values[-n_axes:], values[:-n_axes].mean()[None]]))
        limit = float(torch.quantile(made.distance(others_NC), _HELD_OUT))
        made.facts = facts.model_copy(update={"limit": float(f"{limit:.6g}")})
        return made

    def _apply(
        self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True
    ) -> Familiarity:
        """Follow the model to a device; half the digits would not do."""
        del recurse
        for name, value in self.named_buffers():
            setattr(self, name, value.to(fn(value).device))
        return self

    def distance(self, x_NC: torch.Tensor) -> torch.Tensor:
        """Return the squared Mahalanobis distance of cells per channel: float32 `(N,)`."""
        apart = x_NC.float() - self.center
        along = apart @ self.axes
        rest = (apart.square().sum(dim=1) - along.square().sum(dim=1)).clamp(min=0)
        total = (along.square() / self.variances[:-1]).sum(dim=1) + rest / self.variances[-1]
        return total / x_NC.shape[1]

    def of_windows(self, x_NTC: torch.Tensor, valid_NT: torch.Tensor, side: int) -> torch.Tensor:
        """Judge the cells of windows.

        `x_NTC`: tokens of the stem. `side`: tokens along a window's side. Returns: float32 `(N,
        cells, cells)` on the CPU: 1 if familiar, 0 if not, NaN where less than half was observed.
        """
        valid = valid_NT[..., None]
        both = torch.cat([torch.where(valid, x_NTC.float(), 0), valid.float()], dim=-1)
        both = both.view(len(x_NTC), side, side, -1).permute(0, 3, 1, 2)
        summed = functional.avg_pool2d(both, CELL_TOKENS, ceil_mode=True, divisor_override=1)
        n_valid = summed[:, -1]
        mean = (summed[:, :-1] / n_valid[:, None].clamp(min=1)).permute(0, 2, 3, 1)
        near = self.distance(mean.flatten(0, 2)).view(n_valid.shape) <= self.facts.limit
        return near.float().masked_fill(2 * n_valid < CELL_TOKENS**2, torch.nan).cpu()


def mean_tokens(tokens_BCYX: torch.Tensor) -> torch.Tensor:
    """Return the mean tokens of the whole cells of images `(N, C)`; a smaller image is one."""
    side = min(CELL_TOKENS, *tokens_BCYX.shape[-2:])
    pooled = functional.avg_pool2d(tokens_BCYX.float(), side)
    return pooled.permute(0, 2, 3, 1).flatten(0, 2)
