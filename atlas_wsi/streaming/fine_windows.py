"""The finest scale of a streamed pass: everything that is done window by window.

A share of the windows needs nothing of the other shares but the coarse scales, so shares may lie
in one process, or one in each worker of a cluster.
"""

# N windows, T tokens per window, P tokens of the next scale over a window, C channels, K classes

from __future__ import annotations

import itertools
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from atlas_wsi.models.familiarity import CELL_TOKENS
from atlas_wsi.models.layout import pad_map
from atlas_wsi.models.msa import pool
from atlas_wsi.slides.paste import relative
from atlas_wsi.slides.tile_reader import OBSERVED, UNREADABLE, majority

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from atlas_wsi.models import Model
    from atlas_wsi.models.layout import Layout, ScaleLayout
    from atlas_wsi.models.msa import MsaBlock
    from atlas_wsi.streaming.plan import MacroTile
    from atlas_wsi.streaming.token_store import TokenStore

    Pixels = tuple[NDArray[np.uint8], NDArray[np.uint8] | None]
    """Pixels `(rows, cols, 3)` and what is known of them `(rows, cols)`, None if all are observed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooled:
    """What the windows of a share give to the scale above them, each `(N, P, C)`."""

    raw: torch.Tensor
    """Pooled tokens."""
    placed: torch.Tensor
    """Pooled tokens with the position of the first block added."""
    valid: torch.Tensor
    """bool `(N, T)`: which fine tokens were observed."""
    familiar: torch.Tensor
    """float32 `(N, cells, cells)`: which cells are like the training images, as
    `Familiarity.of_windows`; no cells if the model cannot tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attended:
    """What a block over the windows of a share gives to the scale above them, each `(N, P, C)`."""

    parts: torch.Tensor
    """Tokens of the scale above, updated from below (step 4)."""
    pooled: torch.Tensor
    """Pooled tokens with the position of the following block added; empty after the last one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FineReading:
    """What is read from the windows of a share at the end."""

    cells: torch.Tensor
    """float32 `(N, K + 2, rows, cols)`: sums of logits per cell, and the counts of valid and of
    unreadable tokens."""
    total: torch.Tensor
    """float32 `(C,)`: sum of normalized valid tokens; zeros if the finest scale is dropped."""
    count: int
    """Tokens in `total`."""
    gated: torch.Tensor
    """float32 `(N, 2 G + K, cells, cells)`: sums of what the attention pool reads per cell of 4 x 4
    tokens: its gates and the logits; no channels without a pool."""


class Fine(Protocol):
    """A share of the windows of the finest scale, here or in another process."""

    def encode(self) -> Pooled:
        """Read and encode every window."""

    def attend(
        self,
        number: int,
        coarse: torch.Tensor | None,
        kv: Sequence[torch.Tensor],
        valid: Sequence[torch.Tensor],
    ) -> Attended:
        """Run one block over every window.

        `coarse`: tokens of the next scale. `kv`: keys and values of the coarser scales. `valid`:
        which tokens of the coarser scales exist, bool `(N, T)` each.
        """

    def reading(self) -> FineReading:
        """Return what was read after the last block."""


class FineWindows:
    """A share of the fine windows in this process.

    `preview`: Called with places of windows and logits `(n, K, rows, cols)` a cell, not yet final:
    first of each window seen alone, then seen with its context.
    """

    learns = False

    def __init__(
        self,
        model: Model,
        layout: Layout,
        tiles: Iterable[tuple[MacroTile, Pixels]],
        *,
        store: TokenStore,
        image_shape: tuple[int, int],
        batch: int,
        cell_tokens: int,
        step: Callable[[str, int], None],
        scratch: TokenStore | None = None,
        stored: torch.Tensor | None = None,
        preview: Callable[[torch.Tensor, torch.Tensor], None] | None = None,
    ) -> None:
        self.model = model
        self.tiles = tiles
        self.store = store
        self.scratch = scratch or store
        self.image_shape = image_shape
        self.batch = batch
        self.cell_tokens = cell_tokens
        self.step = step
        self.stored = torch.empty(0, dtype=torch.long) if stored is None else stored
        self.preview = preview
        weight = model.encoder.fc.weight
        self.device, self.dtype = weight.device, weight.dtype
        self.layout = layout.to(self.device)
        at = self.layout.scales[0]
        self.at: ScaleLayout = replace(at, valid=at.valid.clone())
        self.unreadable = torch.zeros_like(at.valid)
        self.blocks = fine_blocks(model, layout)
        self.reaches_end = not later_blocks(model, layout)
        cells = -(-self.at.side // cell_tokens)
        n_classes = model.config.n_classes
        self._cells = torch.zeros(self.at.n_windows, n_classes + 2, cells, cells)
        self._total = torch.zeros(model.config.dim)
        self._count = 0
        cells = -(-self.at.side // CELL_TOKENS)
        n_read = model.pool.gate.n_classes + n_classes if model.pool else 0
        self._gated = torch.zeros(self.at.n_windows, n_read, cells, cells)

    @property
    def _mode(self) -> AbstractContextManager[None]:
        return nullcontext() if self.learns else torch.inference_mode()

    def encode(self) -> Pooled:
        """Read and encode every window (pass 0)."""
        with self._mode:
            return self._encode()

    def _encode(self) -> Pooled:
        at, dim = self.at, self.model.config.dim
        shape = (at.n_windows, at.part_side**2, dim)
        cells = -(-at.side // CELL_TOKENS) if self.model.familiarity else 0
        familiar = torch.full((at.n_windows, cells, cells), torch.nan)
        out = Pooled(
            raw=self._empty(*shape),
            placed=self._empty(*shape),
            valid=at.valid,
            familiar=familiar,
        )
        for start in range(0, len(self.stored), self.batch):
            windows = self.stored[start : start + self.batch]
            x_NTC = self.store.read(windows).to(self.device, self.dtype)
            missing, lost = x_NTC[..., 0].isnan(), x_NTC[..., 0].isinf()
            self._leave_out(windows, missing | lost, lost)
            self._take_in(windows, self._observed(windows, x_NTC), out)
        for tile, pixels in self.tiles:
            windows = torch.from_numpy(tile.windows)
            x_NTC = self.tokens_of_tile(tile, pixels)
            if self.blocks:
                self.store.write(windows, self._marked(windows, x_NTC))
            self._take_in(windows, x_NTC, out)
        return out

    def attend(
        self,
        number: int,
        coarse: torch.Tensor | None,
        kv: Sequence[torch.Tensor],
        valid: Sequence[torch.Tensor],
    ) -> Attended:
        """Run one block over every window (pass b)."""
        with self._mode:
            return self._attend(number, coarse, kv, valid)

    def _attend(
        self,
        number: int,
        coarse: torch.Tensor | None,
        kv: Sequence[torch.Tensor],
        valid: Sequence[torch.Tensor],
    ) -> Attended:
        block, following = self.blocks[number], self.blocks[number + 1 : number + 2]
        at = self.at
        coarser = [
            replace(above, valid=seen.to(self.device), is_full=bool(seen.all()))
            for above, seen in zip(self.layout.scales[1:], valid, strict=True)
        ]
        if coarse is not None:
            coarse, kv = coarse.to(self.device), [t.to(self.device) for t in kv]
        shape = (at.n_windows, at.part_side**2, self.model.config.dim)
        parts = self._empty(*shape)
        pooled = self._empty(*(shape if following else (0, 0, 0)))
        position = block.unit(0).position(at.side)
        store = self.scratch if number else self.store
        for part in at.parts(self.batch):
            x_NTC = store.read(part).to(self.device, self.dtype, non_blocking=True)
            x_NTC = (x_NTC if number else self._observed(part, x_NTC)) + position
            x_NTC = block.down(0, x_NTC, at, kv, coarser, part=part)
            if coarse is not None:
                kv_fine = block.unit(0).keys_values(x_NTC)
                parts[part] = block.up_parts(1, coarse, at, kv_fine, part=part)
            if following:
                self.scratch.write(part, x_NTC)
                if coarse is not None:
                    ahead = x_NTC + following[0].unit(0).position(at.side)
                    pooled[part] = pool(ahead, at, self.layout.ratio, part=part)
            else:
                self._read_out(part, x_NTC)
            self.step("attend", len(x_NTC))
        return Attended(parts=parts, pooled=pooled)

    def reading(self) -> FineReading:
        """Return what was read after the last block."""
        return FineReading(
            cells=self._cells, total=self._total, count=self._count, gated=self._gated
        )

    def tokens_of_tile(self, tile: MacroTile, pixels: Pixels) -> torch.Tensor:
        """Encode the windows of one macro-tile, and leave out what was not observed.

        `pixels`: what the tile says to read, and what is known of it. Returns: Tokens `(n, T, C)`,
        zero where invalid.
        """
        windows = torch.from_numpy(tile.windows).to(self.device)
        if pixels[1] is not None:
            missing, lost = self._missing(tile, pixels[1])
            self._leave_out(windows, missing, lost)
        return self._observed(windows, self._encoded(tile, pixels[0]))

    def _encoded(self, tile: MacroTile, pixels: NDArray[np.uint8]) -> torch.Tensor:
        image = torch.from_numpy(pixels[None])
        if self.device.type == "cuda":
            image = image.pin_memory().to(self.device, non_blocking=True)
        x_BCYX = self.model.normalize(image).to(self.dtype)
        tokens = self.model.encoder.stem.part(x_BCYX, tile.want, self.image_shape)[0]
        return self._cut(tile, tokens)

    def _cut(self, tile: MacroTile, tokens: torch.Tensor) -> torch.Tensor:
        """Cut the tokens of a tile `(C, rows, cols)` into its windows `(n, T, C)`."""
        at, area, m = self.at, tile.area, self.at.side
        tokens = pad_map(
            tokens, rows=area.rows * m - tokens.shape[1], cols=area.cols * m - tokens.shape[2]
        )
        cut = tokens.reshape(-1, area.rows, m, area.cols, m).permute(1, 3, 2, 4, 0)
        where = at.where[tile.windows]
        rows = torch.from_numpy(where[:, 1] - area.row)
        cols = torch.from_numpy(where[:, 2] - area.col)
        return cut[rows, cols].reshape(len(where), m * m, -1)

    def _missing(
        self, tile: MacroTile, state: NDArray[np.uint8]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tell which tokens of a tile are not observed, and which of these are unreadable.

        `state`: uint8, what is known of the pixels to read. Returns: bool `(n, T)` each.
        """
        wanted = state[relative(tile.want, tile.read).slices]
        side = self.model.config.token_px
        shares = [
            nn.functional.avg_pool2d(
                torch.from_numpy(wanted == n)[None].float(), side, ceil_mode=True
            )
            for n in (OBSERVED, UNREADABLE)
        ]
        of_token = torch.from_numpy(
            majority(*(share.permute(1, 2, 0).numpy() for share in shares))
        ).to(self.device)
        cut = self._cut(tile, of_token[None])[..., 0]
        return cut != OBSERVED, cut == UNREADABLE

    def _leave_out(self, windows: torch.Tensor, missing: torch.Tensor, lost: torch.Tensor) -> None:
        if missing.any():
            here = windows.to(self.device)
            self.unreadable[here] = lost & self.at.valid[here]
            self.at.valid[here] &= ~missing
            self.at = replace(self.at, is_full=False)

    def _observed(self, part: slice | torch.Tensor, x_NTC: torch.Tensor) -> torch.Tensor:
        """Set the tokens that do not exist to zero."""
        if self.at.is_full:
            return x_NTC
        return torch.where(self.at.valid[part][..., None], x_NTC, 0)

    def _marked(self, windows: torch.Tensor, x_NTC: torch.Tensor) -> torch.Tensor:
        """Mark the tokens to store that were not observed: NaN, or infinity if unreadable."""
        if self.at.is_full:
            return x_NTC
        here = windows.to(self.device)
        x_NTC = x_NTC.masked_fill(~self.at.valid[here][..., None], torch.nan)
        return x_NTC.masked_fill(self.unreadable[here][..., None], torch.inf)

    def _take_in(self, windows: torch.Tensor, x_NTC: torch.Tensor, out: Pooled) -> None:
        """Give the tokens of windows to the scale above, or read them if nothing follows."""
        at, here = self.at, windows.to(self.device)
        if self.model.familiarity is not None:
            judged = self.model.familiarity.of_windows(x_NTC, at.valid[here], at.side)
            out.familiar[windows] = judged
        if not self.blocks:
            self._read_out(here, x_NTC)
        elif at.part_side:
            position = self.blocks[0].unit(0).position(at.side)
            out.raw[here] = pool(x_NTC, at, self.layout.ratio, part=here)
            out.placed[here] = pool(x_NTC + position, at, self.layout.ratio, part=here)
        if self.preview is not None and self.blocks:
            self._preview_alone(here, x_NTC)
        self.step("encode", len(windows))

    def _preview_alone(self, windows: torch.Tensor, x_NTC: torch.Tensor) -> None:
        """Show windows as if each were a whole image."""
        assert self.preview is not None
        alone = replace(self.at, parents=())
        for start in range(0, len(windows), self.batch):
            part = windows[start : start + self.batch]
            x = x_NTC[start : start + self.batch]
            for block in self.blocks:
                x = block.down(0, x + block.unit(0).position(alone.side), alone, [], (), part=part)
            self.preview(part.cpu(), mean_cells(self._sum_cells(part, x)))

    def _read_out(self, part: slice | torch.Tensor, x_NTC: torch.Tensor) -> None:
        cells = self._sum_cells(part, x_NTC)
        self._cells[part] = cells
        valid = self.at.valid[part]
        if self.model.pool is not None:
            heads = (self.model.pool.gate, self.model.head)
            read = torch.cat([head.read(0, x_NTC) for head in heads], dim=-1).float()
            read = torch.where(valid[..., None], read, 0)
            self._gated[part] = sum_cells(read, self.at.side, CELL_TOKENS).cpu()
        elif self.reaches_end:
            norm = self.model.encoder.readout_norm
            total = torch.where(valid[..., None], norm(x_NTC).float(), 0).sum(dim=(0, 1))
            self._total += total.cpu()
            self._count += int(valid.sum())
        if self.preview is not None:
            places = torch.arange(self.at.n_windows)[part]
            self.preview(places, mean_cells(cells))

    def _sum_cells(self, part: slice | torch.Tensor, x_NTC: torch.Tensor) -> torch.Tensor:
        """Sum the reading of windows over their cells: `(n, K + 2, cells, cells)`."""
        at = self.at
        read = self.model.head.read(0, x_NTC).float()
        valid = at.valid[part][..., None]
        lost = self.unreadable[part][..., None].float()
        both = torch.cat([torch.where(valid, read, 0), valid.float(), lost], dim=-1)
        return sum_cells(both, at.side, self.cell_tokens).cpu()

    def _empty(self, *shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.device)


