"""Files with several images: which one is read, and what is said of the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atlas_wsi.errors import UnsupportedFormatError

if TYPE_CHECKING:
    from collections.abc import Sequence

_SAME_RANK = 16
"""An image with less than this part of the largest one's pixels is not warned of."""


def choose_image(extents: Sequence[int], image: int | None) -> int:
    """Return the number of the requested image, by default of the largest.

    `extents`: pixels of each image.
    """
    if image is None:
        return max(range(len(extents)), key=lambda number: extents[number])
    if image >= len(extents):
        raise UnsupportedFormatError(
            f"There is no image {image}: the file holds {len(extents)}, numbered from 0.",
            hint="`atlas-wsi info` lists them.",
        )
    return image


def other_images(names: Sequence[str], extents: Sequence[int], chosen: int) -> list[str]:
    """Warn of images of the rank of the chosen one, which are not read."""
    others = [
        f"{number}: {name}"
        for number, (name, extent) in enumerate(zip(names, extents, strict=True))
        if number != chosen and extent * _SAME_RANK >= extents[chosen]
    ]
    if not others:
        return []
    more = f" and {len(others) - 5} more" if len(others) > 5 else ""
    text = (
        f"The file holds {len(others) + 1} images of this size; image {chosen} ({names[chosen]}) is "
        f"read. Others, for --image: {'; '.join(others[:5])}{more}."
    )
    return [text]
