"""Cross-validation: one model per fold, figures over all data, then a model of all data."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from atlas_wsi.errors import ArgumentError, CheckpointMismatchError
from atlas_wsi.files import write_csv, write_text
from atlas_wsi.models.checkpoints import digest_of
from atlas_wsi.models.model import Model
from atlas_wsi.training import distributed
from atlas_wsi.training.cards import BASELINES, folds_text
from atlas_wsi.training.evaluation import measure, predict_logits
from atlas_wsi.training.history import History
from atlas_wsi.training.metrics import mean_probabilities
from atlas_wsi.training.recipe import Recipe, TrainOptions
from atlas_wsi.training.split import fold_split, make_folds, table_split
from atlas_wsi.training.train import fit, initial_weights, save

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from atlas_wsi.progress import CancelToken, Progress
    from atlas_wsi.training.data.labeled import Labeled, LabeledData
    from atlas_wsi.training.evaluation import Evaluation
    from atlas_wsi.training.recipe import CardSpec

_FORMAT = "atlas-wsi folds 1"
_MAX_NAME = 56


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """The model of a fold, and its figures on the data that it did not see."""

    path: Path
    """The model's file."""
    tiles: int
    """Tiles or slides that were held out."""
    groups: int
    """Groups that were held out."""
    metrics: Mapping[str, float]
    """Figures of the card."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CrossValidation:
    """The models of the folds, and their predictions of all data together."""

    folds: tuple[Fold, ...]
    """The models, in order."""
    fold_of: NDArray[np.int64]
    """`(N,)` the fold that each tile or slide was held out in."""
    probabilities: NDArray[np.float32]
    """`(N, classes)` from the model that did not see the group."""
    pooled: Evaluation
    """Figures over the tiles of all folds; their intervals are over groups."""

    def mean_and_sd(self) -> dict[str, tuple[float, float]]:
        """Return mean and standard deviation over the folds of each figure.

        Returns
        -------
        dict
            Mean and standard deviation by the name of the figure.
        """
        names = self.folds[0].metrics
        rows = {name: [fold.metrics[name] for fold in self.folds] for name in names}
        return {
            name: (float(np.mean(row)), float(np.std(row, ddof=1))) for name, row in rows.items()
        }

    def figures(self) -> dict[str, float]:
        """Return the figures for the card of a model of all data.

        Returns
        -------
        dict
            Figures over all data, and their deviations over the folds.
        """
        over_folds = self.mean_and_sd()
        figures = dict(self.pooled.metrics) | {"ece": self.pooled.reliability.ece}
        others = ("amid_", *BASELINES)
        figures |= {k: v for k, (v, _) in over_folds.items() if k.startswith(others)}
        for name in ("accuracy", "balanced_accuracy"):
            figures[f"{name}_sd_over_folds"] = over_folds[name][1]
        return {name: round(value, 4) for name, value in figures.items()}

    def write(self, out: Path, data: Labeled) -> tuple[Path, Path, Path]:
        """Write the figures, one row per fold, and the prediction of every tile or slide.

        Parameters
        ----------
        out
            The model file; the others are named for it.
        data
            The data that was cross-validated.

        Returns
        -------
        tuple of Path
            ``.folds.json``, ``.folds.csv`` and ``.predictions.csv``.
        """
        over_folds = self.mean_and_sd()
        facts = {
            "format": _FORMAT,
            "tiles": len(data),
            "grouped": data.is_grouped,
            "folds": [
                {
                    "model": fold.path.name,
                    "tiles": fold.tiles,
                    "groups": fold.groups,
                    "metrics": dict(fold.metrics),
                }
                for fold in self.folds
            ],
            "mean": {name: mean for name, (mean, _) in over_folds.items()},
            "sd": {name: sd for name, (_, sd) in over_folds.items()},
            "pooled": self.pooled.as_dict(),
        }
        whole, table, rows = (
            out.with_suffix(f".{name}") for name in ("folds.json", "folds.csv", "predictions.csv")
        )
        write_text(whole, json.dumps(facts, indent=2))
        lines: list[list[object]] = [
            [k, fold.tiles, fold.groups, *fold.metrics.values()]
            for k, fold in enumerate(self.folds)
        ]
        lines.append(["mean", "", "", *(f"{mean:.4f}" for mean, _ in over_folds.values())])
        lines.append(["sd", "", "", *(f"{sd:.4f}" for _, sd in over_folds.values())])
        write_csv(table, ["fold", "tiles", "groups", *over_folds], lines)
        header = ["path", "group", "fold", "class", "predicted", *data.classes]
        predictions = (
            [
                data.paths[i],
                data.groups[i],
                self.fold_of[i],
                data.classes[data.labels[i]],
                data.classes[p.argmax()],
                *(f"{value:.4f}" for value in p),
            ]
            for i, p in enumerate(self.probabilities)
        )
        write_csv(rows, header, predictions)
        return whole, table, rows


def cross_validate(
    data: LabeledData,
    spec: CardSpec,
    recipe: Recipe | None = None,
    options: TrainOptions | None = None,
    *,
    n_folds: int = 5,
    history: History | None = None,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> tuple[Model, CrossValidation]:
    """Train one model per fold, measure each on its fold, and train a final one on all data.

    Parameters
    ----------
    data
        As of `atlas_wsi.train`; groups are kept together in one fold.
    spec
        Name, kind and resolution of the model.
    recipe
        How the models are trained.
    options
        What is written, and where the weights start; `TrainOptions.out` is required. The models of
        the folds are written as ``NAME.foldK.safetensors``. `TrainOptions.test_fraction` is not
        used.
    n_folds
        Number of folds, 2 or more.
    history
        Collects the learning curve of the final model.
    progress
        Called with a text, the steps done and their number.
    cancel
        Stops the training when another thread cancels it.

    Returns
    -------
    model : Model
        Trained on all data; the figures in its card are those of the folds.
    cross_validation : CrossValidation
        The folds, and the prediction of everything by the model that did not see its group.

    Raises
    ------
    ArgumentError
        If recipe, options and `n_folds` contradict each other.
    CheckpointMismatchError
        If models of folds exist that were trained with other arguments or data, and
        `TrainOptions.overwrite` is false. Otherwise completed folds are not trained again.
    """
    recipe, options = recipe or Recipe(), options or TrainOptions()
    if n_folds < 2:
        raise ArgumentError(f"The number of folds is {n_folds}, expected 2 or more.")
    if options.out is None:
        raise ArgumentError("A cross-validation needs a model file to write.")
    if table_split(data) is not None:
        raise ArgumentError("The table's column split replaces folds and the validation fraction.")
    history = history if history is not None else History(tensorboard=options.tensorboard)
    with distributed.joined():
        options.check(recipe)
        ready = data.prepared(mpp=spec.mpp, seed=recipe.seed, progress=progress)
        facts = {
            "folds": n_folds,
            "validation_fraction": options.validation_fraction,
            "fingerprint": _fingerprint(ready, spec, recipe, options, n_folds),
        }
        result = _train_folds(ready, spec, recipe, options, facts, history, progress, cancel)
        if distributed.rank() == 0:
            result.write(options.path, ready)
        validation = options.validation_fraction
        model = fit(
            ready,
            fold_split(ready, result.fold_of, None, validation=validation, seed=recipe.seed),
            spec,
            folds_text(ready, n_folds, recipe.seed, fold=None),
            recipe,
            options,
            facts=facts,
            history=history,
            progress=_named(progress, f"all {ready.unit}"),
            cancel=cancel,
        )
        counts = tuple(tuple(row) for row in result.pooled.confusion.tolist())
        update = {"metrics": result.figures(), "confusion": counts}
        model.card = model.card.model_copy(update=update)
        save(model, options, history)
    return model, result


def _train_folds(
    data: Labeled,
    spec: CardSpec,
    recipe: Recipe,
    options: TrainOptions,
    facts: Mapping[str, Any],
    history: History,
    progress: Progress | None,
    cancel: CancelToken | None,
) -> CrossValidation:
    n, validation = facts["folds"], options.validation_fraction
    fold_of = make_folds(data, n=n, seed=recipe.seed)
    probabilities = np.empty((len(data), len(data.classes)), np.float32)
    folds = []
    for k in range(n):
        path = options.path.with_name(f"{options.path.stem}.fold{k}.safetensors")
        own = replace(options, out=path)
        parts = fold_split(data, fold_of, k, validation=validation, seed=recipe.seed)
        model = _completed(path, facts["fingerprint"], overwrite=options.overwrite)
        if distributed.broadcast(model is None):
            curve = history.below(f"fold{k}")
            model = fit(
                data,
                parts,
                replace(spec, name=f"{spec.name[:_MAX_NAME]}.fold{k}"),
                folds_text(data, n, recipe.seed, fold=k),
                recipe,
                own,
                facts={**facts, "fold": k},
                history=curve,
                progress=_named(progress, f"fold {k + 1} of {n}"),
                cancel=cancel,
            )
            save(model, own, curve)
        fold, probabilities[parts.test] = distributed.broadcast(
            _predict_fold(model, path, data, parts.test)
        )
        folds.append(fold)
    pooled = measure(data.classes, data.labels, probabilities, data.groups, unit=data.unit)
    return CrossValidation(
        folds=tuple(folds), fold_of=fold_of, probabilities=probabilities, pooled=pooled
    )


def _predict_fold(
    model: Model | None, path: Path, data: Labeled, test: NDArray[np.int64]
) -> tuple[Fold, NDArray[np.float32]]:
    """Predict the test part of a fold; only the result of the first process is used."""
    groups = len({data.groups[i] for i in test})
    fold = Fold(path=path, tiles=len(test), groups=groups, metrics={})
    if model is None or distributed.rank() != 0:
        return fold, np.empty(0, np.float32)
    fold = replace(fold, metrics=dict(model.card.metrics))
    logits, valid = predict_logits(model, data.subset(test))
    return fold, mean_probabilities(logits, valid, temperature=model.card.temperature)


def _completed(path: Path, fingerprint: str, *, overwrite: bool) -> Model | None:
    """Load the model of a completed fold; None if it has to be trained."""
    if not path.is_file():
        return None
    model = Model.load(path)
    if model.card.training.get("fingerprint") == fingerprint:
        return model
    if overwrite:
        return None
    raise CheckpointMismatchError(
        f"{path} is of a training with other arguments or other data.",
        hint="Replace it with --overwrite, or repeat the earlier arguments.",
    )


def _fingerprint(
    data: Labeled, spec: CardSpec, recipe: Recipe, options: TrainOptions, n: int
) -> str:
    """Return a digest of all that decides the result of a training."""
    arguments = [
        recipe.as_dict() | data.arguments,
        spec.name,
        spec.mpp or data.mpp,
        spec.domain,
        n,
        options.validation_fraction,
        options.dtype,
        data.classes,
        data.groups,
        data.labels.tolist(),
    ]
    digest = hashlib.blake2b(json.dumps(arguments).encode(), digest_size=12)
    digest.update(np.ascontiguousarray(data.images).data)
    start = initial_weights(recipe, options)
    if start is not None:
        digest.update(digest_of(start.weights).encode())
    return digest.hexdigest()


def _named(progress: Progress | None, name: str) -> Progress | None:
    if progress is None:
        return None

    def report(text: str, done: int, total: int) -> None:
        progress(f"{name}: {text}", done, total)

    return report
