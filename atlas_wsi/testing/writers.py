"""The contract of a format of results, and small results to test it with."""

from __future__ import annotations

import resource
from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from atlas_wsi.errors import DiskFullError, ResultExistsError
from atlas_wsi.grid import Grid
from atlas_wsi.heatmap.heatmap import Heatmap
from atlas_wsi.heatmap.records import ModelUsed, RunRecord, SlideInfo
from atlas_wsi.tissue.mask import TissueMask

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from atlas_wsi.heatmap.formats import Format

COLORS = ("#c83232", "#96c896", "#a05aa0", "#f0c800", "#1f77b4")
CLASSES = ("tumor", "stroma", "immune cells", "necrosis", "mucosa")
_SCENE = {"transform": (10.0, 0.0, 5e5, 0.0, -10.0, 5.4e6), "mpp": (1e7, 1e7)}


def make_heatmap(
    shape: tuple[int, int] = (30, 40),
    *,
    n_classes: int = 3,
    seed: int = 0,
    tissue: float = 0.6,
    winner: NDArray[np.int_] | None = None,
    step: tuple[float, float] = (64.0, 64.0),
    is_scene: bool = False,
    slide_shape: tuple[int, int] | None = None,
    **slide: Any,
) -> Heatmap:
    """Make a result with smooth class regions; `winner` (-1 for glass) gives them exactly."""
    from rasterio.crs import CRS
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    if winner is None:
        field = gaussian_filter(rng.normal(size=(n_classes, *shape)), (0, 3, 3))
        winner = field.argmax(0)
        if tissue < 1:
            glass = gaussian_filter(rng.normal(size=shape), 5)
            winner[glass >= np.quantile(glass, tissue)] = -1
    shape = (winner.shape[0], winner.shape[1])
    logits = 0.5 * rng.normal(size=(n_classes, *shape)) + 4 * (
        np.arange(n_classes)[:, None, None] == winner
    )
    probabilities = np.exp(logits) / np.exp(logits).sum(0)
    probabilities[:, winner < 0] = np.nan
    known = winner >= 0
    if slide_shape is None:  # the last cells reach over the border
        rows, cols = (max(1, round((n - 0.3) * s)) for n, s in zip(shape, step, strict=True))
        slide_shape = (rows, cols)
    place = {"crs": CRS.from_epsg(32633).to_wkt(), **_SCENE} if is_scene else {"mpp": (0.5, 0.5)}
    facts = {"name": "slide-1", "path": "/data/slide-1.svs", "mpp_source": "openslide.mpp-x"}
    return Heatmap(
        probabilities=probabilities.astype(np.float32),
        grid=Grid(shape=shape, step_px=step),
        classes=CLASSES[:n_classes],
        colors=COLORS[:n_classes],
        scores=dict.fromkeys(CLASSES[:n_classes], 1 / n_classes) if known.any() else {},
        tissue=TissueMask(
            mask=known.repeat(2, axis=0).repeat(2, axis=1),
            grid=Grid(shape=(shape[0] * 2, shape[1] * 2), step_px=(step[0] / 2, step[1] / 2)),
            method="brightfield",
        ),
        slide=SlideInfo.model_validate(
            {"shape": slide_shape, "format": "aperio", **facts, **place, **slide}
        ),
        run=RunRecord(
            model=ModelUsed(name="lung-he", version="1", sha256="ab" * 32, reason="only one"),
            mpp_asked=(0.5, 0.5),
            mpp_used=(0.5, 0.5),
            parameters={"cell_px": 64, "precision": "bf16"},
            versions={"atlas-wsi": "0.1.0"},
            wall_s=1.5,
            warnings=("The magnification contradicts the resolution.",),
        ),
    )


@contextmanager
def full_disk(file_bytes: int = 200) -> Iterator[None]:
    """Let no file of this process grow beyond a size, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class WriterTests:
    """What every format of results keeps; a subclass sets `form`."""

    form: Format

    @pytest.fixture
    def heatmap(self) -> Heatmap:
        """Make the result that is written."""
        return make_heatmap()

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        """Name the file in an empty folder."""
        return tmp_path / "out" / f"a{self.form.suffixes[0]}"

    def test_only_the_file_is_written(self, heatmap: Heatmap, path: Path) -> None:
        self.form.write_whole(heatmap, path)
        assert list(path.parent.iterdir()) == [path]

    def test_a_full_disk_leaves_nothing(self, heatmap: Heatmap, path: Path) -> None:
        with full_disk(), pytest.raises(DiskFullError):
            self.form.write_whole(heatmap, path)
        assert list(path.parent.iterdir()) == []

    def test_a_failed_overwrite_keeps_the_file(self, heatmap: Heatmap, path: Path) -> None:
        self.form.write_whole(heatmap, path)
        before = _content(path)
        with full_disk(), pytest.raises(DiskFullError):
            self.form.write_whole(make_heatmap(seed=1), path, overwrite=True)
        assert _content(path) == before
        assert list(path.parent.iterdir()) == [path]

    def test_a_file_is_replaced_only_if_asked_for(self, heatmap: Heatmap, path: Path) -> None:
        self.form.write_whole(heatmap, path)
        before = _content(path)
        with pytest.raises(ResultExistsError):
            self.form.write_whole(make_heatmap(seed=1), path)
        assert _content(path) == before
        self.form.write_whole(make_heatmap(seed=1), path, overwrite=True)
        assert _content(path) != before

    def test_a_foreign_folder_is_never_replaced(self, heatmap: Heatmap, path: Path) -> None:
        path.mkdir(parents=True)
        (path / "thesis.txt").write_text("years of work")
        with pytest.raises(ResultExistsError):
            self.form.write_whole(heatmap, path, overwrite=True)
        assert (path / "thesis.txt").read_text() == "years of work"


class CellWriterTests(WriterTests, ABC):
    """What formats keep that store every cell; a subclass also reads them back."""

    @abstractmethod
    def read_cells(self, path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
        """Read the level-0 `x, y` of the predicted cells' corners, and their probabilities."""

    @pytest.mark.parametrize("step", [(64.0, 64.0), (40.5, 40.5)], ids=["whole", "fractions"])
    def test_cells_are_read_back_where_they_were(
        self, path: Path, step: tuple[float, float]
    ) -> None:
        heatmap = make_heatmap(step=step)
        self.form.write_whole(heatmap, path)
        corners, probabilities = self.read_cells(path)
        rows, cols = np.nonzero(heatmap.argmax() >= 0)
        expected = np.column_stack([cols * step[1], rows * step[0]])
        np.testing.assert_allclose(corners, expected, atol=0.5 + 1e-3)  # some store whole pixels
        kept = heatmap.probabilities[:, rows, cols].T
        np.testing.assert_allclose(probabilities, kept, atol=1e-3)


def _content(path: Path) -> dict[str, bytes]:
    files = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
    return {str(p.relative_to(path)): p.read_bytes() for p in files}
