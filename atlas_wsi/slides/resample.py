"""Antialiased resampling whose result depends on absolute positions only.

Two separable passes of a triangle filter, each one sparse matrix of weights. Pillow's ``resize``
is the same filter, but it takes its box in single precision and rounds between the passes, so
that two halves of an area would not join exactly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy.sparse import csr_array


def support_of(start: float, scale: float, n_out: int) -> tuple[int, int]:
    """Return which source pixels a run of output pixels needs."""
    radius = max(scale, 1.0)
    first = np.floor(start + 0.5 * scale - radius)
    last = np.ceil(start + (n_out - 0.5) * scale + radius)
    return int(first), int(last)


def _weights(start: float, scale: float, n_out: int, offset: int, n_in: int) -> csr_array:
    """Weights `(n_out, n_in)`, float32; source pixel `offset` is column 0."""
    from scipy.sparse import csr_array

    radius = max(scale, 1.0)
    center = start + (np.arange(n_out) + 0.5) * scale
    n_taps = int(np.ceil(2 * radius)) + 1
    taps = np.floor(center - radius + 0.5).astype(np.int64)[:, None] + np.arange(n_taps)
    weight = np.maximum(0.0, 1.0 - np.abs(taps + 0.5 - center[:, None]) / radius)
    weight /= weight.sum(axis=1, keepdims=True)
    column = np.clip(taps - offset, 0, n_in - 1)  # what is clipped has no weight
    indptr = np.arange(0, n_out * n_taps + 1, n_taps, dtype=np.int32)
    entries = (weight.astype(np.float32).ravel(), column.astype(np.int32).ravel(), indptr)
    return csr_array(entries, shape=(n_out, n_in))


def resample(
    source: NDArray[Any],
    offset: tuple[int, int],
    *,
    start: tuple[float, float],
    scale: tuple[float, float],
    shape: tuple[int, int],
) -> NDArray[np.float32]:
    """Return float32 output pixels, not rounded, as weighted means of what `support_of` asks for.

    `offset` is the place of ``source[0, 0]`` on the source level; all pairs are `(y, x)`.
    """
    rows, cols, channels = source.shape
    down = _weights(start[0], scale[0], shape[0], offset[0], rows)
    across = _weights(start[1], scale[1], shape[1], offset[1], cols)
    result = np.empty((*shape, channels), np.float32)
    for channel in range(channels):  # planes of one channel are much faster to transpose
        reduced = down @ source[..., channel].astype(np.float32)
        result[..., channel] = (across @ np.ascontiguousarray(reduced.T)).T
    return result


def halve(source: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return means of 2 x 2 pixels; an odd last row or column stands for itself."""
    rows, cols, _ = source.shape
    if rows % 2 or cols % 2:
        source = np.pad(source, ((0, rows % 2), (0, cols % 2), (0, 0)), mode="edge")
    below = source[::2] + source[1::2]  # sums of slices: many times as fast as a mean over axes
    return np.asarray((below[:, ::2] + below[:, 1::2]) * np.float32(0.25))


def as_dtype(values: NDArray[np.float32], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Round to a sample type."""
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        values = np.clip(np.rint(values), info.min, info.max)
    return np.ascontiguousarray(values, dtype=dtype)
