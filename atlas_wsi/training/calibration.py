"""One temperature that makes a model's probabilities honest.

Source: Guo et al. 2017 (arXiv 1706.04599), section 4.2.
"""

# N tiles, K classes, Y rows, X columns of cells

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from atlas_wsi.training.metrics import mean_probabilities

if TYPE_CHECKING:
    from numpy.typing import NDArray

FEWEST = 10
"""Tiles or slides below which a temperature is not fitted."""

_LEAST, _MOST = 0.05, 20.0


def fit_temperature(
    logits: NDArray[np.float32], valid: NDArray[np.bool_], labels: NDArray[np.int64]
) -> float:
    """Find the temperature under which the true classes are most likely.

    `logits`: `(N, K, Y, X)` of the cells of tiles, from `atlas_wsi.training.metrics.tile_logits`.
    `valid`: bool `(N, Y, X)`. `labels`: `(N,)` true classes. Tiles that the model was neither
    trained nor will be measured on.
    """
    from scipy.optimize import minimize_scalar

    rows = np.arange(len(labels))

    def surprise(log_t: float) -> float:
        p = mean_probabilities(logits, valid, temperature=float(np.exp(log_t)))
        return -float(np.log(np.maximum(p[rows, labels], 1e-12)).mean())

    found = minimize_scalar(
        surprise, bounds=(np.log(_LEAST), np.log(_MOST)), method="bounded", options={"xatol": 1e-4}
    )
    return float(np.exp(found.x))
