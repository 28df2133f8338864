"""Folders of tiles that cannot be trained on are named before any work."""

from __future__ import annotations

import pytest
from PIL import Image

from atlas_wsi.errors import DatasetError
from atlas_wsi.training.data.tile_folder import read_tiles


def test_a_class_name_too_long_for_a_card_is_named(tmp_path):
    for name in ("a" * 101, "b"):
        (tmp_path / name).mkdir()
        for i in range(2):
            Image.new("RGB", (64, 64)).save(tmp_path / name / f"{i}.png")
    with pytest.raises(DatasetError, match="over 100 characters"):
        read_tiles(tmp_path)
