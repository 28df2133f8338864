"""The slide as the encoder sees it: 8-bit red, green, blue at the working resolution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from atlas_wsi.grid import Grid

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from atlas_wsi.grid import Box
    from atlas_wsi.slides.slide import Slide

_COARSER_LIMIT = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkingImage:
    """A slide at the resolution and in the channels of a model."""

    slide: Slide
    """What is read."""
    mpp: tuple[float, float]
    """Micrometers per working pixel `(y, x)`."""
    grid: Grid
    """Working pixels over level 0."""
    channels: tuple[int, int, int]
    """Channels of the slide that are taken as red, green, blue."""
    low: NDArray[np.float32]
    """Value of each of the three channels that becomes 0."""
    high: NDArray[np.float32]
    """Value of each of the three channels that becomes 255."""
    warnings: tuple[str, ...]
    """What differs from what the model was made for."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns in working pixels."""
        return self.grid.shape

    def read(self, box: Box) -> NDArray[np.uint8]:
        """Read a part.

        Returns: uint8 `(rows, cols, 3)`.
        """
        pixels = self.slide.read_region(
            box.row * self.grid.step_px[0],
            box.col * self.grid.step_px[1],
            box.rows,
            box.cols,
            mpp=self.mpp,
        )
        if pixels.shape[2] != 3 or self.channels != (0, 1, 2):
            pixels = pixels[:, :, self.channels]
        if pixels.dtype == np.uint8:
            return np.ascontiguousarray(pixels)
        return stretch(pixels, self.low, self.high)


def stretch(
    pixels: NDArray[Any], low: NDArray[np.float32], high: NDArray[np.float32]
) -> NDArray[np.uint8]:
    """Scale samples linearly to 8 bits.

    `pixels`: `(rows, cols, 3)` of any type; NaN becomes 0. Returns: uint8, clipped.
    """
    scaled = (pixels.astype(np.float32) - low) * (255 / np.maximum(high - low, 1e-12))
    return np.clip(np.nan_to_num(scaled, nan=0.0), 0, 255).round().astype(np.uint8)


def open_working_image(slide: Slide, *, mpp: float) -> WorkingImage:
    """Choose resolution, channels and scaling for a slide.

    The scaling of samples that are not 8-bit is one for the whole slide (2nd to 98th percentile
    of its thumbnail's valid pixels), never one per tile, so that the result does not depend on how
    the slide is cut.
    """
    own = slide.require_mpp()
    warnings = []
    working = (mpp, mpp)
    if max(own) > _COARSER_LIMIT * mpp:
        working = own
        warnings.append(
            f"The pixels are {_length(max(own))} wide, the model was made for {_length(mpp)}: "
            "read at the file's own resolution; the classes may be meaningless."
        )
    step = (working[0] / own[0], working[1] / own[1])
    channels, note = _rgb_channels(slide)
    if note:
        warnings.append(note)
    low, high = np.zeros(3, np.float32), np.full(3, 255, np.float32)
    if slide.dtype != np.uint8:
        low, high = _percentiles(slide, channels)
        warnings.append(
            f"Samples are {slide.dtype}: scaled to 8 bits between the 2nd and the 98th percentile."
        )
    return WorkingImage(
        slide=slide,
        mpp=working,
        grid=Grid.over(slide.shape, step),
        channels=channels,
        low=low,
        high=high,
        warnings=tuple(warnings),
    )


def _length(um: float) -> str:
    return f"{um:.4g} um" if um < 1e4 else f"{um / 1e6:.4g} m"


def _rgb_channels(slide: Slide) -> tuple[tuple[int, int, int], str]:
    names = [name.lower() for name in slide.meta.properties.get("colorinterp", "").split(",")]
    if all(color in names for color in ("red", "green", "blue")):
        return (names.index("red"), names.index("green"), names.index("blue")), ""
    names = [name.lower() for name in slide.meta.channel_names]
    if all(color in names for color in ("red", "green", "blue")):
        return (names.index("red"), names.index("green"), names.index("blue")), ""
    if slide.n_channels == 3:
        return (0, 1, 2), ""
    if slide.n_channels < 3:
        return (0, 0, 0), "One channel stands for red, green and blue; the model was made for RGB."
    return (0, 1, 2), (
        f"Of {slide.n_channels} channels the first three are taken as red, green and blue."
    )


def _percentiles(
    slide: Slide, channels: tuple[int, int, int]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    rows, cols = slide.shape
    own = slide.require_mpp()
    factor = max(1.0, max(rows, cols) / 1024)
    shape = (max(1, int(rows / factor)), max(1, int(cols / factor)))
    mpp = (own[0] * rows / shape[0], own[1] * cols / shape[1])
    pixels = slide.read_region(0, 0, *shape, mpp=mpp)[:, :, channels].astype(np.float32)
    valid = slide.read_valid(0, 0, *shape, mpp=mpp) & np.isfinite(pixels).all(axis=2)
    if not valid.any():
        return np.zeros(3, np.float32), np.ones(3, np.float32)
    low, high = np.percentile(pixels[valid], (2, 98), axis=0).astype(np.float32)
    return low, high
