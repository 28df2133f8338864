"""Figures of predictions: accuracy, intervals, calibration, and what color alone would give."""

# N samples, D draws of them, K classes, Y rows, X columns of cells

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
_MAX_WEIGHTS = 2**20  # of samples, in draws that are measured at once
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
        return torch.cat([z, z.square()], dim=1)

    weight = fit_logistic(prepare(known), torch.from_numpy(labels), n_classes)
    return (prepare(asked) @ weight[:-1] + weight[-1]).argmax(dim=1).numpy()


def fit_logistic(
    x_NC: torch.Tensor, labels: torch.Tensor, n_classes: int, *, decay: float = 1e-3
) -> torch.Tensor:
    """Fit a logistic regression: weights `(C + 1, K)`, the last row is the bias."""
    x = torch.cat([x_NC, torch.ones(len(x_NC), 1)], dim=1)
    weight = torch.zeros(x.shape[1], n_classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(x @ weight, labels)
        loss = loss + decay * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return weight.detach()


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
    names = ("accuracy", "balanced_accuracy", "f1", "auroc", "auprc")
    one = np.ones((1, len(labels)))
    rng = np.random.default_rng(seed)
    group_N = np.unique(one[0].cumsum() if groups is None else groups, return_inverse=True)[1]
    n_groups = int(group_N.max()) + 1
    at_once, draws = max(1, _MAX_WEIGHTS // len(labels)), []
    for first in range(0, _BOOTSTRAPS, at_once):
        n = min(at_once, _BOOTSTRAPS - first)
        drawn = rng.integers(n_groups, size=(n, n_groups)) + n_groups * np.arange(n)[:, None]
        times = np.bincount(drawn.ravel(), minlength=n * n_groups).reshape(n, n_groups)
        draws.append(_figures(labels, probabilities, times[:, group_N].astype(float)))
    low, high = np.nanpercentile(np.concatenate(draws), (2.5, 97.5), axis=0)
    value = _figures(labels, probabilities, one)[0]
    found: dict[str, Any] = {
        name: Interval(value=float(v), low=float(a), high=float(b))
        for name, v, a, b in zip(names, value, low, high, strict=True)
    }
    per_class = _per_class(labels, probabilities, one)
    return found | {
        "per_class": {
            k: {name: float(of[0, k]) for name, of in per_class.items() if not np.isnan(of[0, k])}
            for k in np.unique(labels).tolist()
        }
    }


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
    labels: NDArray[np.int64], probabilities: NDArray[np.float32], weights_DN: NDArray[np.float64]
) -> dict[str, NDArray[np.float64]]:
    """Compute figures `(D, K)`; NaN where a draw lacks the class, or all others."""
    predicted = probabilities.argmax(axis=1)
    shape = (len(weights_DN), probabilities.shape[1])
    found = {name: np.full(shape, np.nan) for name in ("recall", "f1", "auroc", "auprc")}
    for k in np.unique(labels):
        truth, said = labels == k, predicted == k
        hits, positives, found_positives = (weights_DN @ x for x in (truth & said, truth, said))
        some = np.where(positives > 0, positives, np.nan)
        found["recall"][:, k] = hits / some
        found["f1"][:, k] = 2 * hits / (some + found_positives)
        areas = _areas(truth, probabilities[:, k], weights_DN)
        found["auroc"][:, k], found["auprc"][:, k] = areas
    return found


def _figures(
    labels: NDArray[np.int64], probabilities: NDArray[np.float32], weights_DN: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Accuracy, balanced accuracy, F1, AUROC and AUPRC, `(D, 5)`."""
    right = probabilities.argmax(axis=1) == labels
    columns = [weights_DN @ right / weights_DN.sum(axis=1)]
    for of in _per_class(labels, probabilities, weights_DN).values():
        known = np.isfinite(of).sum(axis=1)
        columns.append(np.nansum(of, axis=1) / np.where(known > 0, known, np.nan))
    return np.stack(columns, axis=1)


def _areas(
    truth: NDArray[np.bool_], score: NDArray[np.float32], weights_DN: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Areas under the ROC and the precision-recall curve; ties count as one threshold."""
    order = np.argsort(-score, kind="stable")
    last = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)
    sorted_DN = weights_DN[:, order]
    hits = np.cumsum(sorted_DN * truth[order], axis=1)[:, last]
    misses = np.cumsum(sorted_DN * ~truth[order], axis=1)[:, last]
    recall, fall_out = (
        np.pad(x / np.where(x[:, -1:] > 0, x[:, -1:], np.nan), ((0, 0), (1, 0)))
        for x in (hits, misses)
    )
    precision = hits / np.maximum(hits + misses, 1)
    area = np.asarray(np.trapezoid(recall, fall_out, axis=1))
    average = (np.diff(recall, axis=1) * precision).sum(axis=1)
    return area, np.where(misses[:, -1] > 0, average, np.nan)


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
