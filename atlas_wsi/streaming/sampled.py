"""One slide of a training step: the streamed pass with a gradient through some of its windows.

The coarse scales keep their gradient whole; they are 1/16 of the tokens. Of the finest scale only
a sample of windows does, so that the memory of a step is that of the sample. The other windows
are computed as in prediction: what they give to the coarse scales counts as constant, but for the
residual path, through which a coarse token's own gradient goes on.
"""

# N windows, T tokens per window, P tokens of the next scale over a window, C channels

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from atlas_wsi.streaming.fine_windows import (
    Attended,
    FineReading,
    FineWindows,
    LearningWindows,
    Pooled,
    fine_blocks,
)
from atlas_wsi.streaming.forward import StreamedPass
from atlas_wsi.streaming.prefetch import prefetch
from atlas_wsi.streaming.shard import macro_tiles
from atlas_wsi.streaming.token_store import FileTokens, RamTokens

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from atlas_wsi.grid import Box
    from atlas_wsi.models.layout import Layout, ScaleLayout
    from atlas_wsi.models.model import Model
    from atlas_wsi.streaming.fine_windows import Pixels
    from atlas_wsi.streaming.forward import SlideLogits
    from atlas_wsi.streaming.plan import MemoryPlan
    from atlas_wsi.streaming.token_store import TokenStore

CELL_TOKENS = 4
"""Fine tokens along the side of the cells that training sees."""


def sampled_logits(
    model: Model,
    layout: Layout,
    read: Callable[[Box], Pixels],
    shape: tuple[int, int],
    plan: MemoryPlan,
    *,
    sampled: NDArray[np.int64],
    cell_tokens: int = CELL_TOKENS,
    tokens: TokenStore | None = None,
    is_filled: bool = False,
    step: Callable[[str, int], None],
) -> SlideLogits:
    """Read a whole slide with a gradient through some of its windows.

    `read`: Reads working pixels and what is known of them; called in threads. `tokens`: Keeps the
    stem's tokens of all windows for the next call. `is_filled`: Whether it holds them; no pixel is
    read then, and the stem gets no gradient.
    """
    at, n_blocks = layout.scales[0], len(fine_blocks(model, layout))
    rest = np.setdiff1d(np.arange(at.n_windows), sampled)
    stores: list[TokenStore] = []

    def new_store() -> TokenStore:
        make = RamTokens if plan.tokens_in_ram else FileTokens
        n = len(rest) if n_blocks else 0
        stores.append(make((n, at.side**2, model.config.dim), dtype=torch.float32))
        return stores[-1]

    def windows(
        kind: type[FineWindows],
        members: NDArray[np.int64],
        store: TokenStore,
        scratch: TokenStore | None = None,
        *,
        is_stored: bool = False,
    ) -> FineWindows:
        mine = layout.share(members)
        tiles = [] if is_stored else macro_tiles(model, mine, shape, plan.macro_side)
        return kind(
            model,
            mine,
            prefetch(lambda tile: read(tile.read), tiles),
            store=store,
            scratch=scratch,
            image_shape=shape,
            batch=plan.batch,
            cell_tokens=cell_tokens,
            step=step,
            stored=torch.arange(len(members)) if is_stored else None,
        )

    try:
        held = None
        if len(rest):
            store = new_store() if tokens is None else _Some(tokens, rest)
            scratch = new_store() if tokens is not None and n_blocks > 1 else None
            held = windows(FineWindows, rest, store, scratch, is_stored=is_filled)
        learned = _Learned(len(sampled))
        first = learned if tokens is None or not is_filled else _Some(tokens, sampled)
        learning = windows(LearningWindows, sampled, first, learned, is_stored=is_filled)
        both = _Both(held, learning, rest, sampled, at)
        share = (np.arange(at.n_windows), both)
        logits = StreamedPass(model, layout, [share], batch=plan.batch).logits(
            cell_tokens=cell_tokens
        )
        if tokens is not None and not is_filled:
            tokens.write(torch.from_numpy(sampled), learned.first)
        return logits
    finally:
        for one in stores:
            one.close()


