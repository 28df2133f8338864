"""Features of the tiles of a slide, in the HDF5 layouts of tools for slide labels."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from atlas_wsi.errors import ResultExistsError
from atlas_wsi.files import require_extra, write_whole

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from numpy.typing import NDArray

Flavor = Literal["trident", "clam", "stamp"]
_STAMP_VERSION = "2.4.0"  # the layout of coords in um and `feats`
_MICROSCOPE_MPP = 10.0  # um per pixel at magnification 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TileEmbeddings:
    """Feature vectors of the tiles of a slide that have tissue."""

    values: NDArray[np.float32]
    """`(tiles, channels)`."""
    coords: NDArray[np.int64]
    """`(tiles, 2)`: level-0 `x, y` of the top-left corner, the order of the file formats."""
    tile_px: int
    """Side of a tile in working pixels."""
    tile_px_level0: int
    """Side of a tile in level-0 pixels, rounded."""
    mpp: float
    """Micrometers per working pixel."""
    slide_mpp: float
    """Micrometers per level-0 pixel."""
    slide_shape: tuple[int, int]
    """Level-0 rows and columns."""
    name: str
    """Name of the slide."""
    encoder: str
    """Name of the model."""
    sha256: str
    """Of the model's file."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """What else the file says of the features, each under ``atlas_`` and its name."""

    def write(
        self, path: str | os.PathLike[str], *, flavor: Flavor = "trident", overwrite: bool = False
    ) -> Path:
        """Write the features to an HDF5 file, atomically.

        Parameters
        ----------
        path
            File to write.
        flavor
            Layout: that of TRIDENT, CLAM or STAMP.
        overwrite
            Whether to replace an existing file.

        Returns
        -------
        Path
            The file.

        Raises
        ------
        ResultExistsError
            If the file exists and `overwrite` is False.
        OutputNotWritableError
            If h5py is not installed, or the file cannot be written.
        """
        path = Path(path)
        if path.exists() and not overwrite:
            raise ResultExistsError(f"{path} exists already.", hint="Replace it with --overwrite.")
        h5py = require_extra("h5py", "embed", to="Writing HDF5")
        layout = {"trident": self._trident, "clam": self._clam, "stamp": self._stamp}[flavor]
        memory = io.BytesIO()  # the library may crash after it failed to write to a full disk
        with h5py.File(memory, "w") as file:
            layout(file)
        with write_whole(path, overwrite=overwrite) as partial:
            partial.write_bytes(memory.getbuffer())
        return path

    def _trident(self, file: Any) -> None:
        features = file.create_dataset("features", data=self.values)
        features.attrs.update(name=self.name, savetodir="", encoder=self.encoder)
        features.attrs.update(self._own())
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
        features = file.create_dataset("features", data=self.values)
        features.attrs.update(self._own())
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
        file.attrs.update(self._own())

    def _own(self) -> dict[str, str]:
        """Return metadata of this program alone, under names that no other reader has."""
        notes = {f"atlas_{name}": text for name, text in self.notes.items()}
        return {"atlas_model_sha256": self.sha256, **notes}


def _magnification(mpp: float) -> int:
    return max(1, round(_MICROSCOPE_MPP / mpp))
