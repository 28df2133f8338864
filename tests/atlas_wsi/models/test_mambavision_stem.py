"""How far the tokens of a MambaVision see: the halo of its convolutions is enough, and not idle."""

from __future__ import annotations

import pytest
import torch

from atlas_wsi.grid import Box
from atlas_wsi.models.mambavision import MambaVisionConfig
from atlas_wsi.models.stems.mambavision_tokens import MambaVisionStem

WINDOW_PX = 14 * 16
SIZE_PX = 4 * WINDOW_PX


def make_stem(last_level, depths=(1, 2, 2, 2)):
    torch.manual_seed(0)
    config = MambaVisionConfig(
        depths=depths, num_heads=(1, 1, 2, 2), dim=8, in_dim=4, mlp_ratio=2, num_classes=3
    )
    stem = MambaVisionStem(config, last_level=last_level).double().eval()
    for module in stem.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
    return stem


@pytest.mark.parametrize("last_level", [2, 3])
@torch.no_grad()
def test_pixels_past_the_reach_change_nothing(last_level):
    stem = make_stem(last_level)
    want = Box(row=WINDOW_PX * 2, col=WINDOW_PX * 2, rows=WINDOW_PX, cols=WINDOW_PX)
    reach = stem.reach(want, (SIZE_PX, SIZE_PX))
    x = torch.randn(1, 3, SIZE_PX, SIZE_PX, dtype=torch.float64)
    inside = torch.zeros(SIZE_PX, SIZE_PX, dtype=torch.bool)
    inside[reach.row : reach.row_end, reach.col : reach.col_end] = True
    assert not inside.all()
    y = torch.where(inside, x, x + 1)
    tokens = slice(want.row // 16, want.row_end // 16)
    torch.testing.assert_close(
        stem(x)[:, :, tokens, tokens], stem(y)[:, :, tokens, tokens], atol=1e-12, rtol=0
    )


@torch.no_grad()
def test_the_halo_of_the_convolutions_is_tight():
    stem = make_stem(2)
    first, second = stem.config.depths[:2]
    radius = 1 + 2 + (2 * first + 1) * 4 + (2 * second + 1) * 8
    assert radius <= stem.halo_px < radius + 16
    x = torch.randn(1, 3, SIZE_PX, SIZE_PX, dtype=torch.float64)
    before = stem(x)
    row = 2 * WINDOW_PX  # the first row of a row of windows
    last = row - radius  # the farthest pixel above that its convolutions see
    for pixel, is_seen in ((last, True), (last - 1, False)):
        y = x.clone()
        y[:, :, pixel] += 100
        changed = (stem(y) - before)[:, :, row // 16 : row // 16 + 14].abs().max()
        assert bool(changed > 1e-9) == is_seen
