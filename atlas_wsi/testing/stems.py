"""The contract of a stem, and a small stem that is not ours: patches of 14 pixels."""

# B images, C channels, Y rows, X columns

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from atlas_wsi.grid import Box
from atlas_wsi.models.stems.base import Stem, crop, grow, tokens_of

if TYPE_CHECKING:
    from atlas_wsi.models.atlas import AtlasConfig

_SHAPES = ((1, 1), (97, 130), (256, 224), (301, 415))


class PatchStem(Stem):
    """Patches of `stride_px` pixels, each mixed with its eight neighbors."""

    def __init__(self, dim: int, *, stride_px: int = 14, in_channels: int = 3) -> None:
        super().__init__()
        self.stride_px, self.dim = stride_px, dim
        self.embed = nn.Conv2d(in_channels, dim, stride_px, stride=stride_px)
        self.mix = nn.Conv2d(dim, dim, 3, padding=1)
        self.floats_per_pixel = 2 * dim / stride_px**2

    def forward(self, x_BCYX: torch.Tensor) -> torch.Tensor:
        """Return tokens; the last patches are filled up with zeros."""
        rows, cols = x_BCYX.shape[-2:]
        filled = nn.functional.pad(x_BCYX, (0, -cols % self.stride_px, 0, -rows % self.stride_px))
        patches = self.embed(filled)
        return patches + torch.tanh(self.mix(patches))

    def reach(self, want: Box, image: tuple[int, int]) -> Box:
        """Return the patches of a region and those around it."""
        return grow(want, self.stride_px).clip(image)

    def part(self, x_BCYX: torch.Tensor, want: Box, image: tuple[int, int]) -> torch.Tensor:
        """Return the tokens of a region."""
        read = tokens_of(self.reach(want, image), stride=self.stride_px)
        return crop(self(x_BCYX), tokens_of(want.clip(image), stride=self.stride_px), read)


def make_patch_stem(config: AtlasConfig) -> PatchStem:
    """Make the stem of a configuration: an entry point of the group ``atlas_wsi.stems``."""
    return PatchStem(config.dim, stride_px=config.token_px, in_channels=config.in_channels)


class StemTests:
    """What every stem does; a subclass has a fixture `stem`, in evaluation mode.

    `window_px` is the side of the windows that a slide is cut into.
    """

    window_px = 64

    @pytest.mark.parametrize("shape", _SHAPES)
    @torch.no_grad()
    def test_there_is_a_token_per_stride(self, stem: Stem, shape: tuple[int, int]) -> None:
        tokens = stem(torch.randn(2, 3, *shape))
        expected = [-(-n // stem.stride_px) for n in shape]
        assert tokens.shape == (2, stem.dim, *expected)
        assert stem.floats_per_pixel > 0

    @pytest.mark.parametrize("shape", _SHAPES)
    @torch.no_grad()
    def test_a_part_is_encoded_as_in_the_whole_image(
        self, stem: Stem, shape: tuple[int, int]
    ) -> None:
        image = torch.randn(1, 3, *shape, generator=torch.Generator().manual_seed(0))
        whole = stem(image)
        rng = np.random.default_rng(0)
        n_rows, n_cols = (-(-n // self.window_px) for n in shape)
        for _ in range(6):
            row, col = int(rng.integers(n_rows)), int(rng.integers(n_cols))
            want = Box(
                row=row * self.window_px,
                col=col * self.window_px,
                rows=int(rng.integers(1, n_rows - row + 1)) * self.window_px,
                cols=int(rng.integers(1, n_cols - col + 1)) * self.window_px,
            )
            read = stem.reach(want, shape)
            assert read == read.clip(shape)
            assert read.row % stem.stride_px == read.col % stem.stride_px == 0
            pixels = image[..., read.row : read.row_end, read.col : read.col_end]
            tokens = tokens_of(want.clip(shape), stride=stem.stride_px)
            expected = crop(whole, tokens, Box(row=0, col=0, rows=1, cols=1))
            torch.testing.assert_close(
                stem.part(pixels, want, shape), expected, atol=1e-4, rtol=1e-4
            )

    @torch.no_grad()
    def test_folding_for_inference_keeps_the_tokens(self, stem: Stem) -> None:
        image = torch.randn(1, 3, 130, 97)
        folded = copy.deepcopy(stem).fold_()
        torch.testing.assert_close(folded(image), stem(image), atol=1e-4, rtol=1e-4)

    @torch.no_grad()
    def test_the_same_pixels_give_the_same_tokens(self, stem: Stem) -> None:
        image = torch.randn(1, 3, 130, 97)
        assert torch.equal(stem(image), stem(image))

    @torch.no_grad()
    def test_stored_weights_load_strictly_and_give_the_same_tokens(self, stem: Stem) -> None:
        image, again = torch.randn(1, 3, 130, 97), copy.deepcopy(stem)
        for parameter in again.parameters():
            parameter.normal_()
        again.load_state_dict(load(save(stem.state_dict())), strict=True)
        assert torch.equal(again(image), stem(image))
