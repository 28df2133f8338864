"""Run the notebooks and store them with their outputs, without messages of the machine."""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def main(names: list[str]) -> None:
    """Run notebooks, all if no names are given."""
    for path in [NOTEBOOKS / n for n in names] or sorted(NOTEBOOKS.glob("*.ipynb")):
        notebook = nbformat.read(path, 4)
        place = {"metadata": {"path": str(NOTEBOOKS)}}
        NotebookClient(notebook, timeout=900, kernel_name="python3", resources=place).execute()
        for cell in notebook.cells:
            cell["metadata"] = {}
            if cell["cell_type"] == "code":
                cell["outputs"] = [o for o in cell["outputs"] if o.get("name") != "stderr"]
        nbformat.write(notebook, path)
        print(path.name, path.stat().st_size // 1024, "KiB")


if __name__ == "__main__":
    main(sys.argv[1:])