class _Both:
    """The windows that are held constant and those that are learned from, as one share."""

    def __init__(
        self,
        held: FineWindows | None,
        learning: FineWindows,
        rest: NDArray[np.int64],
        sampled: NDArray[np.int64],
        at: ScaleLayout,
    ) -> None:
        self.held, self.learning = held, learning
        self.order = torch.from_numpy(np.argsort(np.concatenate([rest, sampled])))
        self.up = at.up[torch.from_numpy(rest)]

    def encode(self) -> Pooled:
        learned = self.learning.encode()
        if self.held is None:
            return learned
        given = self.held.encode()
        return Pooled(
            raw=self._merge(given.raw, learned.raw),
            placed=self._merge(given.placed, learned.placed),
            valid=self._merge(given.valid, learned.valid),
            familiar=self._merge(given.familiar, learned.familiar),
        )

    def attend(
        self,
        number: int,
        coarse: torch.Tensor | None,
        kv: Sequence[torch.Tensor],
        valid: Sequence[torch.Tensor],
    ) -> Attended:
        learned = self.learning.attend(number, coarse, kv, valid)
        if self.held is None:
            return learned
        given = self.held.attend(number, coarse, kv, valid)
        parts = given.parts.clone()
        if coarse is not None:
            flat = coarse.flatten(0, 1)
            above = torch.cat([flat, torch.zeros_like(flat[:1])])[self.up.to(flat.device)]
            parts = parts + (above - above.detach())
        return Attended(
            parts=self._merge(parts, learned.parts),
            pooled=self._merge(given.pooled, learned.pooled)
            if len(learned.pooled)
            else learned.pooled,
        )

    def reading(self) -> FineReading:
        learned = self.learning.reading()
        if self.held is None:
            return learned
        given = self.held.reading()
        return FineReading(
            cells=self._merge(given.cells, learned.cells),
            total=given.total + learned.total,
            count=given.count + learned.count,
            gated=self._merge(given.gated, learned.gated),
        )

    def _merge(self, held: torch.Tensor, learned: torch.Tensor) -> torch.Tensor:
        # a tensor of inference mode cannot take part in a gradient, its copy can
        return torch.cat([held.clone(), learned])[self.order.to(learned.device)]


class _Learned:
    """Tokens with their gradient, of a run over all windows at a time."""

    def __init__(self, n_windows: int) -> None:
        self._places = torch.arange(n_windows)
        self._written: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._tokens = torch.empty(0)
        self.first = torch.empty(0)

    def read(self, windows: slice | torch.Tensor) -> torch.Tensor:
        if sum(len(places) for places, _ in self._written) == len(self._places):
            order = torch.cat([places for places, _ in self._written]).argsort()
            tokens = torch.cat([x_NTC for _, x_NTC in self._written])
            self._tokens = tokens[order.to(tokens.device)]
            self._written.clear()
            if not len(self.first):
                self.first = self._tokens.detach()
        return self._tokens[windows]

    def write(self, windows: slice | torch.Tensor, x_NTC: torch.Tensor) -> None:
        self._written.append((self._places[windows], x_NTC))

    def close(self) -> None:
        self._tokens = self.first = torch.empty(0)


class _Some:
    """Some of the windows of a store, as a store of their own."""

    def __init__(self, whole: TokenStore, places: NDArray[np.int64]) -> None:
        self._whole, self._places = whole, torch.from_numpy(places)

    def read(self, windows: slice | torch.Tensor) -> torch.Tensor:
        return self._whole.read(self._places[windows])

    def write(self, windows: slice | torch.Tensor, x_NTC: torch.Tensor) -> None:
        self._whole.write(self._places[windows], x_NTC)

    def close(self) -> None:
        """Do nothing; the whole store is closed by who made it."""
