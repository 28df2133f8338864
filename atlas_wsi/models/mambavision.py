"""MambaVision: convolutions, then selective scans and attention in windows.

Written from the equations of the paper; names of weights are the published ones, so published
checkpoints load as they are. The published weights are under CC-BY-NC-SA-4.0.

Source: arXiv 2407.08083.
"""

# B images, C channels, Y rows, X columns, N windows of all images, T tokens per window

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from atlas_wsi.errors import CheckpointMismatchError
from atlas_wsi.models.checkpoints import load_exactly, read_weights
from atlas_wsi.models.mambavision_blocks import (
    Attention,
    ConvBlock,
    MambaMixer,
    WindowBlock,
    initialize,
)
from atlas_wsi.models.stems.base import fold_norms

if TYPE_CHECKING:
    from collections.abc import Iterator

LICENSE = "CC-BY-NC-SA-4.0"
"""License of the published weights (not of this code)."""

_PREFIXES = re.compile(r"^(?:(?:module|_orig_mod|encoder|model)\.)+")


@dataclass(frozen=True, slots=True, kw_only=True)
class MambaVisionConfig:
    """What a MambaVision is made of; names are those of published configurations."""

    depths: tuple[int, ...] = (1, 3, 8, 4)
    """Blocks per level; levels 0 and 1 are convolutions."""
    num_heads: tuple[int, ...] = (2, 4, 8, 16)
    """Attention heads per level."""
    window_size: tuple[int, ...] = (8, 8, 14, 7)
    """Tokens along a window's side a level; levels 0 and 1 have no windows."""
    dim: int = 80
    """Channels of level 0; each level has twice those before it."""
    in_dim: int = 32
    """Channels after the first convolution."""
    mlp_ratio: float = 4
    """Hidden channels of an MLP per channel."""
    num_classes: int = 1000
    """Classes of the head."""
    in_chans: int = 3
    """Channels of an image."""
    layer_scale: float | None = None
    """Start of the learned weight of residuals in levels 2 and 3; None for no such weight."""
    layer_scale_conv: float | None = None
    """The same in levels 0 and 1."""

    def __post_init__(self) -> None:
        for name in ("depths", "num_heads", "window_size"):
            value = tuple(getattr(self, name))
            object.__setattr__(self, name, value)
            if len(value) != 4:
                raise ValueError(f"{name} needs four numbers, one per level, got {value}")
        for level in (2, 3):
            dim, heads = self.level_dim(level), self.num_heads[level]
            if dim % heads or dim % 2:
                raise ValueError(f"{dim} channels of level {level} do not fit {heads} heads")

    def level_dim(self, level: int) -> int:
        """Return the channels of a level."""
        return self.dim * 2**level


_T = MambaVisionConfig()
_S = MambaVisionConfig(dim=96, in_dim=64, depths=(3, 3, 7, 5))
_B = MambaVisionConfig(dim=128, in_dim=64, depths=(3, 3, 10, 5), layer_scale=1e-5)
_L = replace(_B, dim=196, num_heads=(4, 8, 16, 32))

VARIANTS: dict[str, MambaVisionConfig] = {
    "T": _T,
    "T2": replace(_T, depths=(1, 3, 11, 4)),
    "S": _S,
    "B": _B,
    "L": _L,
    "L2": replace(_L, depths=(3, 3, 12, 5)),
    "L3": replace(_L, dim=256, depths=(3, 3, 20, 10)),
}
"""The published sizes; L2 and L3 have other windows at other resolutions (`window_size`)."""


