"""How the stored samples of a TIFF page become the channels of an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile

from atlas_wsi.errors import UnsupportedFormatError
from atlas_wsi.slides.radiometry import full_range

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from atlas_wsi.slides.radiometry import Samples

_PHOTOMETRIC = tifffile.PHOTOMETRIC
_PLAIN = (_PHOTOMETRIC.MINISWHITE, _PHOTOMETRIC.MINISBLACK, _PHOTOMETRIC.RGB, _PHOTOMETRIC.MASK)
_ALPHA = (1, 2)
# Their decoders turn YCbCr into RGB: JPEG, JPEG 2000, WebP, JPEG XR and XL
_COLOR_CODECS = (6, 7, 33003, 33004, 33005, 34712, 34892, 34933, 34934, 50001, 50002, 52546)
_SUBSAMPLING, _MAX_SAMPLE = 530, 281
_DEEP = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class TiffSamples:
    """How stored samples become channels."""

    n_stored: int
    """Samples of a pixel in the file."""
    dtype: np.dtype[Any]
    """Sample type after conversion."""
    bits: int
    """Bits of a sample that are used."""
    is_depth_stated: bool
    """Whether the tag of the largest value states them."""
    is_inverted: bool
    """Whether 0 is white."""
    alpha: int | None
    """Which sample is the opacity."""
    palette: NDArray[np.uint8] | None
    """Colors `(entries, 3)` that samples point into."""
    space: str
    """Color space that is converted to RGB: ``"YCbCr"``, ``"CIELab"``, ``"ICCLab"``, ``"CMYK"``."""
    is_color: bool
    """Whether the channels are red, green and blue."""

    @classmethod
    def of(cls, page: tifffile.TiffPage, n_stored: int) -> TiffSamples:
        """Read the tags of a page; a color space that cannot be converted is refused by name."""
        dtype = np.dtype(page.dtype)
        palette = _palette(page)
        space = _color_space(page, n_stored, dtype)
        alpha = None
        if page.extrasamples and page.extrasamples[-1] in _ALPHA and n_stored in {2, 4}:
            alpha = n_stored - 1
        is_byte = dtype.kind == "b" or palette is not None or bool(space)
        n_colors = 3 if space == "CMYK" or palette is not None else n_stored - (alpha is not None)
        in_color = (_PHOTOMETRIC.RGB, _PHOTOMETRIC.YCBCR)
        is_color = page.photometric in in_color or palette is not None or bool(space)
        bits, is_stated = _bits(page, dtype)
        return cls(
            n_stored=n_stored,
            dtype=np.dtype(np.uint8) if is_byte else dtype.newbyteorder("="),
            bits=8 if is_byte else bits,
            is_depth_stated=is_stated,
            is_inverted=page.photometric == _PHOTOMETRIC.MINISWHITE and dtype.kind in "ub",
            alpha=alpha,
            palette=palette,
            space=space,
            is_color=n_colors == 3 and is_color,
        )

    @property
    def n_channels(self) -> int:
        """Channels after conversion."""
        if self.palette is not None or self.space == "CMYK":
            return 3
        return self.n_stored - (self.alpha is not None)

    def convert(self, stored: NDArray[Any]) -> NDArray[Any]:
        """Turn stored samples into channels."""
        if self.palette is not None:
            last = len(self.palette) - 1
            return np.asarray(self.palette[np.minimum(stored[..., 0], last)])
        if self.space:
            return _to_rgb(stored, self.space)
        if self.alpha is not None:
            stored = np.delete(stored, self.alpha, axis=-1)
        if stored.dtype == bool:
            stored = stored.astype(np.uint8) * np.uint8(255)
        if self.is_inverted:
            stored = stored.dtype.type(2**self.bits - 1) - stored
        return stored

    def meaning(self, significant_bits: int | None) -> Samples | None:
        """Return what channels mean: by the bits that OME-XML states, else those of a color image.

        16 bits that nothing states may be 12 of a camera.
        """
        is_known = self.is_color and (self.bits < _DEEP or self.is_depth_stated)
        if self.dtype.kind != "u" or not (significant_bits or is_known):
            return None
        return full_range(self.dtype, self.n_channels, bits=significant_bits or self.bits)


def _bits(page: tifffile.TiffPage, dtype: np.dtype[Any]) -> tuple[int, bool]:
    """Return the bits in use, and whether the tag of the largest value states them."""
    stored = 8 * dtype.itemsize
    most = page.tags.valueof(_MAX_SAMPLE)
    largest: object = max(most) if isinstance(most, tuple) and most else most
    for bits in range(1, stored + 1):
        if dtype.kind == "u" and largest == 2**bits - 1:
            return bits, True
    return min(int(page.bitspersample) or stored, stored), False


def _palette(page: tifffile.TiffPage) -> NDArray[np.uint8] | None:
    """Return the color table; its entries have 16 bits, in the files of some writers 8."""
    if page.photometric != _PHOTOMETRIC.PALETTE or page.colormap is None:
        return None
    table = np.asarray(page.colormap).T
    return (table >> 8 if table.max(initial=0) > 255 else table).astype(np.uint8)


def _color_space(page: tifffile.TiffPage, n_stored: int, dtype: np.dtype[Any]) -> str:
    """Name the color space to convert from; empty for gray, RGB and tables."""
    kind = page.photometric
    if kind in _PLAIN or page.colormap is not None:
        return ""
    spaces: dict[int, tuple[str, int]] = {
        _PHOTOMETRIC.YCBCR: ("YCbCr", 3),
        _PHOTOMETRIC.CIELAB: ("CIELab", 3),
        _PHOTOMETRIC.ICCLAB: ("ICCLab", 3),
        _PHOTOMETRIC.SEPARATED: ("CMYK", 4),
    }
    space, n_needed = spaces.get(int(kind), (str(getattr(kind, "name", kind)), 0))
    is_decoded = int(page.compression) in _COLOR_CODECS
    if space == "YCbCr" and is_decoded:
        return ""
    reason = ""
    if n_needed == 0:
        reason = "is not converted"
    elif n_stored != n_needed or dtype != np.uint8:
        reason = f"is converted from {n_needed} samples of 8 bits, not from {n_stored} of {dtype}"
    elif space == "YCbCr" and page.tags.valueof(_SUBSAMPLING, (2, 2)) != (1, 1):
        reason = "with subsampled colors is read from JPEG only"
    elif space == "CMYK" and is_decoded:
        reason = "in JPEG is stored inverted or not, which files do not say"
    if reason:
        raise UnsupportedFormatError(
            f"{page.parent.filename}: the color space {space} {reason}.",
            hint="Convert it once to red, green and blue: vips icc_transform IN OUT srgb.",
        )
    return space


def _to_rgb(stored: NDArray[np.uint8], space: str) -> NDArray[np.uint8]:
    """Convert colors to RGB, uint8 `(rows, cols, 3)`."""
    if space in {"YCbCr", "CMYK"}:
        from PIL import Image

        return np.asarray(
            Image.frombytes(space, stored.shape[1::-1], stored.tobytes()).convert("RGB")
        )
    from skimage.color import lab2rgb

    opponent = stored[..., 1:]
    signed = opponent.view(np.int8) if space == "CIELab" else opponent.astype(np.int16) - 128
    # a, b = 0 is gray under whatever light the file was made for, and gray stays gray
    lab = np.concatenate([stored[..., :1] * np.float32(100 / 255), signed], axis=-1)
    return np.asarray(np.rint(lab2rgb(lab) * 255), np.uint8)
