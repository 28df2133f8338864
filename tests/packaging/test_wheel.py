"""The wheel holds what the tree holds."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "atlas_wsi": ROOT / "atlas_wsi",
    "atlas_kernels": ROOT / "kernels" / "atlas_kernels",
    "napari_atlas_wsi": ROOT / "plugins" / "napari" / "napari_atlas_wsi",
}


def test_every_file_of_the_packages_is_in_the_wheel(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        f"{name}/{path.relative_to(folder).as_posix()}"
        for name, folder in PACKAGES.items()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert expected
    assert expected <= held
    strangers = {name for name in held - expected if ".dist-info/" not in name}
    assert not strangers