class Downsample(nn.Module):
    """A 3x3 convolution of stride 2 that doubles the channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Sequential(nn.Conv2d(dim, 2 * dim, 3, stride=2, padding=1, bias=False))

    def forward(self, x_BCYX: torch.Tensor) -> torch.Tensor:
        """Return a map with half the rows and columns, rounded up."""
        return self.reduction(x_BCYX)


class PatchEmbed(nn.Module):
    """Pixels to tokens at stride 4."""

    def __init__(self, in_chans: int, in_dim: int, dim: int) -> None:
        super().__init__()
        self.conv_down = nn.Sequential(
            nn.Conv2d(in_chans, in_dim, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(in_dim, eps=1e-4),
            nn.ReLU(),
            nn.Conv2d(in_dim, dim, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(dim, eps=1e-4),
            nn.ReLU(),
        )

    def forward(self, x_BCYX: torch.Tensor) -> torch.Tensor:
        """Return a map at a quarter of the resolution, rounded up."""
        return self.conv_down(x_BCYX)


class Level(nn.Module):
    """The blocks of one resolution, and the way to the next."""

    def __init__(self, config: MambaVisionConfig, level: int) -> None:
        super().__init__()
        dim, depth = config.level_dim(level), config.depths[level]
        self.window = config.window_size[level] if level >= 2 else 0
        self.blocks = nn.ModuleList()
        for i in range(depth):
            if level < 2:
                self.blocks.append(ConvBlock(dim, config.layer_scale_conv))
                continue
            attends = i >= depth - depth // 2
            mixer = Attention(dim, config.num_heads[level]) if attends else MambaMixer(dim)
            self.blocks.append(
                WindowBlock(dim, mixer, mlp_ratio=config.mlp_ratio, layer_scale=config.layer_scale)
            )
        self.downsample = Downsample(dim) if level < 3 else None

    def forward(self, x_BCYX: torch.Tensor) -> torch.Tensor:
        """Return a map of the same shape, before the way to the next level."""
        if not self.window:
            for block in self.blocks:
                x_BCYX = block(x_BCYX)
            return x_BCYX
        rows, cols = x_BCYX.shape[2:]
        x_NTC, windows = _cut(x_BCYX, self.window)
        for block in self.blocks:
            x_NTC = block(x_NTC)
        return _merge(x_NTC, self.window, windows)[:, :, :rows, :cols]


class MambaVision(nn.Module):
    """Image encoder whose cost grows linearly with the pixels."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__()
        self.config = config = MambaVisionConfig(**kwargs)
        self.patch_embed = PatchEmbed(config.in_chans, config.in_dim, config.dim)
        self.levels = nn.ModuleList(Level(config, level) for level in range(4))
        self.norm: nn.Module = nn.BatchNorm2d(config.level_dim(3), eps=1e-5)
        self.head = nn.Linear(config.level_dim(3), config.num_classes)
        self.apply(initialize)

    @classmethod
    def from_published(
        cls, source: Mapping[str, torch.Tensor] | str | os.PathLike[str], **kwargs: Any
    ) -> MambaVision:
        """Build the model of a published checkpoint, and report its license once."""
        state = source if isinstance(source, Mapping) else read_weights(source)
        name = "MambaVision weights" if isinstance(source, Mapping) else os.fspath(source)
        state = {_PREFIXES.sub("", key): value.float() for key, value in state.items()}
        config = asdict(_find_variant(state, name)) if "dim" not in kwargs else {}
        model = cls(**{**config, **kwargs})
        load_exactly(model, state, source=name)
        _report_license()
        return model.eval()

    def features(self, x_BCYX: torch.Tensor) -> list[torch.Tensor]:
        """Encode images."""
        return list(self._levels(x_BCYX))

    def forward(self, x_BCYX: torch.Tensor) -> torch.Tensor:
        """Return logits `(B, classes)`."""
        *_, last = self._levels(x_BCYX)
        return self.head(self.norm(last).mean(dim=(2, 3)))

    def fold_(self) -> MambaVision:
        """Fold batch norms into the convolutions before them, in place; for inference only."""
        self.eval()
        fold_norms(self, conv1="norm1", conv2="norm2", **{"0": "1", "3": "4"})
        return self.to(memory_format=torch.channels_last)

    def _levels(self, x_BCYX: torch.Tensor) -> Iterator[torch.Tensor]:
        x_BCYX = self.patch_embed(x_BCYX)
        for level in self.levels:
            assert isinstance(level, Level)
            x_BCYX = level(x_BCYX)
            yield x_BCYX
            if level.downsample is not None:
                x_BCYX = level.downsample(x_BCYX)


def make_variant(name: str, **kwargs: Any) -> MambaVision:
    """Make a MambaVision of a published size with random weights."""
    if name not in VARIANTS:
        raise ValueError(f"there is no MambaVision-{name}; there are {', '.join(VARIANTS)}")
    return MambaVision(**{**asdict(VARIANTS[name]), **kwargs})


def _cut(x_BCYX: torch.Tensor, side: int) -> tuple[torch.Tensor, tuple[int, int]]:
    """Cut maps into windows of tokens, zero-padded right and below."""
    b, c, rows, cols = x_BCYX.shape
    wr, wc = -(-rows // side), -(-cols // side)
    x = x_BCYX.permute(0, 2, 3, 1)
    x = functional.pad(x, (0, 0, 0, wc * side - cols, 0, wr * side - rows))
    x = x.view(b, wr, side, wc, side, c).transpose(2, 3)
    return x.reshape(-1, side * side, c), (wr, wc)


def _merge(x_NTC: torch.Tensor, side: int, windows: tuple[int, int]) -> torch.Tensor:
    """Lay windows out as maps, channels last in memory."""
    (wr, wc), c = windows, x_NTC.shape[-1]
    x = x_NTC.view(-1, wr, wc, side, side, c).transpose(2, 3)
    return x.reshape(-1, wr * side, wc * side, c).permute(0, 3, 1, 2)


def _find_variant(state: Mapping[str, torch.Tensor], source: str) -> MambaVisionConfig:
    try:
        dim = len(state["patch_embed.conv_down.3.weight"])
        classes = len(state["head.weight"])
        channels = state["patch_embed.conv_down.0.weight"].shape[1]
    except KeyError as error:
        raise CheckpointMismatchError(
            f"{source}: {error} is missing; is it a MambaVision?"
        ) from error
    blocks = {
        m.groups() for key in state if (m := re.match(r"levels\.(\d+)\.blocks\.(\d+)\.", key))
    }
    depths = tuple(sum(level == str(i) for level, _ in blocks) for i in range(4))
    for config in VARIANTS.values():
        if (config.dim, config.depths) == (dim, depths):
            return replace(config, num_classes=classes, in_chans=channels)
    raise CheckpointMismatchError(
        f"{source}: {dim} channels in {depths} blocks are no published variant.",
        hint="Give depths, num_heads, window_size, dim and in_dim.",
    )


@cache
def _report_license() -> None:
    warnings.warn(
        f"The published MambaVision weights are under {LICENSE}: no commercial use, and what "
        "is made from them is shared alike.",
        stacklevel=3,
    )
