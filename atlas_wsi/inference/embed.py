"""Features of a slide's tiles, in the HDF5 layouts that tools for slide labels read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from atlas_wsi.errors import OutputNotWritableError, ResultExistsError, SlideError
from atlas_wsi.grid import Box
from atlas_wsi.inference.pixels import open_working_image
from atlas_wsi.progress import CancelToken, Progress, silent

if TYPE_CHECKING:
    import os

    from numpy.typing import NDArray

    from atlas_wsi.models import Model
    from atlas_wsi.slides.slide import Slide
    from atlas_wsi.tissue.mask import TissueMask

Flavor = Literal["trident", "clam", "stamp"]
_STAMP_VERSION = "2.4.0"  # the layout of coords in um and `feats`
_MICROSCOPE_MPP = 10.0  # um a pixel at magnification 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Features:
    """Features of the tiles of a slide that hold tissue."""

    values: NDArray[np.float32]
    """`(tiles, channels)`."""
    coords: NDArray[np.int64]
    """`(tiles, 2)`: level-0 `x, y` of the top-left corner, the order of the file formats."""
    tile_px: int
    """Side of a tile in working pixels."""
    tile_px_level0: int
    """Side of a tile in level-0 pixels, rounded."""
    mpp: float
    """Micrometres a working pixel."""
    slide_mpp: float
    """Micrometres a level-0 pixel."""
    slide_shape: tuple[int, int]
    """Level-0 rows and columns."""
    name: str
    """Name of the slide."""
    encoder: str
    """Name of the model."""
    sha256: str
    """Of the model's file."""

    def write(
        self, path: str | os.PathLike[str], *, flavor: Flavor = "trident", overwrite: bool = False
    ) -> Path:
        """Write the features to an HDF5 file; it is there whole or not at all.

        Parameters
        ----------
        path
            File to write.
        flavor
            Whose layout: ``"trident"``, ``"clam"`` or ``"stamp"``.
        overwrite
            Replace a file that is there.

        Returns
        -------
        Path
            The file.

        Raises
        ------
        ResultExistsError
            If the file is there and is not to be replaced.
        OutputNotWritableError
            If it cannot be written, or h5py is not installed.
        """
        path = Path(path)
        if path.exists() and not overwrite:
            raise ResultExistsError(f"{path} is there.", hint="--overwrite replaces it.")
        try:
            import h5py
        except ImportError as error:
            raise OutputNotWritableError(
                "Writing HDF5 needs h5py, which is not installed.",
                hint="pip install 'atlas-wsi[embed]'",
            ) from error
        part = path.with_name(f".{path.name}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with h5py.File(part, "w") as file:
                {"trident": self._trident, "clam": self._clam, "stamp": self._stamp}[flavor](file)
            return part.replace(path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise OutputNotWritableError(f"{path} cannot be written: {error}.") from error

    def _trident(self, file: Any) -> None:
        features = file.create_dataset("features", data=self.values)
        features.attrs.update(name=self.name, savetodir="", encoder=self.encoder)
        features.attrs["atlas_model_sha256"] = self.sha256
        coords = file.create_dataset("coords", data=self.coords)
        coords.attrs.update(
            patch_size=self.tile_px,
            patch_size_level0=self.tile_px_level0,
            level0_magnification=_magnification(self.slide_mpp),
            target_magnification=_magnification(self.mpp),
            overlap=0,
            name=self.name,
            savetodir="",
            level0_width=self.slide_shape[1],
            level0_height=self.slide_shape[0],
        )

    def _clam(self, file: Any) -> None:
        file.create_dataset("features", data=self.values)
        coords = file.create_dataset("coords", data=self.coords)
        width_height = np.array(self.slide_shape[::-1])
        coords.attrs.update(
            patch_size=self.tile_px_level0,
            patch_level=0,
            downsample=np.array([1.0, 1.0]),
            downsampled_level_dim=width_height,
            level_dim=width_height,
            name=self.name,
            save_path="",
        )

    def _stamp(self, file: Any) -> None:
        file.create_dataset("feats", data=self.values.astype(np.float16))
        file.create_dataset("coords", data=self.coords * self.slide_mpp)
        file.attrs.update(
            stamp_version=_STAMP_VERSION,
            extractor=self.encoder,
            unit="um",
            tile_size_um=self.tile_px * self.mpp,
            tile_size_px=self.tile_px,
            code_hash=self.sha256,
            feat_type="tile",
        )


def embed(
    slide: Slide,
    model: Model,
    *,
    tissue: TissueMask,
    tile_px: int = 224,
    min_tissue: float = 0.25,
    batch: int = 16,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> Features:
    """Describe the tiles of a slide by the features that a model's readout is made of.

    Parameters
    ----------
    slide
        The slide.
    model
        The model, in evaluation mode; tiles are read at its resolution.
    tissue
        Where tissue is.
    tile_px
        Side of a tile in working pixels.
    min_tissue
        Least share of a tile that is tissue.
    batch
        Tiles at once.
    progress
        Told how many tiles are done.
    cancel
        Stops the work.

    Returns
    -------
    Features
        Of the tiles row by row; tiles that reach over the slide's border are left out.

    Raises
    ------
    SlideError
        If no tile holds enough tissue.
    """
    report, cancel = progress or silent, cancel or CancelToken()
    image = open_working_image(slide, mpp=model.card.mpp)
    covered = tissue.coverage(image.grid.coarsen(tile_px))
    rows, cols = (n // tile_px for n in image.shape)
    places = np.argwhere(covered[:rows, :cols] >= min_tissue)
    if not len(places):
        raise SlideError(
            f"{slide.name} has no tile of {tile_px} px at {image.mpp[0]:g} um/px with "
            f"{min_tissue:.0%} tissue.",
            hint="Give a smaller --tile-px or --min-tissue.",
        )
    found: list[NDArray[np.float32]] = []
    for start in range(0, len(places), batch):
        chosen = places[start : start + batch]
        cancel.raise_if_cancelled()
        tiles = [image.read(_box(at, tile_px)) for at in chosen]
        found.append(_features(model, np.stack(tiles)))
        report("embed", sum(map(len, found)), len(places))
    step = image.grid.step_px
    own = slide.require_mpp()
    corners = places[:, ::-1] * tile_px * np.array([step[1], step[0]])
    return Features(
        values=np.concatenate(found),
        coords=corners.round().astype(np.int64),
        tile_px=tile_px,
        tile_px_level0=round(tile_px * step[1]),
        mpp=float(image.mpp[1]),
        slide_mpp=float(own[1]),
        slide_shape=slide.shape,
        name=slide.name,
        encoder=model.card.name,
        sha256=model.sha256,
    )


def _features(model: Model, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
    with torch.inference_mode():
        x_BCYX = model.normalise(torch.from_numpy(tiles))
        layout = model.encoder.plan((x_BCYX.shape[-2], x_BCYX.shape[-1]), n_images=len(tiles))
        pooled = model.encoder.pooled(model.encoder.encode(x_BCYX, layout))
        return pooled.float().numpy()


def _magnification(mpp: float) -> int:
    return max(1, round(_MICROSCOPE_MPP / mpp))


def _box(at: NDArray[np.int64], tile_px: int) -> Box:
    row, col = (int(n) * tile_px for n in at)
    return Box(row=row, col=col, rows=tile_px, cols=tile_px)
