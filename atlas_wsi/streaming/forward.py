"""The exact forward pass of an image that does not fit in memory.

A fine window needs its own tokens and a few hundred coarse ones, and the coarse scales are 1/16
of the tokens. So every pixel is read once (pass 0), the coarse scales stay in memory, and each
block that has the finest scale is one run over its windows, a batch at a time. The steps are
those of `atlas_wsi.models.msa`; the result is that of the dense pass up to rounding.
"""

# N windows, T tokens per window, P tokens of the next scale over a window, C channels, K classes

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch

from atlas_wsi.models.atlas import last_of_each
from atlas_wsi.models.familiarity import CELL_TOKENS
from atlas_wsi.models.msa import MsaBlock, coarse_tokens, place_parts, pool_up, replace
from atlas_wsi.streaming.fine_windows import (
    Fine,
    FineReading,
    fine_blocks,
    later_blocks,
    mean_cells,
    sum_cells,
)
from atlas_wsi.streaming.heap import retained_heap

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from atlas_wsi.models import Model
    from atlas_wsi.models.layout import Layout

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideLogits:
    """What the streamed pass gives."""

    cells: torch.Tensor
    """float32 logits `(K, rows, cols)`."""
    valid: torch.Tensor
    """bool `(rows, cols)`: cells of whose tokens at least half were observed."""
    missing: torch.Tensor
    """float32 `(rows, cols)`: which part of a cell's active tokens was not observed, 0 to 1."""
    unreadable: torch.Tensor
    """float32 `(rows, cols)`: which part could not be read."""
    slide: torch.Tensor
    """float32 logits `(K,)` of the whole image."""
    familiar: torch.Tensor | None
    """float32 `(rows, cols)` for cells of 4 x 4 tokens: 1 like the training images, 0 unlike them,
    NaN unknown; None if the model cannot tell."""


