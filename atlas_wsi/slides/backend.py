"""What a file format must answer to be a slide."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from atlas_wsi.grid import Box


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One resolution that the file stores."""

    shape: tuple[int, int]
    """Rows and columns in pixels."""
    downsample: tuple[float, float]
    """Level-0 pixels per pixel of this level `(y, x)`."""
    tile: tuple[int, int]
    """Rows and columns of a block that is decoded at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideMeta:
    """Metadata of a file."""

    format: str
    """Short name of what was recognized, such as ``"aperio"``, ``"ome-tiff"``, ``"geotiff"``."""
    backend: str
    """Which reader of ours serves it, such as ``"openslide"`` or ``"tiff"``."""
    levels: tuple[Level, ...]
    """Stored levels, finest first; level 0 has downsample (1, 1)."""
    n_channels: int
    """Channels (bands) of a pixel."""
    dtype: str
    """numpy name of the sample type, such as ``"uint8"``."""
    channel_names: tuple[str, ...]
    """One name per channel."""
    background: tuple[float, ...]
    """Value of a pixel outside the slide, one number per channel."""
    mpp: tuple[float, float] | None = None
    """Micrometers per level-0 pixel `(y, x)`; None if the file does not say."""
    mpp_source: str = ""
    """Where `mpp` was read, such as ``"openslide.mpp-x"`` or ``"geotransform"``."""
    magnification: float | None = None
    """Objective power of the scan."""
    vendor: str = ""
    """Scanner's vendor as the reader names it; empty if unknown."""
    bounds: Box | None = None
    """Non-empty region in level-0 pixels, if the file states it."""
    icc_profile: bytes | None = None
    """Embedded ICC profile."""
    associated: tuple[str, ...] = ()
    """Names of associated images (label, macro, thumbnail)."""
    crs: str | None = None
    """Coordinate reference system as WKT; None for slides."""
    transform: tuple[float, float, float, float, float, float] | None = None
    """Affine (a, b, c, d, e, f): CRS x = a*col + b*row + c, y = d*col + e*row + f (level 0)."""
    nodata: float | None = None
    """Value that marks missing pixels; NaN is possible."""
    has_mask: bool = False
    """Whether `Backend.read_valid` can be False; then invalid pixels never blend into others."""
    properties: Mapping[str, str] = field(default_factory=dict)
    """All other facts of the file as text."""
    warnings: tuple[str, ...] = ()
    """What the user may want to act on, such as a resolution that contradicts another."""


class Backend(ABC):
    """A reader of one file format. All methods may be called from several threads at once."""

    @property
    @abstractmethod
    def meta(self) -> SlideMeta:
        """The metadata of the file."""

    @abstractmethod
    def read_block(self, level: int, box: Box) -> NDArray[Any]:
        """Read pixels of a stored level.

        Parameters
        ----------
        level
            Index into ``meta.levels``.
        box
            Rows and columns in the level's pixels, wholly inside the level.

        Returns
        -------
        NDArray
            `(rows, cols, channels)` of ``meta.dtype``; a new array that belongs to the caller.

        Raises
        ------
        atlas_wsi.UnreadableSlideError
            If the file's bytes cannot be decoded there.
        """

    def read_valid(self, level: int, box: Box) -> NDArray[np.bool_]:  # noqa: ARG002
        """Return which pixels hold an observation (not nodata, not transparent); all by default.

        Parameters
        ----------
        level
            Index into ``meta.levels``.
        box
            As for `read_block`.

        Returns
        -------
        NDArray
            bool `(rows, cols)`.
        """
        return np.ones((box.rows, box.cols), dtype=bool)

    def read_associated(self, name: str) -> NDArray[Any]:
        """Read an associated image; a format without any needs no method of its own.

        Parameters
        ----------
        name
            One of ``meta.associated``.

        Returns
        -------
        NDArray
            uint8 `(rows, cols, 3)`.

        Raises
        ------
        ValueError
            If there is no image of this name.
        """
        raise ValueError(f"This {self.meta.format} file has no associated image {name!r}.")

    def close(self) -> None:  # noqa: B027 - optional
        """Close the file; nothing by default."""
