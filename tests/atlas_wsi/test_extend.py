"""A package outside atlas-wsi adds a slide format."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

FORMAT = '''
"""Slides in files of numpy."""

import numpy as np

from atlas_wsi.errors import UnreadableSlideError, UnsupportedFormatError
from atlas_wsi.slides.backend import Backend, Level, SlideMeta
from atlas_wsi.slides.registry import SlideFormat


class NumpyBackend(Backend):
    """One array, mapped into memory."""

    def __init__(self, path):
        self._pixels = np.load(path, mmap_mode="r")
        rows, cols, channels = self._pixels.shape
        side = min(256, rows), min(256, cols)
        self._meta = SlideMeta(
            format="npy",
            backend="numpy",
            levels=(Level(shape=(rows, cols), downsample=(1.0, 1.0), tile=side),),
            n_channels=channels,
            dtype=str(self._pixels.dtype),
            channel_names=("red", "green", "blue"),
            background=(255.0, 255.0, 255.0),
        )

    @property
    def meta(self):
        return self._meta

    def read_block(self, level, box):
        return np.array(self._pixels[box.slices])


def open_numpy(path):
    """Open a file of numpy."""
    try:
        return NumpyBackend(path)
    except ValueError as error:
        raise UnsupportedFormatError(f"{path} is no file of numpy.") from error


NUMPY = SlideFormat(
    name="npy",
    title="arrays of numpy",
    suffixes=(".npy",),
    recognizes=lambda source: source.head.startswith(b"\\x93NUMPY"),
    open=lambda source: open_numpy(source.local),
)
'''

TESTS = """
import numpy as np
import pytest

from atlas_numpy import open_numpy
from atlas_wsi.testing import BackendTests


class TestNumpy(BackendTests):
    open_file = open_numpy

    @pytest.fixture
    def path(self, tmp_path):
        path = tmp_path / "pixels.npy"
        np.save(path, np.random.default_rng(0).integers(0, 255, (500, 700, 3), np.uint8))
        return path
"""

USE = """
import sys

import numpy as np

import atlas_wsi
from atlas_wsi.batch.source import list_slides

np.save(sys.argv[1] + "/slide.npy", np.full((600, 800, 3), 200, np.uint8))
with atlas_wsi.open_slide(sys.argv[1] + "/slide.npy", mpp=0.5) as slide:
    print(slide.meta.format, slide.shape, slide.read_region(10, 10, 4, 4).mean())
print(len(list_slides(sys.argv[1])))
"""


@pytest.mark.slow
def test_an_outside_package_adds_a_slide_format(tmp_path):
    site, work = tmp_path / "site", tmp_path / "work"
    info = site / "atlas_numpy-1.0.dist-info"
    info.mkdir(parents=True)
    work.mkdir()
    (site / "atlas_numpy.py").write_text(FORMAT)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: atlas-numpy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[atlas_wsi.slide_formats]\nnpy = atlas_numpy:NUMPY\n")
    (work / "test_numpy.py").write_text(TESTS)
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path}

    def python(*arguments):
        command = [sys.executable, *arguments]
        done = subprocess.run(
            command, cwd=work, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    folder = tmp_path / "slides"
    folder.mkdir()
    assert python("-c", USE, str(folder)).splitlines() == ["npy (600, 800) 200.0", "1"]
    assert "7 passed" in python("-m", "pytest", "-q", "-p", "no:napari", "test_numpy.py")
