"""MambaVision as a stem: convolutions get a halo, scans and attention whole windows."""

# B images, C channels, Y rows, X columns

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Self

import torch
from torch import nn

from atlas_wsi.grid import Box
from atlas_wsi.models.mambavision import Level, MambaVision
from atlas_wsi.models.stems.base import Stem, crop, grow, times, tokens_of

if TYPE_CHECKING:
    from atlas_wsi.models.mambavision import MambaVisionConfig


STRIDE_PX = 16


class MambaVisionStem(Stem):
    """Tokens at stride 16 from a MambaVision."""

    stride_px = STRIDE_PX

    def __init__(self, config: MambaVisionConfig, *, last_level: int) -> None:
        super().__init__()
        self.config = config
        self.last_level = last_level
        self.dim = config.level_dim(last_level)
        self.trunk = MambaVision(**asdict(config))
        self.trunk.norm = nn.Identity()
        del self.trunk.head
        del self.trunk.levels[last_level + 1 :]
        self._level(last_level).downsample = None
        first, second = config.depths[:2]
        # radii of the convolutions at strides 1, 2, 4 and 8, in whole tokens
        radius = 1 + 2 + (2 * first + 1) * 4 + (2 * second + 1) * 8
        self.halo_px = -(-radius // STRIDE_PX) * STRIDE_PX
        # the widest maps at strides 2 and 4, and the activations of the blocks at stride 16
        self.floats_per_pixel = (
            config.in_dim / 4 + 4 * config.dim / 16 + 14 * config.level_dim(2) / STRIDE_PX**2
        )

    def reach(self, want: Box, image: tuple[int, int]) -> Box:
        """Return the pixels that the tokens of a region depend on."""
        level2, _ = self._maps(want, image)
        return grow(times(level2, STRIDE_PX), self.halo_px).clip(image)

    def part(self, x_BCYX: torch.Tensor, want: Box, image: tuple[int, int]) -> torch.Tensor:
        """Encode a region exactly as it would be encoded in the whole image."""
        read = tokens_of(self.reach(want, image), stride=STRIDE_PX)
        level2, level3 = self._maps(want, image)
        inside = tokens_of(want.clip(image), stride=STRIDE_PX)
        x = self.trunk.patch_embed(x_BCYX)
        for i in (0, 1):
            x = self._down(i, self._level(i)(x))
        x = self._level(2)(crop(x, level2, read))
        if level3 is None:
            return crop(x, inside, level2)
        # an even start keeps the stride's phase; at the image's start zero padding acts as there
        x = crop(self._down(2, x), level3, tokens_of(level2, stride=2))
        x = self._level(3)(x).repeat_interleave(2, -2).repeat_interleave(2, -1)
        return crop(x, inside, times(level3, 2))

    def fold_(self) -> Self:
        """Fold batch norms into the convolutions before them, in place; for inference only."""
        self.trunk.fold_()
        return self

    def _level(self, i: int) -> Level:
        level = self.trunk.levels[i]
        assert isinstance(level, Level)
        return level

    def _down(self, i: int, x_BCYX: torch.Tensor) -> torch.Tensor:
        downsample = self._level(i).downsample
        assert downsample is not None
        return downsample(x_BCYX)

    def _maps(self, want: Box, image: tuple[int, int]) -> tuple[Box, Box | None]:
        """Return what is computed of levels 2 and 3, in their own tokens: whole windows."""
        fine = _ceil(image, STRIDE_PX)
        window = self.config.window_size
        inside = want.clip(image)
        if self.last_level == 2:
            return _whole(tokens_of(inside, stride=STRIDE_PX), window[2]).clip(fine), None
        coarse = _ceil(fine, 2)
        level3 = _whole(tokens_of(inside, stride=2 * STRIDE_PX), window[3]).clip(coarse)
        asked = times(level3, 2)
        # one token before, for the convolution between the levels
        before = Box(row=asked.row - 1, col=asked.col - 1, rows=asked.rows + 1, cols=asked.cols + 1)
        return _whole(before.clip(fine), window[2], even=True).clip(fine), level3


def _ceil(shape: tuple[int, int], by: int) -> tuple[int, int]:
    return -(-shape[0] // by), -(-shape[1] // by)


def _whole(box: Box, window: int, *, even: bool = False) -> Box:
    """Grow a box to whole windows; with `even`, it starts at an even token."""
    start = 2 * window if even and window % 2 else window
    row, col = box.row // start * start, box.col // start * start
    end = times(tokens_of(box, stride=window), window)
    return Box(row=row, col=col, rows=end.row_end - row, cols=end.col_end - col)
