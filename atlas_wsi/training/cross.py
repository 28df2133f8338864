"""Cross-validation: a model a fold, figures over all tiles, then a model of all tiles."""

from __future__ import annotations

import csv
import hashlib
import json
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from atlas_wsi.errors import CheckpointMismatchError
from atlas_wsi.models.model import Model
from atlas_wsi.training import parallel
from atlas_wsi.training.cards import folds_text, write_card
from atlas_wsi.training.evaluation import measure
from atlas_wsi.training.fitting import Parts, fit
from atlas_wsi.training.folds import make_folds
from atlas_wsi.training.history import History
from atlas_wsi.training.metrics import mean_probabilities
from atlas_wsi.training.tiles import split

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from atlas_wsi.models.start import Start
    from atlas_wsi.progress import CancelToken, Progress
    from atlas_wsi.training.evaluation import Evaluation
    from atlas_wsi.training.fitting import About
    from atlas_wsi.training.recipe import Recipe
    from atlas_wsi.training.tiles import Labeled

_FORMAT = "atlas-wsi folds 1"
_LONGEST_NAME = 56


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """One of the models, and how good it is on the tiles it did not see."""

    path: Path
    """The model's file."""
    tiles: int
    """How many tiles were held out."""
    groups: int
    """How many groups they are of."""
    metrics: Mapping[str, float]
    """Figures of the card."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CrossValidation:
    """What the folds say together."""

    folds: tuple[Fold, ...]
    """The models, in order."""
    fold_of: NDArray[np.int64]
    """`(N,)` the fold that each tile was held out in."""
    probabilities: NDArray[np.float32]
    """`(N, classes)` from the model that did not see the tile's group."""
    pooled: Evaluation
    """Figures over the tiles of all folds; their intervals are over groups."""

    def spread(self) -> dict[str, tuple[float, float]]:
        """Return mean and standard deviation over the folds of each figure."""
        names = self.folds[0].metrics
        rows = {name: [fold.metrics[name] for fold in self.folds] for name in names}
        return {
            name: (float(np.mean(row)), float(np.std(row, ddof=1))) for name, row in rows.items()
        }

    def figures(self) -> dict[str, float]:
        """Return the figures for the card of a model of all tiles."""
        spread = self.spread()
        found = dict(self.pooled.metrics) | {"ece": self.pooled.reliability.ece}
        found |= {k: mean for k, (mean, _) in spread.items() if k.startswith("colour_baseline_")}
        for name in ("accuracy", "balanced_accuracy"):
            found[f"{name}_sd_over_folds"] = spread[name][1]
        return {name: round(value, 4) for name, value in found.items()}

    def write(self, out: Path, tiles: Labeled) -> tuple[Path, Path, Path]:
        """Write the figures, a row a fold, and the prediction of every tile."""
        spread = self.spread()
        data = {
            "format": _FORMAT,
            "tiles": len(tiles),
            "grouped": tiles.is_grouped,
            "folds": [
                {
                    "model": fold.path.name,
                    "tiles": fold.tiles,
                    "groups": fold.groups,
                    "metrics": dict(fold.metrics),
                }
                for fold in self.folds
            ],
            "mean": {name: mean for name, (mean, _) in spread.items()},
            "sd": {name: sd for name, (_, sd) in spread.items()},
            "pooled": self.pooled.as_dict(),
        }
        whole = out.with_suffix(".folds.json")
        whole.write_text(json.dumps(data, indent=2), encoding="utf-8")
        table, rows = out.with_suffix(".folds.csv"), out.with_suffix(".predictions.csv")
        with table.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["fold", "tiles", "groups", *spread])
            for k, fold in enumerate(self.folds):
                writer.writerow([k, fold.tiles, fold.groups, *fold.metrics.values()])
            writer.writerow(["mean", "", "", *(f"{mean:.4f}" for mean, _ in spread.values())])
            writer.writerow(["sd", "", "", *(f"{sd:.4f}" for _, sd in spread.values())])
        with rows.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "group", "fold", "class", "predicted", *tiles.classes])
            for i, p in enumerate(self.probabilities):
                writer.writerow(
                    [
                        tiles.paths[i],
                        tiles.groups[i],
                        self.fold_of[i],
                        tiles.classes[tiles.labels[i]],
                        tiles.classes[p.argmax()],
                        *(f"{value:.4f}" for value in p),
                    ]
                )
        return whole, table, rows


def parts_of_fold(
    tiles: Labeled, fold_of: NDArray[np.int64], fold: int | None, *, validation: float, seed: int
) -> Parts:
    """Say what each tile is for in a fold."""
    known = np.flatnonzero(fold_of != (-1 if fold is None else fold))
    asked = np.flatnonzero(fold_of == (-1 if fold is None else fold))
    if not validation:
        return Parts(known=known, chosen=np.empty(0, np.int64), asked=asked)
    rest, chosen = split(tiles.subset(known), held_out=validation, seed=seed + 1)
    return Parts(known=known[rest], chosen=known[chosen], asked=asked)


