"""The contract of a stem: pixels to one token per `stride_px` x `stride_px`."""

# B images, C channels, Y rows, X columns

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Self

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from atlas_wsi.grid import Box

if TYPE_CHECKING:
    import torch


class Stem(nn.Module, ABC):
    """Pixels to tokens, exact for any part of an image."""

    stride_px: int
    """Working pixels per token along one side."""
    dim: int
    """Channels of a token."""
    floats_per_pixel: float
    """Peak number of values in its maps per pixel; memory is planned by it."""

    def forward(self, x_BCYX: torch.Tensor) -> torch.Tensor:
        """Return the tokens ``(B, dim, ceil(Y / stride_px), ceil(X / stride_px))`` of images."""
        rows, cols = x_BCYX.shape[-2:]
        return self.part(x_BCYX, Box(row=0, col=0, rows=rows, cols=cols), (rows, cols))

    @abstractmethod
    def reach(self, want: Box, image: tuple[int, int]) -> Box:
        """Return the pixels that tokens depend on; they begin at a multiple of `stride_px`."""

    @abstractmethod
    def part(self, x_BCYX: torch.Tensor, want: Box, image: tuple[int, int]) -> torch.Tensor:
        """Encode a region exactly as it would be encoded in the whole image.

        `x_BCYX`: The pixels of ``reach(want, image)``. Returns: Tokens ``(B, dim, rows, cols)`` of
        the part of `want` inside the image.
        """

    def fold_(self) -> Self:
        """Prepare for inference in place; the outputs stay the same to rounding."""
        return self


def fold_norms(root: nn.Module, **norm_of: str) -> None:
    """Fold batch norms into the convolutions before them, by their names in a module."""
    for module in root.modules():
        for name, after in norm_of.items():
            conv, norm = getattr(module, name, None), getattr(module, after, None)
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, name, fuse_conv_bn_eval(conv, norm))
                setattr(module, after, nn.Identity())


def grow(box: Box, by: int) -> Box:
    """Return a box with a margin."""
    return Box(row=box.row - by, col=box.col - by, rows=box.rows + 2 * by, cols=box.cols + 2 * by)


def times(box: Box, by: int) -> Box:
    """Return a box of cells in the parts of a cell, `by` along each side."""
    return Box(row=box.row * by, col=box.col * by, rows=box.rows * by, cols=box.cols * by)


def tokens_of(pixels: Box, *, stride: int) -> Box:
    """Return the tokens that pixels are in."""
    row, col = pixels.row // stride, pixels.col // stride
    return Box(
        row=row,
        col=col,
        rows=-(-pixels.row_end // stride) - row,
        cols=-(-pixels.col_end // stride) - col,
    )


def crop(x_BCYX: torch.Tensor, want: Box, have: Box) -> torch.Tensor:
    """Cut a box out of a map."""
    top, left = want.row - have.row, want.col - have.col
    return x_BCYX[..., top : top + want.rows, left : left + want.cols]
