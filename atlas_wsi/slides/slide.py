"""A slide or scene: a lazy pyramid that reads any region at any resolution."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Self
from uuid import uuid4

import numpy as np

from atlas_wsi.errors import MissingResolutionError, MissingScaleError
from atlas_wsi.grid import Box
from atlas_wsi.slides import radiometry, resolution
from atlas_wsi.slides.pyramid import OVERVIEW_PX
from atlas_wsi.slides.resample import as_dtype
from atlas_wsi.slides.tile_reader import OBSERVED, UNREADABLE, TileReader, majority
from atlas_wsi.slides.view import View

if TYPE_CHECKING:
    import dask.array as da
    import zarr
    from numpy.typing import NDArray

    from atlas_wsi.slides.backend import Backend, SlideMeta
    from atlas_wsi.slides.radiometry import Samples
    from atlas_wsi.slides.tile_reader import Channels, UnreadableTile

_SUFFIX = re.compile(r"(\.ome)?\.(zarr(\.zip)?|(?!\d)\w{2,5})$", re.IGNORECASE)


class Slide:
    """An open slide or scene. Safe to use from several threads; pickles by its path.

    Parameters
    ----------
    backend
        The reader of the file's format.
    path
        Absolute path or URL, as it can be opened again.
    mpp
        Micrometers per level-0 pixel, a number or `(y, x)`, instead of what the file says.
    scale
        Stored values of black and white, instead of what the file says.
    image
        Number of the image that was chosen, of those in the file; None for the default.
    allow_truncated
        Whether a file whose end is missing was read as far as it goes.
    strict
        Whether a block that cannot be decoded raises, rather than being filled with background
        and listed in `unreadable`.
    """

    def __init__(
        self,
        backend: Backend,
        path: str,
        *,
        mpp: float | tuple[float, float] | None = None,
        scale: tuple[float, float] | None = None,
        image: int | None = None,
        allow_truncated: bool = False,
        strict: bool = False,
    ) -> None:
        self.path = path
        self.scale, self.image = scale, image
        self.allow_truncated, self.strict = allow_truncated, strict
        self._backend = backend
        self._override = None if mpp is None else resolution.check_mpp(mpp)
        self._reader = TileReader(backend, strict=strict)

    # What the slide is ---------------------------------------------------------------------

    @property
    def name(self) -> str:
        """File name without its suffix, usable as a folder name."""
        return slide_name(self.path)

    @property
    def meta(self) -> SlideMeta:
        """Metadata of the file."""
        return self._backend.meta

    @property
    def shape(self) -> tuple[int, int]:
        """Level-0 rows and columns."""
        return self._reader.levels[0].shape

    @property
    def n_channels(self) -> int:
        """Channels (bands) of a pixel."""
        return self.meta.n_channels

    @property
    def dtype(self) -> np.dtype[Any]:
        """Sample type."""
        return self._reader.dtype

    @property
    def level_shapes(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of every level, those made on demand included."""
        return tuple(level.shape for level in self._reader.levels)

    @property
    def downsamples(self) -> tuple[tuple[float, float], ...]:
        """Level-0 pixels per pixel of each level `(y, x)`."""
        return tuple(level.downsample for level in self._reader.levels)

    @cached_property
    def levels(self) -> tuple[da.Array, ...]:
        """Levels as lazy arrays `(y, x, c)`, finest first, down to at most 1024 pixels."""
        import dask.array as da
        import zarr

        from atlas_wsi.slides.store import SlideStore

        group = zarr.open_group(SlideStore(self), mode="r", zarr_format=3)
        # One name per opened slide: the graph holds the slide's path once and tile numbers.
        names = (f"{self.name}-{index}-{uuid4().hex}" for index in range(len(self.downsamples)))
        arrays = (
            da.from_zarr(group[str(index)], name=name)  # type: ignore[no-untyped-call]
            for index, name in enumerate(names)
        )
        return tuple(arrays)

    def zarr(self) -> zarr.Group:
        """Return the pyramid as a read-only zarr group with OME-NGFF 0.5 metadata.

        Its arrays ``"0"``, ``"1"``, ... have the axes c, y, x; chunks are decoded when they are
        read. ``slide.zarr().store`` is the store, for libraries that open OME-Zarr.

        Returns
        -------
        zarr.Group
            The levels of `levels`, finest first.
        """
        import zarr

        from atlas_wsi.slides.store import SlideStore

        return zarr.open_group(SlideStore(self, channels_first=True), mode="r", zarr_format=3)

    @property
    def gsd(self) -> tuple[float, float] | None:
        """Meters per level-0 pixel `(y, x)` of a georeferenced scene; None for slides."""
        if self.mpp is None or not self.is_georeferenced:
            return None
        return self.mpp[0] / 1e6, self.mpp[1] / 1e6

    @property
    def mpp(self) -> tuple[float, float] | None:
        """Micrometers per level-0 pixel `(y, x)`; None if neither caller nor file says."""
        return self._override or self.meta.mpp

    @property
    def mpp_source(self) -> str:
        """Where `mpp` comes from: ``"argument"`` or a place in the file."""
        return "argument" if self._override else self.meta.mpp_source

    @property
    def magnification(self) -> float | None:
        """Objective power of the scan, if stated."""
        return self.meta.magnification

    @property
    def samples(self) -> Samples | None:
        """What the samples mean; None if neither caller nor file says."""
        if self.scale is not None:
            return radiometry.stated_range(*self.scale, self.n_channels)
        is_number = "palette" in self.meta.properties.get("colorinterp", "")
        if self.meta.samples is None and self.dtype == np.uint8 and not is_number:
            return radiometry.full_range(self.dtype, self.n_channels)
        return self.meta.samples

    @property
    def vendor(self) -> str:
        """Scanner's vendor; empty if unknown."""
        return self.meta.vendor

    @property
    def bounds(self) -> Box:
        """Non-empty region in level-0 pixels; the whole slide if the file does not state it."""
        rows, cols = self.shape
        return self.meta.bounds or Box(row=0, col=0, rows=rows, cols=cols)

    @property
    def background(self) -> tuple[float, ...]:
        """Value of a pixel outside the slide, one number per channel."""
        return self.meta.background

    @property
    def icc_profile(self) -> bytes | None:
        """Embedded ICC profile."""
        return self.meta.icc_profile

    @property
    def crs(self) -> str | None:
        """Coordinate reference system as WKT; None for slides."""
        return self.meta.crs

    @property
    def transform(self) -> tuple[float, float, float, float, float, float] | None:
        """Affine (a, b, c, d, e, f) from level-0 (col, row) to CRS (x, y)."""
        return self.meta.transform

    @property
    def is_georeferenced(self) -> bool:
        """Whether the pixels have a place on earth."""
        return self.meta.crs is not None and self.meta.transform is not None

    @property
    def associated(self) -> tuple[str, ...]:
        """Names of associated images such as label and macro."""
        return self.meta.associated

    @property
    def unreadable(self) -> list[UnreadableTile]:
        """Blocks that could not be decoded so far."""
        return self._reader.unreadable

    def require_mpp(self) -> tuple[float, float]:
        """Return the resolution, which must be known.

        Returns
        -------
        tuple
            Micrometers per level-0 pixel `(y, x)`.

        Raises
        ------
        MissingResolutionError
            If neither the caller nor the file says it.
        """
        if self.mpp is None:
            message, hint = resolution.explain_missing(self.name, self.magnification)
            raise MissingResolutionError(message, hint=hint)
        return self.mpp

    def require_samples(self) -> Samples:
        """Return what the samples mean, which must be known to compare slides.

        Returns
        -------
        Samples
            The stored values of black and white, or of reflectance 0 and 1.

        Raises
        ------
        MissingScaleError
            If neither the caller nor the file says it.
        """
        if self.samples is None:
            raise MissingScaleError(
                f"{self.name} has {self.dtype} samples and does not say what they mean.",
                hint="Give the values that are black and white: --scale 0,3000 "
                "(in Python: open_slide(path, scale=(0, 3000))).",
            )
        return self.samples

    # Pixels --------------------------------------------------------------------------------

    def read_region(
        self,
        y: float,
        x: float,
        height: int,
        width: int,
        *,
        mpp: float | tuple[float, float] | None = None,
    ) -> NDArray[Any]:
        """Read a region at any resolution.

        Parameters
        ----------
        y
            Level-0 row of the top edge; may be fractional or outside the slide.
        x
            Level-0 column of the left edge.
        height
            Rows of the result.
        width
            Columns of the result.
        mpp
            Micrometers per pixel of the result, a number or `(y, x)`; None for level 0.

        Returns
        -------
        NDArray
            `(height, width, channels)` in the slide's sample type, background outside the slide.

        Notes
        -----
        Read from the nearest finer level and resampled with a triangle filter as wide as the
        reduction. A pixel depends on its own place only: an area read whole equals its parts
        joined.
        """
        return self._read_scaled(y, x, height, width, self._ratio(mpp))[0]

    def read_masked(
        self,
        y: float,
        x: float,
        height: int,
        width: int,
        *,
        mpp: float | tuple[float, float] | None = None,
        channels: tuple[int, ...] = (),
    ) -> tuple[NDArray[Any], NDArray[np.uint8] | None]:
        """Read a region and what is known of its pixels.

        Parameters
        ----------
        y
            As for `read_region`.
        x
            As for `read_region`.
        height
            As for `read_region`.
        width
            As for `read_region`.
        mpp
            As for `read_region`.
        channels
            The channels that must hold an observation; red, green and blue by default.

        Returns
        -------
        tuple
            What `read_region` returns, and uint8 `(height, width)`: 0 for an observed pixel, 1 for
            one that the file does not hold (outside, nodata, masked), 2 for one that could not be
            decoded; None if all are observed.
        """
        return self._read_scaled(y, x, height, width, self._ratio(mpp), channels)

    def read_valid(
        self,
        y: float,
        x: float,
        height: int,
        width: int,
        *,
        mpp: float | tuple[float, float] | None = None,
    ) -> NDArray[np.bool_]:
        """Tell which pixels of a region hold an observation.

        Parameters
        ----------
        y
            As for `read_region`.
        x
            As for `read_region`.
        height
            As for `read_region`.
        width
            As for `read_region`.
        mpp
            As for `read_region`.

        Returns
        -------
        NDArray
            bool `(height, width)`; False outside the slide, for nodata and transparent pixels,
            and for blocks that were found unreadable so far.
        """
        return self._valid_scaled(y, x, height, width, self._ratio(mpp))

    def thumbnail(self, max_px: int = OVERVIEW_PX) -> NDArray[Any]:
        """Read the whole slide, small.

        Parameters
        ----------
        max_px
            Longest side of the result; a smaller slide is not enlarged.

        Returns
        -------
        NDArray
            `(rows, cols, channels)` in the slide's sample type.
        """
        shrink = max(1.0, max(self.shape) / max_px)
        rows, cols = (max(1, round(n / shrink)) for n in self.shape)
        ratio = self.shape[0] / rows, self.shape[1] / cols
        return self._read_scaled(0, 0, rows, cols, ratio)[0]

    def read_level(self, level: int, box: Box) -> NDArray[Any]:
        """Read pixels of one level as they are.

        Parameters
        ----------
        level
            Index into `downsamples`.
        box
            Rows and columns in the level's pixels; may reach over its border.

        Returns
        -------
        NDArray
            `(rows, cols, channels)`, background outside the level.
        """
        return self._reader.read(level, box)

    def read_associated(self, name: str) -> NDArray[Any]:
        """Read an associated image.

        Parameters
        ----------
        name
            One of `associated`.

        Returns
        -------
        NDArray
            uint8 `(rows, cols, 3)`.

        Raises
        ------
        ValueError
            If the slide has no such image.
        """
        if name not in self.associated:
            raise ValueError(f"{self.name} has no image {name!r}, only {self.associated}.")
        return self._backend.read_associated(name)

    def close(self) -> None:
        """Give the file back to the system."""
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        facts = {
            "mpp": self._override,
            "scale": self.scale,
            "image": self.image,
            "allow_truncated": self.allow_truncated,
            "strict": self.strict,
        }
        return _reopen, (self.path, facts)

    def __repr__(self) -> str:
        rows, cols = self.shape
        at = "unknown mpp"
        if self.mpp is not None:
            um = self.mpp[0]
            at = f"{um / 1e6:.4g} m/px" if self.is_georeferenced else f"{um:.4g} um/px"
        return f"<Slide {self.name}: {self.meta.format}, {rows} x {cols} px, {at}>"

    def _ratio(self, mpp: float | tuple[float, float] | None) -> tuple[float, float]:
        """Level-0 pixels an output pixel."""
        if mpp is None:
            return 1.0, 1.0
        wanted, own = resolution.check_mpp(mpp), self.require_mpp()
        return wanted[0] / own[0], wanted[1] / own[1]

    def _read_scaled(
        self,
        y: float,
        x: float,
        height: int,
        width: int,
        ratio: tuple[float, float],
        channels: Channels = (),
    ) -> tuple[NDArray[Any], NDArray[np.uint8] | None]:
        reader = self._reader
        channels = channels or reader.channels
        view = View.over(reader.levels, y, x, (height, width), ratio)
        aligned = view.aligned_box
        if aligned is not None:
            return reader.read_masked(view.level, aligned, channels)
        result = np.empty((height, width, self.n_channels), reader.dtype)
        states = np.full((height, width), OBSERVED, np.uint8)
        for out in view.blocks():
            source = view.source_of(out)
            pixels, state = reader.read_masked(view.level, source, channels)
            if state is None:
                result[out.slices] = as_dtype(view.reduce(pixels, source, out), reader.dtype)
                continue
            observed = (state == OBSERVED)[..., None]
            share = view.reduce(observed, source, out)
            lost = view.reduce((state == UNREADABLE)[..., None], source, out)
            total = view.reduce(np.where(observed, pixels, 0), source, out)
            result[out.slices] = reader.blend(total, share)
            states[out.slices] = majority(share, lost)
        return result, states if states.any() else None

    def _valid_scaled(
        self, y: float, x: float, height: int, width: int, ratio: tuple[float, float]
    ) -> NDArray[np.bool_]:
        reader = self._reader
        view = View.over(reader.levels, y, x, (height, width), ratio)
        aligned = view.aligned_box
        if aligned is not None:
            return reader.read_valid(view.level, aligned, reader.channels)
        result = np.empty((height, width), dtype=bool)
        for out in view.blocks():
            source = view.source_of(out)
            valid = reader.read_valid(view.level, source, reader.channels)
            result[out.slices] = view.reduce(valid[..., None], source, out)[..., 0] >= 0.5
        return result


def slide_name(path: str) -> str:
    """Return a short name for a path or URL."""
    if "://" in path:
        path = path.split("?")[0]
    last = PurePosixPath(path.rstrip("/")).name
    return _SUFFIX.sub("", last).strip() or "slide"


def _reopen(path: str, facts: dict[str, Any]) -> Slide:
    from atlas_wsi.slides.open import open_slide

    return open_slide(path, **facts)