class LearningWindows(FineWindows):
    """Fine windows that keep a gradient; takes what `FineWindows` takes.

    Every window keeps what its gradient needs, but for the maps of the stem: those are computed
    again, a macro-tile at a time.
    """

    learns = True

    def _encoded(self, tile: MacroTile, pixels: NDArray[np.uint8]) -> torch.Tensor:
        return checkpoint(super()._encoded, tile, pixels, use_reentrant=False)


def sum_cells(x_NTC: torch.Tensor, side: int, cell_tokens: int) -> torch.Tensor:
    """Sum tokens of windows over cells: `(N, C, cells, cells)`."""
    x_NCYX = x_NTC.view(len(x_NTC), side, side, -1).permute(0, 3, 1, 2)
    return nn.functional.avg_pool2d(x_NCYX, cell_tokens, ceil_mode=True, divisor_override=1)


def mean_cells(summed: torch.Tensor) -> torch.Tensor:
    """Turn sums per cell into means.

    `summed`: `(n, K + 2, rows, cols)`, counts last. Returns: `(n, K, rows, cols)`; NaN where no
    token is valid.
    """
    return summed[:, :-2] / summed[:, -2:-1]


def fine_blocks(model: Model, layout: Layout) -> list[MsaBlock]:
    """Return the blocks that have the finest scale."""
    n_scales = len(layout.scales)
    stages = model.encoder.blocks(n_scales)
    return list(itertools.chain.from_iterable(stages if n_scales == 1 else stages[:1]))


def later_blocks(model: Model, layout: Layout) -> list[list[MsaBlock]]:
    """Return the blocks of the stages without the finest scale."""
    n_scales = len(layout.scales)
    return [] if n_scales == 1 else model.encoder.blocks(n_scales)[1:]