def train_folds(
    tiles: Labeled,
    about: About,
    recipe: Recipe,
    *,
    n: int,
    out: Path,
    validation: float = 0.0,
    facts: Mapping[str, Any] | None = None,
    stored: torch.dtype = torch.float32,
    init: Model | Start | None = None,
    overwrite: bool = False,
    history: History | None = None,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> tuple[Model, CrossValidation]:
    """Train a model a fold, measure each on its fold, and train one on all tiles.

    Every fold's model is kept as ``NAME.foldK.safetensors`` with its card and curve. A run that
    was killed goes on: folds that are there, of the same arguments and tiles, are not trained
    again.
    """
    history = history if history is not None else History()
    fold_of = make_folds(tiles, n=n, seed=recipe.seed)
    mark = _fingerprint(tiles, about, recipe, n, validation, stored, init)
    facts = {**(facts or {}), "folds": n, "validation": validation, "fingerprint": mark}
    train = partial(fit, tiles, recipe=recipe, stored=stored, init=init, cancel=cancel)
    probabilities = np.empty((len(tiles), len(tiles.classes)), np.float32)
    folds = []
    for k in range(n):
        path = out.with_name(f"{out.stem}.fold{k}.safetensors")
        parts = parts_of_fold(tiles, fold_of, k, validation=validation, seed=recipe.seed)
        model = _find(path, mark, overwrite=overwrite)
        if parallel.share(model is None):
            curve = history.below(f"fold{k}")
            model = train(
                parts=parts,
                about=_about(about, tiles, n, recipe.seed, fold=k),
                facts=facts | {"fold": k},
                checkpoint=path.with_suffix(".resume.pt"),
                history=curve,
                progress=_named(progress, f"fold {k + 1} of {n}"),
            )
            if parallel.rank() == 0:
                write_card(model, path)
                curve.write(path)
                model.save(path, dtype=stored)  # last: a fold whose model is there is done
        fold, probabilities[parts.asked] = parallel.share(_ask(model, path, tiles, parts.asked))
        folds.append(fold)
    pooled = measure(tiles.classes, tiles.labels, probabilities, tiles.groups)
    result = CrossValidation(
        folds=tuple(folds), fold_of=fold_of, probabilities=probabilities, pooled=pooled
    )
    if parallel.rank() == 0:
        result.write(out, tiles)
    model = train(
        parts=parts_of_fold(tiles, fold_of, None, validation=validation, seed=recipe.seed),
        about=_about(about, tiles, n, recipe.seed, fold=None),
        facts=facts,
        checkpoint=out.with_suffix(".resume.pt"),
        history=history,
        progress=_named(progress, f"all {tiles.unit}"),
    )
    counts = tuple(tuple(row) for row in pooled.confusion.tolist())
    model.card = model.card.model_copy(update={"metrics": result.figures(), "confusion": counts})
    return model, result


def _about(about: About, tiles: Labeled, n: int, seed: int, *, fold: int | None) -> About:
    name = about.name if fold is None else f"{about.name[:_LONGEST_NAME]}.fold{fold}"
    how = folds_text(tiles, n, seed, fold=fold)
    return replace(about, name=name, texts={**(about.texts or {}), "split": how})


def _ask(
    model: Model | None, path: Path, tiles: Labeled, asked: NDArray[np.int64]
) -> tuple[Fold, NDArray[np.float32]]:
    """Predict the held-out tiles of a fold; only the first process's answer counts."""
    groups = len({tiles.groups[i] for i in asked})
    if model is None or parallel.rank() != 0:
        return Fold(path=path, tiles=len(asked), groups=groups, metrics={}), np.empty(0, np.float32)
    fold = Fold(path=path, tiles=len(asked), groups=groups, metrics=dict(model.card.metrics))
    logits, valid = tiles.subset(asked).logits(model)
    return fold, mean_probabilities(logits, valid, temperature=model.card.temperature)


def _find(path: Path, mark: str, *, overwrite: bool) -> Model | None:
    """Read the model of a fold that is done; None if it has to be trained."""
    if not path.is_file():
        return None
    model = Model.load(path)
    if model.card.training.get("fingerprint") == mark:
        return model
    if overwrite:
        return None
    raise CheckpointMismatchError(
        f"{path} is of a training with other arguments or other tiles.",
        hint="--overwrite replaces it; or give the arguments of before.",
    )


def _fingerprint(
    tiles: Labeled,
    about: About,
    recipe: Recipe,
    n: int,
    validation: float,
    stored: torch.dtype,
    init: Model | Start | None,
) -> str:
    """Name a training by all that decides its result."""
    arguments = [
        recipe.as_dict() | tiles.arguments,
        about.name,
        about.mpp,
        about.domain,
        n,
        validation,
    ]
    arguments += [str(stored), tiles.classes, tiles.groups, tiles.labels.tolist()]
    digest = hashlib.blake2b(json.dumps(arguments).encode(), digest_size=12)
    digest.update(np.ascontiguousarray(tiles.images).data)
    start = {} if init is None else init.state_dict() if isinstance(init, Model) else init.weights
    for name, value in sorted(start.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _named(progress: Progress | None, name: str) -> Progress | None:
    if progress is None:
        return None

    def report(what: str, done: int, total: int) -> None:
        progress(f"{name}: {what}", done, total)

    return report
