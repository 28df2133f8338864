"""Print which part of the cells of tiles is like the images that a model was trained on.

    python scripts/familiar_share.py lung-he 0.9 EBHI_FOLDER

The number is the zoom that brings the tiles to the resolution of the model; FOLDER has a folder
per class.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from atlas_wsi.models import load_model
from atlas_wsi.training.data.tile_folder import read_tiles
from atlas_wsi.training.familiar import cells_of


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("zoom", type=float)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    model, tiles = load_model(args.model), read_tiles(args.folder, zoom=args.zoom)
    assert model.familiarity is not None, f"{args.model} cannot tell"
    near = model.familiarity.distance(cells_of(model, tiles.images, 100))
    share = float((near <= model.familiarity.facts.limit).float().mean())
    print(f"{args.folder.name}: {share:.0%} of the cells of 100 windows")


if __name__ == "__main__":
    main()