class StreamedPass:
    """One streamed forward pass: the coarse scales here, the fine windows in shares."""

    def __init__(
        self,
        model: Model,
        layout: Layout,
        shares: Sequence[tuple[NDArray[np.int64], Fine]],
        *,
        batch: int,
        keep_context: bool = False,
    ) -> None:
        self.model = model
        self.batch = batch
        weight = model.encoder.fc.weight
        self.device, self.dtype = weight.device, weight.dtype
        self.layout = layout.to(self.device)
        self.scales = self.layout.scales
        self.members = [torch.from_numpy(members) for members, _ in shares]
        self.shares = [share for _, share in shares]
        self.fine_blocks = fine_blocks(model, layout)
        self.later_stages = later_blocks(model, layout)
        self.keep_context = keep_context
        self.coarse_kv: list[list[torch.Tensor]] = []
        """For each block that has the finest scale: keys and values of the coarser scales."""

    @torch.inference_mode()
    def run(self, *, cell_tokens: int = 4) -> SlideLogits:
        """Encode and read a whole image."""
        with retained_heap():
            return self.logits(cell_tokens=cell_tokens)

    def logits(self, *, cell_tokens: int = 4) -> SlideLogits:
        """Encode and read a whole image with the gradient that its shares keep, for training."""
        made = self._each(lambda share: share.encode())
        planned = self.scales[0].valid
        self.layout = self.layout.observed(self._gather([one.valid for one in made]))
        self.scales = self.layout.scales
        pooled = self._gather([one.placed for one in made])
        coarse = coarse_tokens(self._gather([one.raw for one in made]), self.layout)
        for number, block in enumerate(self.fine_blocks):
            coarse, pooled = self._pass_fine(number, block, coarse, pooled)
        last = [coarse]
        for stage in self.later_stages:
            for block in stage:
                coarse = block(coarse, self.layout, batch=self.batch)
            last.append(coarse)
            if stage is not self.later_stages[-1] and len(coarse) > 1:
                coarse = coarse[1:]
        readings = self._each(lambda share: share.reading())
        familiar = None
        if self.model.familiarity is not None:
            judged = self._gather([one.familiar for one in made])
            familiar = self._lay_out(judged[:, None].cpu(), CELL_TOKENS, empty=torch.nan)[0]
        return self._logits(readings, last_of_each(last), coarse, planned, cell_tokens, familiar)

    def _pass_fine(
        self, number: int, block: MsaBlock, coarse: list[torch.Tensor], pooled: torch.Tensor
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        at = self.scales[0]
        coarse = [
            x + block.unit(s).position(self.scales[s].side) for s, x in enumerate(coarse, start=1)
        ]
        if coarse:
            coarse[0] = coarse[0] + place_parts(pooled, at, coarse[0])
        coarse = pool_up(coarse, self.scales[1:], self.layout.ratio, batch=self.batch)
        coarse, kv = block.down_coarse(coarse, self.scales[1:], first=1, batch=self.batch)
        if self.keep_context:
            self.coarse_kv.append(kv)
        nearest = coarse[0] if coarse else None
        valid = [at.valid for at in self.scales[1:]]
        attended = self._each(lambda share: share.attend(number, nearest, kv, valid))
        if coarse:
            coarse[0] = replace(coarse[0], self._gather([one.parts for one in attended]), at)
            coarse = block.up(coarse, self.scales[1:], first=1, batch=self.batch)
        return coarse, self._gather([one.pooled for one in attended])

    def _each(self, ask: Callable[[Fine], T]) -> list[T]:
        if len(self.shares) == 1:
            return [ask(self.shares[0])]
        with ThreadPoolExecutor(len(self.shares), thread_name_prefix="atlas-wsi-share") as threads:
            return list(threads.map(ask, self.shares))

    def _gather(self, parts: list[torch.Tensor]) -> torch.Tensor:
        """Bring what shares made into the order of the layout's list."""
        if len(parts) == 1:
            return parts[0].to(self.device)
        whole = parts[0].new_empty(sum(len(p) for p in parts), *parts[0].shape[1:])
        if len(whole) == self.scales[0].n_windows:
            for members, part in zip(self.members, parts, strict=True):
                whole[members] = part
        return whole.to(self.device)

    # reading out ----------------------------------------------------------------------------

    def _logits(
        self,
        readings: list[FineReading],
        coarse: list[torch.Tensor],
        left: list[torch.Tensor],
        planned: torch.Tensor,
        cell_tokens: int,
        familiar: torch.Tensor | None,
    ) -> SlideLogits:
        """Read cells and slide.

        `coarse`: the last tokens of every coarse scale. `left`: those of the scales that are left
        at the end. `planned`: bool `(N, T)`: the fine tokens that should be observed.
        """
        at = self.scales[0]
        summed = self._gather([one.cells for one in readings]).cpu()
        expected = sum_cells(planned.float().cpu(), at.side, cell_tokens)
        laid = self._lay_out(torch.cat([summed, expected], dim=1), cell_tokens)
        n_valid, n_lost, n_expected = laid[-3:]
        under = self.model.head.coarse(coarse, self.layout, cell_tokens=cell_tokens)
        cells, seen = under[0].float().cpu(), n_valid > 0
        cells[:, seen] += mean_cells(laid[None, :-1, seen])[0]
        return SlideLogits(
            cells=cells,
            valid=seen & (2 * n_valid >= n_expected),
            missing=(n_expected - n_valid) / n_expected.clamp(min=1),
            unreadable=n_lost / n_expected.clamp(min=1),
            slide=self._slide(readings, left)
            if self.model.pool is None
            else self._attended(readings, coarse),
            familiar=familiar,
        )

    def _lay_out(
        self, of_windows: torch.Tensor, cell_tokens: int, *, empty: float = 0.0
    ) -> torch.Tensor:
        """Lay the cells of windows `(N, C, cells, cells)` out as a map `(C, rows, cols)`."""
        at, side = self.scales[0], of_windows.shape[-1]
        rows, cols = (-(-n // cell_tokens) for n in at.grid)
        n = of_windows.shape[1]
        laid = of_windows.new_full((n, at.windows[0], side, at.windows[1], side), empty)
        i, j = (torch.from_numpy(at.where[:, k]) for k in (1, 2))
        laid.permute(1, 3, 0, 2, 4)[i, j] = of_windows
        laid = laid.view(n, at.windows[0] * side, at.windows[1] * side)
        return laid[:, :rows, :cols]

    def _slide(self, readings: list[FineReading], coarse: list[torch.Tensor]) -> torch.Tensor:
        """Read the whole image from the scales that are left at the end."""
        encoder = self.model.encoder
        total = torch.stack([one.total for one in readings]).sum(dim=0)
        count = sum(one.count for one in readings)
        for x_NTC, at in zip(reversed(coarse), reversed(self.scales), strict=False):
            for part in at.parts(self.batch):
                valid = at.valid[part]
                normed = torch.where(valid[..., None], encoder.readout_norm(x_NTC[part]).float(), 0)
                total = total + normed.sum(dim=(0, 1)).cpu()
                count += int(valid.sum())
        mean = (total[None] / max(1, count)).to(self.device, self.dtype)
        return encoder.fc(encoder.fc_norm(mean))[0].float().cpu()

    def _attended(self, readings: list[FineReading], coarse: list[torch.Tensor]) -> torch.Tensor:
        """Read the whole image from its cells, weighted by attention."""
        model, at = self.model, self.scales[0]
        assert model.pool is not None
        summed = self._gather([one.gated for one in readings])
        count = sum_cells(at.valid.float(), at.side, CELL_TOKENS)
        laid = self._lay_out(torch.cat([summed, count], dim=1), CELL_TOKENS)
        under = [
            head.coarse(coarse, self.layout, cell_tokens=CELL_TOKENS)
            for head in (model.pool.gate, model.head)
        ]
        read = laid[None, :-1] / laid[-1].clamp(min=1) + torch.cat(under, dim=1)
        n = model.pool.gate.n_classes
        return model.pool(read[:, :n].to(self.dtype), read[:, n:], laid[None, -1:] > 0)[0].cpu()
