"""What a cell attends to on the coarse scales."""

# N windows, T tokens per window, K keys, C channels, H heads, D channels per head

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from atlas_wsi.grid import Grid
from atlas_wsi.heatmap.heatmap import AttentionMap
from atlas_wsi.streaming.fine_windows import FineWindows, fine_blocks
from atlas_wsi.streaming.shard import macro_tiles
from atlas_wsi.streaming.token_store import RamTokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from atlas_wsi.models.layout import Layout
    from atlas_wsi.models.model import Model
    from atlas_wsi.streaming.working_image import WorkingImage


class CoarseContext:
    """The coarse scales of a predicted slide, as its fine windows saw them.

    The requested window is read and encoded again; its attention is that of the prediction up to
    rounding.
    """

    def __init__(
        self,
        model: Model,
        layout: Layout,
        image: WorkingImage,
        coarse_kv: Sequence[Sequence[torch.Tensor]],
        cell_tokens: int,
    ) -> None:
        self._model, self._layout, self._image = model, layout, image
        self._kv, self._cell_tokens = coarse_kv, cell_tokens

    @torch.inference_mode()
    def attention(self, y: float, x: float) -> list[AttentionMap]:
        """Return what the cell at a position attends to in the last block with the finest scale."""
        at = self._layout.scales[0]
        step = self._image.grid.step_px
        token_px = self._model.config.token_px
        token = (int(y / step[0] // token_px), int(x / step[1] // token_px))
        window = (token[0] // at.side, token[1] // at.side)
        found = np.flatnonzero((at.where[:, 1:] == window).all(axis=1))
        inside = 0 <= token[0] < at.grid[0] and 0 <= token[1] < at.grid[1]
        if not len(found) or not inside or not any(self._kv):
            return []
        layout = self._layout.share(found)
        rows, cols = (
            self._cell(t - w * at.side, at.side) for t, w in zip(token, window, strict=True)
        )
        asked = (rows[:, None] * at.side + cols[None, :]).flatten()
        asked = asked[layout.scales[0].valid[0, asked].cpu()]
        if not len(asked):
            return []
        weights = self._weights(layout, asked)
        return self._lay_out(layout, weights)

    def _cell(self, token: int, side: int) -> torch.Tensor:
        first = token // self._cell_tokens * self._cell_tokens
        return torch.arange(first, min(first + self._cell_tokens, side))

    def _weights(self, layout: Layout, asked: torch.Tensor) -> torch.Tensor:
        """Average the attention of some tokens of one window over all its keys."""
        model, blocks = self._model, fine_blocks(self._model, layout)
        share = FineWindows(
            model,
            layout,
            (),
            store=RamTokens((0, 1, 1), dtype=torch.float32),
            image_shape=self._image.shape,
            batch=1,
            cell_tokens=self._cell_tokens,
            step=lambda *_: None,
        )
        tile = macro_tiles(model, layout, self._image.shape, 1)[0]
        x_NTC = share.tokens_of_tile(tile, self._image.read_masked(tile.read))
        coarser = share.layout.scales[1:]
        for block, kv in zip(blocks[:-1], self._kv[:-1], strict=True):
            x_NTC = x_NTC + block.unit(0).position(share.at.side)
            x_NTC = block.down(0, x_NTC, share.at, kv, coarser)
        unit = blocks[-1].unit(0)
        x_NTC = x_NTC + unit.position(share.at.side)
        parents = share.at.parents
        over = [kv[p] for kv, p in zip(self._kv[-1], parents, strict=True)]
        keys = torch.cat([unit.keys_values(x_NTC), *over], dim=1)[0, :, : x_NTC.shape[2]]
        seen = [c.valid[p][0] for c, p in zip(coarser, parents, strict=True)]
        valid = torch.cat([share.at.valid[0], *seen])
        q = unit.q(unit.norm_q(x_NTC[0, asked.to(x_NTC.device)]))
        q_HTD = q.view(len(q), unit.heads, -1).transpose(0, 1).float()
        k_HKD = keys.view(len(keys), unit.heads, -1).transpose(0, 1).float()
        scores = q_HTD @ k_HKD.mT * q_HTD.shape[-1] ** -0.5
        scores = scores.masked_fill(~valid, -torch.inf)
        return scores.softmax(dim=-1).mean(dim=(0, 1)).cpu()

    def _lay_out(self, layout: Layout, weights: torch.Tensor) -> list[AttentionMap]:
        at = layout.scales[0]
        start, maps = at.side**2, []
        for s, (above, parent) in enumerate(zip(layout.scales[1:], at.parents, strict=True), 1):
            n = above.side**2
            token_px = self._model.config.token_px * layout.ratio**s
            step = (self._image.grid.step_px[0] * token_px, self._image.grid.step_px[1] * token_px)
            _, i, j = above.where[int(parent[0])]
            row, col = int(i) * above.side, int(j) * above.side
            shape = (min(above.side, above.grid[0] - row), min(above.side, above.grid[1] - col))
            side = weights[start : start + n].view(above.side, above.side).numpy()
            maps.append(
                AttentionMap(
                    weights=np.ascontiguousarray(side[: shape[0], : shape[1]]),
                    grid=Grid(shape=shape, step_px=step, origin_px=(row * step[0], col * step[1])),
                )
            )
            start += n
        return maps
