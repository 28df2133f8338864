"""The convolution stem of Atlas (arXiv 2503.12355): pixels to one token every 16 x 16."""

# B images, C channels, Y rows, X columns

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import torch
from torch import nn

from atlas_wsi.models.stems.base import Stem, crop, fold_norms, grow, tokens_of

if TYPE_CHECKING:
    from atlas_wsi.grid import Box

HALO_PX = 96
"""Pixels around a region that make its tokens exact: the receptive radius (87) in whole tokens."""


class ResidualBlock(nn.Module):
    """``x + BN(conv(GELU(BN(conv(x)))))`` with 3x3 convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x_BCYX: torch.Tensor) -> torch.Tensor:
        """Return a map of the same shape."""
        y_BCYX = nn.functional.gelu(self.bn1(self.conv1(x_BCYX)))
        return x_BCYX + self.bn2(self.conv2(y_BCYX))


class Downsample(nn.Module):
    """LayerNorm over channels, then a 3x3 convolution of stride 2 that doubles the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.conv = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=False)

    def forward(self, x_BCYX: torch.Tensor) -> torch.Tensor:
        """Return a map with half the rows and columns, rounded up."""
        x_BYXC = self.norm(x_BCYX.permute(0, 2, 3, 1))
        return self.conv(x_BYXC.permute(0, 3, 1, 2))


class ConvolutionStem(Stem):
    """Pixels to tokens at stride 16."""

    stride_px = 16

    def __init__(self, features: int, *, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64, eps=1e-4)
        self.conv2 = nn.Conv2d(64, features, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(features, eps=1e-4)
        self.stage1 = nn.Sequential(*(ResidualBlock(features) for _ in range(3)))
        self.down1 = Downsample(features)
        self.stage2 = nn.Sequential(*(ResidualBlock(2 * features) for _ in range(3)))
        self.down2 = Downsample(2 * features)
        # the widest maps: 64 channels at stride 2, `features` at stride 4, a few at once
        self.dim = 4 * features
        self.floats_per_pixel = 64 / 4 + 4 * features / 16

    def forward(self, x_BCYX: torch.Tensor) -> torch.Tensor:
        """Return tokens ``(B, 4 * features, ceil(Y / 16), ceil(X / 16))``."""
        x_BCYX = torch.relu_(self.bn1(self.conv1(x_BCYX)))
        x_BCYX = torch.relu_(self.bn2(self.conv2(x_BCYX)))
        return self.down2(self.stage2(self.down1(self.stage1(x_BCYX))))

    def reach(self, want: Box, image: tuple[int, int]) -> Box:
        """Return the pixels that the tokens of a region depend on."""
        return grow(want, HALO_PX).clip(image)

    def part(self, x_BCYX: torch.Tensor, want: Box, image: tuple[int, int]) -> torch.Tensor:
        """Encode a region exactly as it would be encoded in the whole image."""
        read = self.reach(want, image)
        inside, have = (tokens_of(box, stride=self.stride_px) for box in (want.clip(image), read))
        return crop(self(x_BCYX), inside, have)

    def fold_(self) -> Self:
        """Fold batch norms into the convolutions before them, in place; for inference only."""
        fold_norms(self, conv1="bn1", conv2="bn2")
        return self.to(memory_format=torch.channels_last)
