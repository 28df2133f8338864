"""Print the lowest versions that pyproject.toml declares, as constraints for pip.

    python scripts/lowest.py > lowest.txt

torch and triton are omitted: each of their releases is gigabytes.
"""

from __future__ import annotations

import tomllib
from itertools import chain
from pathlib import Path

from packaging.requirements import Requirement

HEAVY = {"torch", "triton"}


def main() -> None:
    """Print them."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    for line in chain(project["dependencies"], *extras):
        asked = Requirement(line)
        lowest = [bound.version for bound in asked.specifier if bound.operator == ">="]
        if lowest and asked.name not in HEAVY:
            print(f"{asked.name}=={lowest[0]}")


if __name__ == "__main__":
    main()
