"""The exact forward pass of an image that does not fit in memory.

A fine window needs its own tokens and a few hundred coarse ones, and the coarse scales are 1/16
of the tokens. So every pixel is read once (pass 0), the coarse scales stay in memory, and each
block that has the finest scale is one run over its windows, a batch at a time. The steps are
those of `atlas_wsi.models.msa`; the result is that of the dense pass up to rounding.
"""

# N windows, T tokens a window, P tokens of the next scale over a window, C channels, K classes

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from atlas_wsi.models.layout import pad_map
from atlas_wsi.models.msa import MsaBlock, pool, replace, spread
from atlas_wsi.models.stem import STRIDE_PX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import numpy as np
    from numpy.typing import NDArray

    from atlas_wsi.inference.plan import MacroTile
    from atlas_wsi.inference.tokens import TokenStore
    from atlas_wsi.models import Model
    from atlas_wsi.models.layout import Layout, ScaleLayout


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideLogits:
    """What the streamed pass gives."""

    cells: torch.Tensor
    """float32 logits `(K, rows, cols)`."""
    valid: torch.Tensor
    """bool `(rows, cols)`: cells with a valid token."""
    slide: torch.Tensor
    """float32 logits `(K,)` of the whole image."""


class StreamedPass:
    """One streamed forward pass.

    Parameters
    ----------
    model
        From `atlas_wsi.inference.engine.prepare`.
    layout
        Windows of every scale of one image.
    store
        Where fine tokens lie between passes.
    batch
        Windows that attend at once.
    step
        Called after each piece of work with the number of windows done in it; may raise to stop.
    """

    def __init__(
        self,
        model: Model,
        layout: Layout,
        store: TokenStore,
        *,
        batch: int,
        step: Callable[[str, int], None],
    ) -> None:
        self.model = model
        self.store = store
        self.batch = batch
        self.step = step
        weight = model.encoder.fc.weight
        self.device, self.dtype = weight.device, weight.dtype
        self.layout = layout.to(self.device)
        self.scales = self.layout.scales
        stages = [_blocks(stage) for stage in model.encoder.stages]
        n_fine = _n_fine_stages(model, layout)
        self.fine_blocks = [block for stage in stages[:n_fine] for block in stage]
        self.later_stages = stages[n_fine:]

    @torch.inference_mode()
    def run(
        self,
        tiles: Iterable[tuple[MacroTile, NDArray[np.uint8]]],
        *,
        cell_tokens: int = 4,
    ) -> SlideLogits:
        """Encode and read a whole image.

        Parameters
        ----------
        tiles
            Macro-tiles and their pixels; every active window in exactly one.
        cell_tokens
            Fine tokens along a cell's side.

        Returns
        -------
        SlideLogits
            On the CPU.
        """
        coarse, pooled = self._pass_zero(tiles)
        sums = _Readout(self.model)
        fine = torch.empty(0)
        for number, block in enumerate(self.fine_blocks):
            following = self.fine_blocks[number + 1 : number + 2]
            coarse, fine, pooled = self._pass_fine(
                block, following, coarse, pooled, cell_tokens=cell_tokens, sums=sums
            )
        last = [coarse]
        for stage in self.later_stages:
            for block in stage:
                coarse = self._pass_coarse(block, coarse)
            last.append(coarse)
            if stage is not self.later_stages[-1] and len(coarse) > 1:
                coarse = coarse[1:]
        for x_NTC, at in zip(reversed(coarse), reversed(self.scales), strict=False):
            for part in self._parts(at):
                sums.add(x_NTC[part], at.valid[part])
        return self._read(fine, _last_of_each(last), sums, cell_tokens=cell_tokens)

    # pass 0 ---------------------------------------------------------------------------------

    def _pass_zero(
        self, tiles: Iterable[tuple[MacroTile, NDArray[np.uint8]]]
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        at = self.scales[0]
        dim = self.model.config.dim
        parts = at.part_side**2
        raw = self._empty(at.n_windows, parts, dim)
        pooled = self._empty(at.n_windows, parts, dim)
        position = self.fine_blocks[0].unit(0).position(at.side)
        for tile, pixels in tiles:
            windows = torch.from_numpy(tile.windows)
            x_NTC = self._stem_windows(tile, pixels)
            here = windows.to(self.device)
            if parts:
                raw[here] = pool(x_NTC, at, self.layout.ratio, part=here)
                pooled[here] = pool(x_NTC + position, at, self.layout.ratio, part=here)
            self.store.write(windows, x_NTC)
            self.step("encode", len(windows))
        coarse: list[torch.Tensor] = []
        for s, above in enumerate(self.scales[1:]):
            below = self.scales[s]
            made = raw if s == 0 else pool(coarse[-1], below, self.layout.ratio)
            like = self._empty(above.n_windows, above.side**2, dim)
            coarse.append(spread(made, below, like))
        return coarse, pooled

    def _stem_windows(self, tile: MacroTile, pixels: NDArray[np.uint8]) -> torch.Tensor:
        image = torch.from_numpy(pixels[None])
        if self.device.type == "cuda":
            image = image.pin_memory().to(self.device, non_blocking=True)
        x_BCYX = self.model.normalise(image).to(self.dtype)
        tokens = self.model.encoder.stem(x_BCYX)
        at, area = self.scales[0], tile.area
        m = at.side
        top = area.row * m - tile.read.row // STRIDE_PX
        left = area.col * m - tile.read.col // STRIDE_PX
        tokens = tokens[0, :, top : top + area.rows * m, left : left + area.cols * m]
        tokens = pad_map(
            tokens, rows=area.rows * m - tokens.shape[1], cols=area.cols * m - tokens.shape[2]
        )
        cut = tokens.view(-1, area.rows, m, area.cols, m).permute(1, 3, 2, 4, 0)
        where = at.where[tile.windows]
        rows = torch.from_numpy(where[:, 1] - area.row)
        cols = torch.from_numpy(where[:, 2] - area.col)
        x_NTC = cut[rows, cols].reshape(len(where), m * m, -1)
        if at.is_full:
            return x_NTC
        valid = at.valid[torch.from_numpy(tile.windows).to(self.device)]
        return torch.where(valid[..., None], x_NTC, 0)

    # passes over the finest scale -----------------------------------------------------------

    def _pass_fine(
        self,
        block: MsaBlock,
        following: list[MsaBlock],
        coarse: list[torch.Tensor],
        pooled: torch.Tensor,
        *,
        cell_tokens: int,
        sums: _Readout,
    ) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
        at = self.scales[0]
        coarse = [
            x + block.unit(s).position(self.scales[s].side) for s, x in enumerate(coarse, start=1)
        ]
        if coarse:
            coarse[0] = coarse[0] + spread(pooled, at, coarse[0])
        coarse, kv = self._down(block, coarse, first=1)
        position = block.unit(0).position(at.side)
        logits, new_parts = [], torch.empty_like(pooled)
        for part in self._parts(at):
            x_NTC = self.store.read(part).to(self.device, self.dtype, non_blocking=True) + position
            x_NTC = block.down(0, x_NTC, at, kv, self.scales[1:], part=part)
            if coarse:
                kv_fine = block.unit(0).keys_values(x_NTC)
                new_parts[part] = block.up_parts(1, coarse[0], at, kv_fine, part=part)
            if following:
                self.store.write(part, x_NTC)
                if coarse:
                    ahead = x_NTC + following[0].unit(0).position(at.side)
                    pooled[part] = pool(ahead, at, self.layout.ratio, part=part)
            else:
                logits.append(self._cells(x_NTC, part, cell_tokens))
                if not self.later_stages:
                    sums.add(x_NTC, at.valid[part])
            self.step("attend", len(x_NTC))
        if coarse:
            coarse[0] = replace(coarse[0], new_parts, at)
            coarse = self._up(block, coarse, first=1)
        return coarse, torch.cat(logits) if logits else torch.empty(0), pooled

    def _cells(self, x_NTC: torch.Tensor, part: slice, cell_tokens: int) -> torch.Tensor:
        """Average the reading of windows over their cells: `(n, K + 1, cells, cells)`."""
        at = self.scales[0]
        read = self.model.head.read(0, x_NTC).float()
        valid = at.valid[part][..., None]
        both = torch.cat([torch.where(valid, read, 0), valid.float()], dim=-1)
        both = both.view(len(x_NTC), at.side, at.side, -1).permute(0, 3, 1, 2)
        return nn.functional.avg_pool2d(both, cell_tokens, ceil_mode=True, divisor_override=1)

    # passes over the coarse scales, in memory -----------------------------------------------

    def _pass_coarse(self, block: MsaBlock, x: list[torch.Tensor]) -> list[torch.Tensor]:
        first = len(self.scales) - len(x)
        scales = self.scales[first:]
        x = [t + block.unit(s).position(scales[s].side) for s, t in enumerate(x)]
        x, _ = self._down(block, x, first=0)
        return self._up(block, x, first=0)

    def _down(
        self, block: MsaBlock, x: list[torch.Tensor], *, first: int
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Do steps 2 and 3 of the scales in memory; `first` is the place of the finest of them."""
        scales = self.scales[len(self.scales) - len(x) :]
        for s in range(len(x) - 1):
            lifted = self._pool(x[s], scales[s])
            x[s + 1] = x[s + 1] + spread(lifted, scales[s], x[s + 1])
        kv: list[torch.Tensor] = []
        for s in range(len(x) - 1, -1, -1):
            at = scales[s]
            keys = x[s].new_empty(*x[s].shape[:2], 2 * x[s].shape[2])
            new = torch.empty_like(x[s])
            for part in self._parts(at):
                new[part] = block.down(first + s, x[s][part], at, kv, scales[s + 1 :], part=part)
                keys[part] = block.unit(first + s).keys_values(new[part])
            x[s] = new
            kv.insert(0, keys)
        return x, kv

    def _up(self, block: MsaBlock, x: list[torch.Tensor], *, first: int) -> list[torch.Tensor]:
        """Do step 4 of the scales in memory that have one of them below."""
        scales = self.scales[len(self.scales) - len(x) :]
        for s in range(1, len(x)):
            below = scales[s - 1]
            new = x[s].new_empty(*below.up.shape, x[s].shape[2])
            for part in self._parts(below):
                kv = block.unit(first + s - 1).keys_values(x[s - 1][part])
                new[part] = block.up_parts(first + s, x[s], below, kv, part=part)
            x[s] = replace(x[s], new, below)
        return x

    def _pool(self, x_NTC: torch.Tensor, at: ScaleLayout) -> torch.Tensor:
        parts = [pool(x_NTC[p], at, self.layout.ratio, part=p) for p in self._parts(at)]
        return torch.cat(parts)

    # reading out ----------------------------------------------------------------------------

    def _read(
        self,
        fine_NKYX: torch.Tensor,
        coarse: list[torch.Tensor],
        sums: _Readout,
        *,
        cell_tokens: int,
    ) -> SlideLogits:
        at = self.scales[0]
        side = fine_NKYX.shape[-1]
        rows, cols = (-(-n // cell_tokens) for n in at.grid)
        n_classes = fine_NKYX.shape[1] - 1
        laid = fine_NKYX.new_zeros(n_classes + 1, at.windows[0], side, at.windows[1], side)
        i, j = (torch.from_numpy(at.where[:, k]).to(self.device) for k in (1, 2))
        laid.permute(1, 3, 0, 2, 4)[i, j] = fine_NKYX
        laid = laid.view(n_classes + 1, at.windows[0] * side, at.windows[1] * side)
        laid = laid[:, :rows, :cols]
        cells = laid[:-1] / laid[-1].clamp(min=1)
        under = self.model.head.coarse(coarse, self.layout, cell_tokens=cell_tokens)
        slide = self.model.encoder.fc(self.model.encoder.fc_norm(sums.mean().to(self.dtype)))
        return SlideLogits(
            cells=(cells + under[0].float()).cpu(),
            valid=(laid[-1] > 0).cpu(),
            slide=slide[0].float().cpu(),
        )

    def _parts(self, at: ScaleLayout) -> Iterator[slice]:
        for start in range(0, at.n_windows, self.batch):
            yield slice(start, min(start + self.batch, at.n_windows))

    def _empty(self, *shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.device)


class _Readout:
    """The running mean of normalised valid tokens."""

    def __init__(self, model: Model) -> None:
        self._norm = model.encoder.readout_norm
        self._total: torch.Tensor | None = None
        self._count = 0

    def add(self, x_NTC: torch.Tensor, valid_NT: torch.Tensor) -> None:
        total = torch.where(valid_NT[..., None], self._norm(x_NTC).float(), 0).sum(dim=(0, 1))
        self._total = total if self._total is None else self._total + total
        self._count += int(valid_NT.sum())

    def mean(self) -> torch.Tensor:
        assert self._total is not None
        return self._total[None] / max(1, self._count)


def n_fine_blocks(model: Model, layout: Layout) -> int:
    """Return how many blocks update the finest scale.

    Parameters
    ----------
    model
        The model.
    layout
        Windows of every scale.

    Returns
    -------
    int
        Runs over the fine windows after pass 0.
    """
    return sum(model.config.depths[: _n_fine_stages(model, layout)])


def _n_fine_stages(model: Model, layout: Layout) -> int:
    """Count the stages that still have the finest scale; it is dropped unless it is the only one."""
    return len(model.config.depths) if len(layout.scales) == 1 else 1


def _blocks(stage: nn.Module) -> list[MsaBlock]:
    assert isinstance(stage, nn.ModuleList)
    return [block for block in stage if isinstance(block, MsaBlock)]


def _last_of_each(stages: list[list[torch.Tensor]]) -> list[torch.Tensor]:
    """Return the tokens of every coarse scale after the last stage that had it."""
    n = len(stages[0])
    return [
        next(s[scale - (n - len(s))] for s in reversed(stages) if n - len(s) <= scale)
        for scale in range(n)
    ]
