"""Write the table of scenes with label rasters beside them, for `atlas-wsi train regions`.

    python scripts/scene_table.py DATA/sentinel2_india india 10m built-up vegetation water \
        --together s98,s101 --together s44,s53,s80,s85
    python scripts/scene_table.py DATA/dubai_aerial dubai 1m building land road vegetation water
    atlas-wsi train regions india/table.csv --classes india/classes.csv --domain scene ...

FOLDER holds images and, beside each, ``NAME_label.png``: 0 for no label, then the classes in order.
Scenes that overlap are named together: they are one group.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("gsd")
    parser.add_argument("classes", nargs="+")
    parser.add_argument("--together", action="append", default=[])
    args = parser.parse_args()
    group = {n: names.split(",")[0] for names in args.together for n in names.split(",")}
    args.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for label in sorted(args.folder.resolve().glob("*_label.png")):
        name = label.stem.removesuffix("_label")
        image = next(p for p in label.parent.glob(f"{name}.*") if p.suffix != ".json")
        rows.append((image, label, group.get(name, name), args.gsd))
    tables = {
        "table.csv": [("slide", "regions", "group", "gsd"), *rows],
        "classes.csv": [("value", "class"), *enumerate(args.classes, start=1)],
    }
    for name, lines in tables.items():
        with (args.out / name).open("w", newline="") as file:
            csv.writer(file).writerows(lines)


if __name__ == "__main__":
    main()
