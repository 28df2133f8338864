"""The slide as the encoder sees it: 8-bit red, green, blue at the working resolution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from atlas_wsi.grid import Grid
from atlas_wsi.slides.radiometry import WHITE_REFLECTANCE, rgb_channels

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
        """Read a part: uint8 `(rows, cols, 3)`."""
        return self.read_masked(box)[0]

    def read_masked(self, box: Box) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
        """Read a part, and what is known of its pixels, as `Slide.read_masked` does."""
        pixels, state = self.slide.read_masked(
            box.row * self.grid.step_px[0],
            box.col * self.grid.step_px[1],
            box.rows,
            box.cols,
            mpp=self.mpp,
            channels=self.channels,
        )
        if pixels.shape[2] != 3 or self.channels != (0, 1, 2):
            pixels = pixels[:, :, self.channels]
        if pixels.dtype == np.uint8 and not self.low.any() and (self.high == 255).all():
            return np.ascontiguousarray(pixels), state
        return stretch(pixels, self.low, self.high), state


def stretch(
    pixels: NDArray[Any], low: NDArray[np.float32], high: NDArray[np.float32]
) -> NDArray[np.uint8]:
    """Scale samples linearly to 8 bits.

    `pixels`: `(rows, cols, 3)` of any type; NaN becomes 0. Returns: uint8, clipped.
    """
    scaled = (pixels.astype(np.float32) - low) * (255 / np.maximum(high - low, 1e-12))
    return np.clip(np.nan_to_num(scaled, nan=0.0), 0, 255).round().astype(np.uint8)


def open_working_image(
    slide: Slide, *, mpp: float, white: float = WHITE_REFLECTANCE
) -> WorkingImage:
    """Choose resolution, channels and scaling for a slide.

    Samples are scaled by what they mean, never by how they are distributed, so that the result
    does not depend on how the slide is cut. `white`: reflectance that becomes 255.
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
    channels, note = rgb_channels(slide.meta)
    if note:
        warnings.append(note)
    low, high = slide.require_samples().color_range(channels, white)
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
