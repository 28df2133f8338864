"""The model card: classes, resolution, normalization, license, measured quality."""

from __future__ import annotations

import colorsys
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Color = Annotated[str, StringConstraints(pattern=r"^#[0-9a-fA-F]{6}$")]
Text = Annotated[str, StringConstraints(max_length=20_000)]


class ModelClass(BaseModel):
    """One class of a model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, StringConstraints(min_length=1, max_length=100)]
    color: Color


MeasuredOn = Literal["validation", "test", "training"]


class FamiliarImages(BaseModel):
    """How a model recognizes images like those of its training; the rest lies with its weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    axes: Annotated[int, Field(ge=1, le=4096)]
    """Directions with a variance of their own."""
    limit: Annotated[float, Field(gt=0)]
    """Largest squared Mahalanobis distance per channel of a familiar cell of 4 x 4 tokens."""
    measured_on: MeasuredOn
    """Images of which 95% of the cells are within the limit."""


class ModelCard(BaseModel):
    """The card of a model; stored as JSON in the metadata of its weights file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    version: Annotated[str, StringConstraints(max_length=32)] = "1"
    domain: Literal["slide", "scene"]
    """What the model was made for: microscope slides or georeferenced scenes."""
    classes: Annotated[tuple[ModelClass, ...], Field(min_length=1, max_length=1000)]
    mpp: Annotated[float, Field(gt=0, le=1e12)]
    """Micrometers per pixel that the model sees; see `gsd` for scenes."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Subtracted from channels scaled to 0-1."""
    std: tuple[
        Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]
    ] = (0.25, 0.25, 0.25)
    """What channels are then divided by."""
    white_reflectance: Annotated[float, Field(gt=0, le=10)] = 0.3558
    """The model sees 8-bit colors; of scenes, this reflectance is white (as in Sentinel-2's TCI)."""
    familiar: FamiliarImages | None = None
    """How images like those of the training are recognized; None if they are not."""
    temperature: Annotated[float, Field(gt=0, le=100)] = 1.0
    """What logits are divided by before they become probabilities."""
    license: Text = "unknown"
    """License of the weights."""
    data: Text = ""
    """Training data and their license."""
    split: Text = ""
    """How held-out data were kept apart."""
    limits: Text = ""
    """What the model must not be used for."""
    metrics: dict[str, float] = Field(default_factory=dict)
    """Held-out figures, such as ``accuracy`` and ``color_baseline_accuracy``."""
    confusion: tuple[tuple[int, ...], ...] = ()
    """Held-out tiles counted by true class (row) and predicted class (column)."""
    training: dict[str, Any] = Field(default_factory=dict)
    """How the model was trained: arguments, seed, epochs, seconds."""

    @property
    def gsd(self) -> float | None:
        """Meters per pixel of scenes; None for slides."""
        return self.mpp / 1e6 if self.domain == "scene" else None

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes in the order of the outputs."""
        return tuple(c.name for c in self.classes)

    @property
    def colors(self) -> tuple[str, ...]:
        """Colors of the classes, ``#rrggbb``."""
        return tuple(c.color for c in self.classes)


def class_colors(n: int) -> tuple[str, ...]:
    """Return colors that are distinct, also to the color-blind."""
    first = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442", "#000000")
    rest = [colorsys.hsv_to_rgb(i / max(1, n - 8), 0.6, 0.8) for i in range(max(0, n - 8))]
    more = ("#" + "".join(f"{round(255 * c):02x}" for c in rgb) for rgb in rest)
    return (*first, *more)[:n]
