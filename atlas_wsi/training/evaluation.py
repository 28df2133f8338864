"""How good a model is on labeled tiles or slides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from atlas_wsi.errors import DatasetError
from atlas_wsi.training.metrics import confusion, mean_probabilities, summarize
from atlas_wsi.training.scores import Interval, Reliability, class_scores, reliability

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from atlas_wsi.models.model import Model
    from atlas_wsi.progress import Progress
    from atlas_wsi.training.tiles import Labeled


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evaluation:
    """How good a model is on labeled tiles, cells or slides."""

    classes: tuple[str, ...]
    """Names of the classes."""
    confusion: NDArray[np.int64]
    """Counts by true class (row) and predicted class (column)."""
    metrics: Mapping[str, float]
    """``accuracy``, ``balanced_accuracy``, and ``recall NAME`` a class."""
    scores: Mapping[str, Any]
    """From `atlas_wsi.training.scores.class_scores`."""
    reliability: Reliability
    """How far the probabilities can be believed."""
    temperature: float
    """What the logits were divided by."""
    unit: str = "tiles"
    """What was counted: ``"tiles"``, ``"cells"`` or ``"slides"``."""
    drawn: str = "groups"
    """What intervals are over."""

    def as_dict(self) -> dict[str, Any]:
        """Return the figures as JSON types."""
        return {
            "classes": list(self.classes),
            self.unit: int(self.confusion.sum()),
            "metrics": dict(self.metrics),
            "confusion": self.confusion.tolist(),
            "intervals": {
                name: _plain(score.as_list())  # nothing where one class occurs alone
                for name, score in self.scores.items()
                if isinstance(score, Interval)
            },
            "intervals_over": self.drawn,
            "per_class": {
                self.classes[k]: dict(score) for k, score in self.scores["per_class"].items()
            },
            "ece": self.reliability.ece,
            "temperature": self.temperature,
            "reliability": {
                "confidence": _plain(self.reliability.confidence),
                "accuracy": _plain(self.reliability.accuracy),
                self.unit: self.reliability.count.tolist(),
            },
        }


def evaluate(model: Model, tiles: Labeled, *, progress: Progress | None = None) -> Evaluation:
    """Measure a model on labeled tiles or slides."""
    labels = class_places(model, tiles)[tiles.labels]
    names, temperature = model.card.class_names, model.card.temperature
    logits, valid = tiles.logits(model, progress=progress)
    probabilities = mean_probabilities(logits, valid, temperature=temperature)
    return measure(
        names, labels, probabilities, tiles.groups, temperature=temperature, unit=tiles.unit
    )


def measure(
    classes: tuple[str, ...],
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float32],
    groups: Sequence[str],
    *,
    temperature: float = 1.0,
    unit: str = "tiles",
    drawn: str = "groups",
) -> Evaluation:
    """Measure predictions of what has labels.

    `labels`: `(N,)` true classes. `probabilities`: `(N, classes)`.
    """
    counts = confusion(labels, probabilities.argmax(axis=1), len(classes))
    recall = np.diag(counts) / np.maximum(counts.sum(axis=1), 1)
    metrics = summarize(counts) | {
        f"recall {name}": float(value)
        for name, value, seen in zip(classes, recall, counts.sum(axis=1), strict=True)
        if seen
    }
    numbers = np.unique(np.array(groups), return_inverse=True)[1]
    return Evaluation(
        classes=classes,
        confusion=counts,
        metrics=metrics,
        scores=class_scores(labels, probabilities, groups=numbers),
        reliability=reliability(labels, probabilities),
        temperature=temperature,
        unit=unit,
        drawn=drawn,
    )


def _plain(values: NDArray[np.float64] | list[float]) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]


def class_places(model: Model, tiles: Labeled) -> NDArray[np.int64]:
    """Return the model's class of each class of the tiles.

    Returns: `(classes of the tiles,)`.
    """
    names = model.card.class_names
    strangers = [name for name in tiles.classes if name not in names]
    if strangers:
        raise DatasetError(
            f"The model {model.card.name} does not know {', '.join(strangers)}; "
            f"it knows {', '.join(names)}."
        )
    return np.array([names.index(name) for name in tiles.classes])
