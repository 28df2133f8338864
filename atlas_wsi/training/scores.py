"""Figures of a classifier with intervals, and how far its probabilities can be believed."""

# N samples, K classes

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

N_BINS = 15
_BOOTSTRAPS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A figure and its 95% bootstrap interval."""

    value: float
    low: float
    high: float

    def as_list(self) -> list[float]:
        """Return value, low and high."""
        return [self.value, self.low, self.high]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reliability:
    """How often the predicted class is right, by how sure the prediction is."""

    confidence: NDArray[np.float64]
    """`(bins,)` mean probability of the predicted class; NaN in an empty bin."""
    accuracy: NDArray[np.float64]
    """`(bins,)` share that is right; NaN in an empty bin."""
    count: NDArray[np.int64]
    """`(bins,)` samples."""

    @property
    def ece(self) -> float:
        """Expected calibration error: the mean gap of the two, weighted by samples."""
        gap = np.nan_to_num(np.abs(self.confidence - self.accuracy))
        return float((gap * self.count).sum() / max(1, self.count.sum()))


def class_scores(
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float32],
    *,
    groups: NDArray[np.int64] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Compute figures a class and over all classes, with bootstrap intervals.

    `labels`: `(N,)` true classes. `probabilities`: `(N, K)`. `groups`: `(N,)` group of every
    sample; whole groups are drawn, for their members are alike. Each sample is its own group by
    default.
    """
    predicted = probabilities.argmax(axis=1)
    per_class: dict[int, dict[str, float]] = {}
    for k in np.unique(labels):
        truth, said = labels == k, predicted == k
        hits = int((truth & said).sum())
        scores = {"recall": hits / truth.sum(), "f1": 2 * hits / (truth.sum() + said.sum())}
        if not truth.all():
            scores["auroc"], scores["auprc"] = _areas(truth, probabilities[:, k])
        per_class[int(k)] = {name: float(score) for name, score in scores.items()}

    def figures(at: NDArray[np.int64]) -> NDArray[np.float64]:
        y, p = labels[at], probabilities[at]
        return _figures(y, p, p.argmax(axis=1))

    names = ("accuracy", "balanced_accuracy", "f1", "auroc", "auprc")
    value = figures(np.arange(len(labels)))
    rng = np.random.default_rng(seed)
    members = _members(groups if groups is not None else np.arange(len(labels)))
    draws = np.stack(
        [
            figures(
                np.concatenate([members[g] for g in rng.integers(len(members), size=len(members))])
            )
            for _ in range(_BOOTSTRAPS)
        ]
    )
    low, high = np.nanpercentile(draws, (2.5, 97.5), axis=0)
    found: dict[str, Any] = {
        name: Interval(value=float(v), low=float(a), high=float(b))
        for name, v, a, b in zip(names, value, low, high, strict=True)
    }
    return found | {"per_class": per_class}


def reliability(
    labels: NDArray[np.int64], probabilities: NDArray[np.float32], *, bins: int = N_BINS
) -> Reliability:
    """Compare how sure predictions are with how often they are right.

    `labels`: `(N,)` true classes. `probabilities`: `(N, K)`.
    """
    sure = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    place = np.minimum((sure * bins).astype(int), bins - 1)
    count = np.bincount(place, minlength=bins)
    some = np.where(count > 0, count, np.nan)
    return Reliability(
        confidence=np.bincount(place, weights=sure, minlength=bins) / some,
        accuracy=np.bincount(place, weights=right, minlength=bins) / some,
        count=count,
    )


def _figures(
    y: NDArray[np.int64], p: NDArray[np.float32], predicted: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Accuracy, balanced accuracy, F1, AUROC and AUPRC, by sorting once a class."""
    recall, f1, auroc, auprc = [], [], [], []
    for k in np.unique(y):
        truth, said = y == k, predicted == k
        hits = int((truth & said).sum())
        recall.append(hits / truth.sum())
        f1.append(2 * hits / (truth.sum() + said.sum()))
        if truth.all():
            continue
        area, precision = _areas(truth, p[:, k])
        auroc.append(area)
        auprc.append(precision)
    mean = [float(np.mean(x)) if x else np.nan for x in (recall, f1, auroc, auprc)]
    return np.array([float((predicted == y).mean()), *mean])


def _areas(truth: NDArray[np.bool_], score: NDArray[np.float32]) -> tuple[float, float]:
    """Areas under the ROC and the precision-recall curve; ties count as one threshold."""
    order = np.argsort(-score, kind="stable")
    hits = np.cumsum(truth[order])
    misses = np.cumsum(~truth[order])
    last = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)
    hits, misses = hits[last], misses[last]
    recall, fall_out = hits / hits[-1], misses / misses[-1]
    precision = hits / (hits + misses)
    area = float(np.trapezoid(np.append(0, recall), np.append(0, fall_out)))
    return area, float((np.diff(np.append(0, recall)) * precision).sum())


def _members(groups: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    order = np.argsort(groups, kind="stable")
    _, first = np.unique(groups[order], return_index=True)
    return np.split(order, first[1:])
