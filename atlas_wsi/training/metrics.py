"""How good predictions of tiles are, and how good color alone would be."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from atlas_wsi.models.model import Model
    from atlas_wsi.progress import Progress


def predict_tiles(
    model: Model, images: NDArray[np.uint8], *, batch: int = 32, progress: Progress | None = None
) -> NDArray[np.float32]:
    """Predict tiles one by one: the mean of the class probabilities of a tile's cells.

    `images`: uint8 `(N, rows, cols, 3)` at the model's resolution. Returns: float32 `(N, classes)`.
    """
    logits, valid = tile_logits(model, images, batch=batch, progress=progress)
    return mean_probabilities(logits, valid, temperature=model.card.temperature)


def mean_probabilities(
    logits: NDArray[np.float32], valid: NDArray[np.bool_], *, temperature: float = 1.0
) -> NDArray[np.float32]:
    """Average the class probabilities of the cells of tiles.

    `logits`: `(N, classes, rows, cols)`. `valid`: bool `(N, rows, cols)`. Returns: float32 `(N,
    classes)`.
    """
    p = torch.softmax(torch.from_numpy(logits) / temperature, dim=1).numpy()
    inside = valid[:, None]
    mean: NDArray[np.float32] = (p * inside).sum(axis=(2, 3)) / inside.sum(axis=(2, 3))
    return mean.astype(np.float32)


def tile_logits(
    model: Model, images: NDArray[np.uint8], *, batch: int = 32, progress: Progress | None = None
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Run a model on tiles one by one.

    `images`: uint8 `(N, rows, cols, 3)` at the model's resolution. Returns: Logits of the cells,
    float32 `(N, classes, rows, cols)`, and which are valid.
    """
    device = model.encoder.fc.weight.device
    out, inside = [], []
    with torch.inference_mode():
        for start in range(0, len(images), batch):
            part = torch.from_numpy(np.ascontiguousarray(images[start : start + batch]))
            x_BCYX = model.normalize(part.to(device))
            found = model(x_BCYX.to(model.encoder.fc.weight.dtype))
            out.append(found.cells.float().cpu().numpy())
            inside.append(found.valid.cpu().numpy())
            if progress is not None:
                progress("evaluate", min(start + batch, len(images)), len(images))
    return np.concatenate(out), np.concatenate(inside)


def confusion(
    labels: NDArray[np.int64], predicted: NDArray[np.int64], n_classes: int
) -> NDArray[np.int64]:
    """Count tiles by true and predicted class.

    Returns: `(classes, classes)`, true class by row.
    """
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
    """Describe tiles by their colors alone.

    `images`: uint8 `(N, rows, cols, 3)`. Returns: float32 `(N, 21)`: mean, deviation and five
    percentiles of each channel.
    """
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
