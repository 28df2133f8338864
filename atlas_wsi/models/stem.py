"""The convolution stem: pixels to one token every 16 x 16 pixels.

Source: arXiv 2503.12355 (Atlas) and its published implementation.
"""

# B images, C channels, Y rows, X columns

from __future__ import annotations

import torch
from torch import nn

STRIDE_PX = 16
"""Working pixels a token along one side."""

HALO_PX = 96
"""Pixels around a region that make its tokens exact: the receptive radius (87) in whole tokens."""


class ResidualBlock(nn.Module):
    """``x + BN(conv(GELU(BN(conv(x)))))`` with 3x3 convolutions.

    Parameters
    ----------
    channels
        Channels in and out.
    """

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
    """LayerNorm over channels, then a 3x3 convolution of stride 2 that doubles the channels.

    Parameters
    ----------
    channels
        Channels in; twice as many come out.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.conv = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=False)

    def forward(self, x_BCYX: torch.Tensor) -> torch.Tensor:
        """Return a map with half the rows and columns, rounded up."""
        x_BYXC = self.norm(x_BCYX.permute(0, 2, 3, 1))
        return self.conv(x_BYXC.permute(0, 3, 1, 2))


class Stem(nn.Module):
    """Pixels to tokens at stride 16.

    Parameters
    ----------
    features
        Channels after the second convolution; ``4 * features`` come out.
    in_channels
        Channels of the image.
    """

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

    def forward(self, x_BCYX: torch.Tensor) -> torch.Tensor:
        """Return tokens ``(B, 4 * features, ceil(Y / 16), ceil(X / 16))``."""
        x_BCYX = torch.relu(self.bn1(self.conv1(x_BCYX)))
        x_BCYX = torch.relu(self.bn2(self.conv2(x_BCYX)))
        return self.down2(self.stage2(self.down1(self.stage1(x_BCYX))))
