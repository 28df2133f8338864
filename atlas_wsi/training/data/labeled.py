"""What a model is trained and measured on, whatever it was read from."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TypeAlias

    import numpy as np
    from numpy.typing import NDArray

    from atlas_wsi.progress import Progress
    from atlas_wsi.training.data.annotated_slide import AnnotatedSlide
    from atlas_wsi.training.data.slide_table import SlideTable

    Labeled: TypeAlias = "LabeledTiles | SlideTable"


class LabeledData(Protocol):
    """Labeled data that is read when training or evaluation needs it."""

    def prepared(
        self, *, mpp: float | None = None, seed: int = 0, progress: Progress | None = None
    ) -> Labeled:
        """Read the data at the resolution that the model sees.

        Parameters
        ----------
        mpp
            Micrometers per pixel; None for those of the data.
        seed
            Decides what is sampled.
        progress
            Called with a text, the steps done and their number.

        Returns
        -------
        Labeled
            Images or slides with labels and groups.
        """


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LabeledTiles:
    """Tiles of one size with a class and a group each."""

    unit: ClassVar[str] = "tiles"
    arguments: ClassVar[dict[str, int]] = {}
    """Nothing: recipe and tiles decide a training."""

    images: NDArray[np.uint8]
    """`(N, rows, cols, 3)`."""
    labels: NDArray[np.int64]
    """`(N,)` index into `classes`."""
    groups: tuple[str, ...]
    """`N` names, such as patients; tiles of one group are kept in one part of a split."""
    paths: tuple[str, ...]
    """`N` names of the tiles."""
    classes: tuple[str, ...]
    """Names of the classes, sorted."""
    is_grouped: bool
    """Whether groups were given; otherwise every tile is its own group."""
    mpp: float | None = None
    """Micrometers per pixel."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """How the tiles were read, for the card."""
    fingerprint: str = ""
    """Digest of all tiles, by which a model recognizes its training data."""
    slides: tuple[AnnotatedSlide, ...] = ()
    """The slides that the tiles were cut out of, if they are learned and measured in place."""
    places: tuple[tuple[str, int, int], ...] = ()
    """`N` slides and corners (row, column, in working pixels) of tiles that are measured there."""

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, which: NDArray[np.int64]) -> LabeledTiles:
        """Return some of the tiles."""
        groups = {self.groups[i] for i in which}
        return replace(
            self,
            images=self.images[which],
            labels=self.labels[which],
            groups=tuple(self.groups[i] for i in which),
            paths=tuple(self.paths[i] for i in which),
            slides=tuple(slide for slide in self.slides if slide.group in groups),
            places=tuple(self.places[i] for i in which if self.places),
        )

    def prepared(
        self,
        *,
        mpp: float | None = None,
        seed: int = 0,  # noqa: ARG002
        progress: Progress | None = None,  # noqa: ARG002
    ) -> LabeledTiles:
        """Return the tiles, which are ready."""
        return self if mpp is None else replace(self, mpp=mpp)
