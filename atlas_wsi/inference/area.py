"""Where a slide is predicted: its tissue, from any source, inside a region of interest."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from atlas_wsi.errors import DatasetError, ModelError
from atlas_wsi.files import sha256_of
from atlas_wsi.inference.model_tissue import find_tissue_by_model
from atlas_wsi.inference.predict import load_any
from atlas_wsi.models.tile_classifier import TileClassifier
from atlas_wsi.tissue.areas import read_areas, read_tissue
from atlas_wsi.tissue.hdf5_tiles import SUFFIXES as TILE_SUFFIXES
from atlas_wsi.tissue.mask import TissueMask, tissue_mask

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from atlas_wsi.models.model import Model
    from atlas_wsi.progress import CancelToken
    from atlas_wsi.slides.slide import Slide

ROI_SUFFIXES = (".geojson", ".json")
TISSUE_SUFFIXES = (*ROI_SUFFIXES, *TILE_SUFFIXES, *(".png", ".tif", ".tiff", ".jpg", ".bmp"))
"""Suffixes of the files in a folder with one file per slide."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Area:
    """Where a slide is predicted."""

    tissue: TissueMask | Path | None
    model: Model | None
    keep_fat: bool
    roi: Path | Sequence[NDArray[np.float64]] | None

    @classmethod
    def of(
        cls,
        slide: Slide,
        tissue: TissueMask | str | os.PathLike[str] | None,
        tissue_model: str | os.PathLike[str] | None,
        roi: str | os.PathLike[str] | Sequence[NDArray[np.float64]] | None,
        *,
        keep_fat: bool,
    ) -> Area:
        """Choose the files and the model of a slide."""
        model = None if tissue_model is None else load_any(tissue_model)
        if isinstance(model, TileClassifier):
            raise ModelError(f"{model.card.name} is a tile classifier and cannot find tissue.")
        if tissue is not None and not isinstance(tissue, TissueMask):
            tissue = file_for(slide.name, tissue, TISSUE_SUFFIXES)
        if isinstance(roi, (str, Path)) or hasattr(roi, "__fspath__"):
            roi = file_for(slide.name, roi, ROI_SUFFIXES)  # type: ignore[arg-type]
        return cls(tissue=tissue, model=model, keep_fat=keep_fat, roi=roi)

    def provenance(self) -> dict[str, str | bool | None]:
        """Return entries that identify the area, for the summary."""
        if isinstance(self.tissue, TissueMask):
            source = f"mask {_digest(self.tissue.mask.tobytes())}"
        elif self.tissue is not None:
            source = _describe(self.tissue)
        elif self.model is not None:
            source = f"model {self.model.card.name} {self.model.sha256[:16]}"
        else:
            source = "colors, with fat" if self.keep_fat else "colors"
        roi = None
        if isinstance(self.roi, Path):
            roi = _describe(self.roi)
        elif self.roi is not None:
            roi = f"polygons {_digest(b''.join(polygon.tobytes() for polygon in self.roi))}"
        return {"tissue_source": source, "roi": roi}

    def find(self, slide: Slide, cancel: CancelToken) -> TissueMask:
        """Find or read the tissue of a slide, inside the region of interest."""
        if isinstance(self.tissue, TissueMask):
            mask = self.tissue
        elif self.tissue is not None:
            mask = read_tissue(self.tissue, slide)
        elif self.model is not None:
            mask = find_tissue_by_model(slide, self.model, cancel=cancel)
        else:
            mask = tissue_mask(slide, keep_fat=self.keep_fat)
        if self.roi is None:
            return mask
        return mask.within(read_areas(self.roi, slide) if isinstance(self.roi, Path) else self.roi)


def file_for(name: str, given: str | os.PathLike[str], suffixes: Sequence[str]) -> Path:
    """Return the file of a slide: the given one, or the one for it in a folder or pattern."""
    path = Path(str(given).replace("{name}", name))
    if not path.is_dir():
        return path
    files = [path / f"{name}{suffix}" for suffix in suffixes]
    existing = [file for file in files if file.is_file()]
    if len(existing) != 1:
        raise DatasetError(
            f"{path} has {len(existing) or 'no'} file{'s' * (len(existing) > 1)} for {name}, "
            "expected one.",
            hint=f"Name it {name} with one of {', '.join(suffixes)}.",
        )
    return existing[0]


def _describe(path: Path) -> str:
    try:
        digest = sha256_of(path)
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}.") from error
    return f"file {path.name} {digest[:16]}"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
