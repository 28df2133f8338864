"""The table of stems; other packages add theirs by entry points of ``atlas_wsi.stems``."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from atlas_wsi.errors import UnknownModelError
from atlas_wsi.models.mambavision import MambaVisionConfig
from atlas_wsi.models.stems.base import Stem
from atlas_wsi.models.stems.convolution import ConvolutionStem
from atlas_wsi.models.stems.mambavision_tokens import MambaVisionStem
from atlas_wsi.models.stems.timm_network import TimmStem

if TYPE_CHECKING:
    from atlas_wsi.models.atlas import AtlasConfig

ENTRY_POINTS = "atlas_wsi.stems"

StemFactory = Callable[["AtlasConfig"], Stem]


def _mambavision(config: AtlasConfig) -> Stem:
    trunk = MambaVisionConfig(**config.stem_options)
    if trunk.in_chans != config.in_channels:
        raise ValueError(
            f"the MambaVision takes {trunk.in_chans} channels, the configuration says "
            f"{config.in_channels}"
        )
    return MambaVisionStem(trunk, last_level=2 if config.depths else 3)


STEMS: dict[str, StemFactory] = {
    "convolution": lambda own: ConvolutionStem(own.dim // 4, in_channels=own.in_channels),
    "mambavision": _mambavision,
    "timm": lambda own: TimmStem(window_px=own.window_px, **own.stem_options),
}
"""The stems of this package by name."""


def make_stem(config: AtlasConfig) -> Stem:
    """Make the stem that a configuration names; its tokens must be those that were planned for."""
    make = STEMS.get(config.stem) or _of_another_package(config.stem)
    stem = make(config)
    if not isinstance(stem, Stem):
        raise TypeError(f"The stem {config.stem} is a {type(stem).__name__}, not a Stem.")
    if (stem.dim, stem.stride_px) != (config.dim, config.token_px):
        raise ValueError(
            f"{type(stem).__name__} makes tokens of {stem.dim} channels and {stem.stride_px} px, "
            f"the configuration says {config.dim} and {config.token_px}"
        )
    return stem


def _of_another_package(name: str) -> StemFactory:
    for entry in entry_points(group=ENTRY_POINTS, name=name):
        try:
            make: StemFactory = entry.load()
        except Exception as error:
            package = entry.dist.name if entry.dist else "an unknown package"
            raise UnknownModelError(
                f"The stem {name} of {package} cannot be loaded: {error}",
                hint=f"Install {package} again.",
            ) from error
        return make
    raise UnknownModelError(
        f"No installed package provides the stem {name}.",
        hint=f"Install the package whose entry point {ENTRY_POINTS} has this name.",
    )
