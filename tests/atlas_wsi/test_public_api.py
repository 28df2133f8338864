"""What users import is there, and importing it stays cheap."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import atlas_wsi

SLOW = ("torch", "dask", "zarr", "rasterio", "skimage", "matplotlib", "napari")


def test_all_names_resolve():
    for name in atlas_wsi.__all__:
        assert getattr(atlas_wsi, name) is not None


def test_a_star_import_brings_all_names_of_the_stub():
    names = {}
    exec("from atlas_wsi import *", names)
    stub = Path(atlas_wsi.__file__).with_suffix(".pyi").read_text()
    assert names.keys() >= set(re.findall(r"import \w+ as (\w+)", stub)) | {"__version__"}


def test_dir_lists_the_public_names():
    assert set(atlas_wsi.__all__) <= set(dir(atlas_wsi))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'preditc'"):
        _ = atlas_wsi.preditc


@pytest.mark.parametrize(
    "statement",
    ["import atlas_wsi", "import atlas_wsi.cli.app"],
)
def test_imports_do_not_load_slow_packages(statement):
    code = f"import sys; {statement}; print([m for m in {SLOW} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
