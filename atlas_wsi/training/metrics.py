"""Figures of predictions: accuracy, intervals, calibration, and what color alone would give."""

# N samples, K classes, Y rows, X columns of cells

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray

MIN_CALIBRATION = 10
"""Tiles or slides below which a temperature is not fitted."""
N_BINS = 15
_BOOTSTRAPS = 1000
_MIN_TEMPERATURE, _MAX_TEMPERATURE = 0.05, 20.0


def mean_probabilities(
    logits: NDArray[np.float32], valid: NDArray[np.bool_], *, temperature: float = 1.0
) -> NDArray[np.float32]:
    """Average the class probabilities over the valid cells of tiles, to `(N, classes)`."""
    p = torch.softmax(torch.from_numpy(logits) / temperature, dim=1).numpy()
    inside = valid[:, None]
    mean: NDArray[np.float32] = (p * inside).sum(axis=(2, 3)) / inside.sum(axis=(2, 3))
    return mean.astype(np.float32)


def confusion(
    labels: NDArray[np.int64], predicted: NDArray[np.int64], n_classes: int
) -> NDArray[np.int64]:
    """Count tiles by true class (row) and predicted class (column)."""
    flat = np.bincount(labels * n_classes + predicted, minlength=n_classes**2)
    return flat.reshape(n_classes, n_classes).astype(np.int64)


def summarize(counts: NDArray[np.int64]) -> dict[str, float]:
    """Compute accuracy, balanced accuracy and recall from a confusion matrix."""
    seen = counts.sum(axis=1)
    recall = np.diag(counts)[seen > 0] / seen[seen > 0]
    return {
        "accuracy": float(np.diag(counts).sum() / counts.sum()),
        "balanced_accuracy": float(recall.mean()),
    }


def color_features(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Describe each tile by mean, deviation and five percentiles of every channel, `(N, 21)`."""
    out = []
    for image in images:
        flat = image.reshape(-1, 3)
        spread = np.percentile(flat, (5, 25, 50, 75, 95), axis=0).ravel()
        out.append(np.concatenate([flat.mean(axis=0), flat.std(axis=0), spread]))
    return (np.asarray(out) / 255).astype(np.float32)


def color_baseline(
    train: NDArray[np.uint8],
    labels: NDArray[np.int64],
    held_out: NDArray[np.uint8],
    n_classes: int,
) -> NDArray[np.int64]:
    """Predict tiles from their colors alone, by logistic regression with squares."""
    known, asked = color_features(train), color_features(held_out)
    mean, std = known.mean(axis=0), known.std(axis=0) + 1e-6

    def prepare(x: NDArray[np.float32]) -> torch.Tensor:
        z = torch.from_numpy((x - mean) / std)
        return torch.cat([z, z.square(), torch.ones(len(z), 1)], dim=1)

    x, y = prepare(known), torch.from_numpy(labels)
    weight = torch.zeros(x.shape[1], n_classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(x @ weight, y) + 1e-3 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        return (prepare(asked) @ weight).argmax(dim=1).numpy()


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A figure and its 95% bootstrap interval."""

    value: float
    low: float
    high: float


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
    """Compute figures per class and over all, with a bootstrap that draws whole `groups`."""

    def figures(at: NDArray[np.int64]) -> NDArray[np.float64]:
        return _figures(labels[at], probabilities[at])

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
    return found | {"per_class": _per_class(labels, probabilities)}


def reliability(
    labels: NDArray[np.int64], probabilities: NDArray[np.float32], *, bins: int = N_BINS
) -> Reliability:
    """Compare how sure predictions `(N, K)` are with how often they are right."""
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


def _per_class(
    labels: NDArray[np.int64], probabilities: NDArray[np.float32]
) -> dict[int, dict[str, float]]:
    """Compute the figures of each class that occurs, by sorting once a class."""
    predicted = probabilities.argmax(axis=1)
    found: dict[int, dict[str, float]] = {}
    for k in np.unique(labels).tolist():
        truth, said = labels == k, predicted == k
        hits = int((truth & said).sum())
        scores = {
            "recall": float(hits / truth.sum()),
            "f1": float(2 * hits / (truth.sum() + said.sum())),
        }
        if not truth.all():
            scores["auroc"], scores["auprc"] = _areas(truth, probabilities[:, k])
        found[k] = scores
    return found


def _figures(y: NDArray[np.int64], p: NDArray[np.float32]) -> NDArray[np.float64]:
    """Accuracy, balanced accuracy, F1, AUROC and AUPRC."""
    scores = _per_class(y, p).values()
    means = [
        np.mean([score[name] for score in scores if name in score] or [np.nan])
        for name in ("recall", "f1", "auroc", "auprc")
    ]
    return np.array([(p.argmax(axis=1) == y).mean(), *means])


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


def fit_temperature(
    logits: NDArray[np.float32], valid: NDArray[np.bool_], labels: NDArray[np.int64]
) -> float:
    """Find the temperature of the highest likelihood (arXiv 1706.04599, section 4.2)."""
    from scipy.optimize import minimize_scalar

    rows = np.arange(len(labels))

    def surprise(log_t: float) -> float:
        p = mean_probabilities(logits, valid, temperature=float(np.exp(log_t)))
        return -float(np.log(np.maximum(p[rows, labels], 1e-12)).mean())

    found = minimize_scalar(
        surprise,
        bounds=(np.log(_MIN_TEMPERATURE), np.log(_MAX_TEMPERATURE)),
        method="bounded",
        options={"xatol": 1e-4},
    )
    return float(np.exp(found.x))
