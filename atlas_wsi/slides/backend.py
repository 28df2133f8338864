"""What a file format must answer to be a slide."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from atlas_wsi.grid import Box
    from atlas_wsi.slides.radiometry import Samples


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One resolution that the file stores."""

    shape: tuple[int, int]
    """Rows and columns in pixels."""
    downsample: tuple[float, float]
    """Level-0 pixels per pixel of this level `(y, x)`."""
    tile: tuple[int, int]
    """Rows and columns of a block that is decoded at once."""
    stored: tuple[int, int] | None = None
    """Rows and columns of a block of the file, where a tile joins several: a damaged one is lost alone."""


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
    images: tuple[str, ...] = ()
    """Names and sizes of the images among which ``--image`` chooses; empty if there is one."""
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
    samples: Samples | None = None
    """What samples that are not 8-bit colors mean; None if the file does not say."""
    has_mask: bool = False
    """Whether `Backend.read_valid` can be False; then invalid pixels never blend into others."""
    properties: Mapping[str, str] = field(default_factory=dict)
    """All other facts of the file as text."""
    warnings: tuple[str, ...] = ()
    """What the user may want to act on, such as a resolution that contradicts another."""


class Backend(ABC):
    """A reader of one file format. All methods may be called from several threads at once."""

    meta: SlideMeta
    """The metadata of the file."""

    @abstractmethod
    def read_block(self, level: int, box: Box) -> NDArray[Any]:
        """Return a new `(rows, cols, channels)` array of a box inside a stored level.

        Raises `atlas_wsi.UnreadableSlideError` if the bytes there cannot be decoded.
        """

    def read_valid(
        self,
        level: int,  # noqa: ARG002
        box: Box,
        channels: Sequence[int] = (),  # noqa: ARG002
    ) -> NDArray[np.bool_]:
        """Return bool `(rows, cols)`: where no channel is nodata or transparent; all by default.

        `channels`: those that must hold an observation; all if empty.
        """
        return np.ones((box.rows, box.cols), dtype=bool)

    def is_absent(self, level: int, box: Box) -> bool:  # noqa: ARG002
        """Whether the file holds no block of a box, which is then not read; False by default."""
        return False

    def read_associated(self, name: str) -> NDArray[Any]:
        """Read one of `meta.associated`, uint8 `(rows, cols, 3)`; ValueError for other names."""
        raise ValueError(f"This {self.meta.format} file has no associated image {name!r}.")

    def close(self) -> None:  # noqa: B027 - optional
        """Close the file; nothing by default."""
