"""Measure models on labeled tiles, regions and slides."""

# N tiles or slides, K classes, Y rows, X columns of cells

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from atlas_wsi.errors import ArgumentError, DatasetError
from atlas_wsi.inference.predict import predict
from atlas_wsi.models.model import Model, stored_dtype
from atlas_wsi.models.registry import load_model, shipped_models
from atlas_wsi.slides.open import open_slide
from atlas_wsi.training.cards import fingerprints_of, trained_on
from atlas_wsi.training.data.labeled import LabeledTiles
from atlas_wsi.training.data.region_table import RegionTable
from atlas_wsi.training.data.slide_table import SlideTable
from atlas_wsi.training.data.tile_folder import TileFolder
from atlas_wsi.training.metrics import (
    Interval,
    Reliability,
    class_scores,
    confusion,
    fit_temperature,
    mean_probabilities,
    reliability,
    summarize,
)
from atlas_wsi.training.split import recorded_split, split_two

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from atlas_wsi.models.card import ModelCard
    from atlas_wsi.progress import Progress
    from atlas_wsi.training.data.labeled import Labeled, LabeledData

_BATCH = 32


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evaluation:
    """How good a model is on labeled tiles, cells or slides."""

    classes: tuple[str, ...]
    """Names of the classes."""
    confusion: NDArray[np.int64]
    """Counts by true class (row) and predicted class (column)."""
    metrics: Mapping[str, float]
    """``accuracy``, ``balanced_accuracy``, and ``recall NAME`` per class."""
    scores: Mapping[str, Any]
    """Figures with 95% bootstrap intervals, and ``per_class``."""
    reliability: Reliability
    """How far the probabilities can be believed."""
    temperature: float
    """What the logits were divided by."""
    unit: str = "tiles"
    """What was counted: ``"tiles"``, ``"cells"`` or ``"slides"``."""
    resampled: str = "groups"
    """What the bootstrap draws: groups, or blocks of cells."""
    measured_on: str = ""
    """What was measured, as a sentence."""
    split: str = "all"
    """``"test"`` or ``"all"``."""
    card: ModelCard | None = None
    """Card of the model."""

    def write(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write ``evaluation.json`` and ``evaluation.html`` to a folder.

        Parameters
        ----------
        folder
            Output folder; existing files are replaced.

        Returns
        -------
        list of Path
            The two files.
        """
        from atlas_wsi.training.evaluation_page import write_evaluation

        return write_evaluation(self, Path(folder))

    def as_dict(self) -> dict[str, Any]:
        """Return the figures as JSON types.

        Returns
        -------
        dict
            What `write` writes as JSON.
        """
        return {
            "classes": list(self.classes),
            self.unit: int(self.confusion.sum()),
            "metrics": dict(self.metrics),
            "confusion": self.confusion.tolist(),
            "intervals": {
                name: _plain([score.value, score.low, score.high])  # None where one class is alone
                for name, score in self.scores.items()
                if isinstance(score, Interval)
            },
            "intervals_over": self.resampled,
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


def evaluate(
    model: Model | str | os.PathLike[str],
    data: LabeledData,
    *,
    split: Literal["test", "all"] | None = None,
    fit_temperature: bool = False,
    mosaics: bool = False,
    memory: int | str = "4GB",
    progress: Progress | None = None,
) -> Evaluation:
    """Measure a model on labeled data.

    Parameters
    ----------
    model
        A model, its name or file.
    data
        Labeled tiles, regions or slides, from `read_tile_folder`, `read_regions` or
        `read_slide_table`, or `LabeledTiles`. Regions are measured by the cells of the heatmaps of
        whole slides.
    split
        ``"test"`` measures the part that was held out of training, ``"all"`` everything. By
        default the test part of the data that the model was trained on, and all of other data.
    fit_temperature
        Fit the temperature on half of the groups, and measure on the other half. If `model` is a
        file, the temperature is stored in it.
    mosaics
        Also measure borders, on mosaics of tiles: dice with context and window by window.
    memory
        Memory for the pass over a slide.
    progress
        Called with a text, the steps done and their number.

    Returns
    -------
    Evaluation
        Figures with intervals; `Evaluation.measured_on` states what was measured.

    Raises
    ------
    DatasetError
        If the data has classes that the model does not know, or the test part is requested of data
        that the model was not trained on.
    ArgumentError
        If a temperature is to be fitted for a bundled model.
    """
    if fit_temperature and str(model) in shipped_models():
        raise ArgumentError(
            f"{model} is bundled with the program.", hint="Give the path of a copy of its file."
        )
    path = None if isinstance(model, Model) else model
    loaded = model if isinstance(model, Model) else load_model(model)
    if isinstance(data, RegionTable):
        from atlas_wsi.training.segmentation import evaluate_regions

        result = evaluate_regions(
            loaded, data, split=split, fit=fit_temperature, memory=memory, progress=progress
        )
    else:
        ready = _prepared(loaded, data, memory, progress)
        result = _evaluate_items(
            loaded, ready, split=split, fit=fit_temperature, mosaics=mosaics, progress=progress
        )
    if fit_temperature and path is not None:
        loaded.save(path, dtype=stored_dtype(path))
    return replace(result, card=loaded.card)


def _evaluate_items(
    model: Model,
    data: Labeled,
    *,
    split: str | None,
    fit: bool,
    mosaics: bool,
    progress: Progress | None,
) -> Evaluation:
    chosen, split, note = choose_part(model, data, split)
    if fit:
        measured, fitted = split_two(chosen, fraction=0.5, seed=0)
        fit_temperature_on(model, chosen.subset(fitted), progress=progress)
        chosen = chosen.subset(measured)
        note += "; the half of the groups that the temperature was not fitted on"
    result = measure_data(model, chosen, progress=progress)
    if mosaics and isinstance(chosen, LabeledTiles):
        from atlas_wsi.training.segmentation import evaluate_mosaics

        borders = evaluate_mosaics(model, chosen)
        result = replace(result, metrics={**result.metrics, **borders})
    text = f"{note}: {len(chosen)} {chosen.unit} measured"
    return replace(result, measured_on=text, split=split)


def _prepared(
    model: Model, data: LabeledData, memory: int | str, progress: Progress | None
) -> Labeled:
    """Read data at the resolution of a model."""
    facts, mpp = model.card.training, model.card.mpp
    if isinstance(data, TileFolder) and data.mpp is None:
        data = replace(data, mpp=float(facts.get("zoom", 1)) * mpp)
    if isinstance(data, SlideTable):
        data = replace(data, memory=memory)
    return data.prepared(mpp=mpp, seed=int(facts.get("seed", 0)), progress=progress)


def choose_part(
    model: Model, data: Labeled, split: str | None
) -> tuple[Labeled, Literal["test", "all"], str]:
    """Return the data to measure, which part it is, and why."""
    if isinstance(data, SlideTable) and data.is_split and split != "all":
        test, note = data.part("test"), "the test slides of the table"
        if not len(test):
            raise DatasetError(
                "The table marks no slide as test.", hint="Measure on all of it with --split all."
            )
        _refuse_seen(data, test, model.card, "that the table marks as test")
        if not trained_on(model.card.training):
            note += " (the table states that they were held out, the model's card does not)"
        return data.subset(test), "test", note
    if split == "all":
        return data, "all", f"all {data.unit}"
    if split is None and not is_training_data(model.card, data):
        if isinstance(data, SlideTable):
            _refuse_seen(data, np.arange(len(data)), model.card, "in the table")
        return data, "all", "not the training data"
    return unseen_part(model, data), "test", "the test part of the training data"


def is_training_data(card: ModelCard, data: Labeled) -> bool:
    """Whether a model was trained on this data; by counts where its card has no fingerprint."""
    facts = card.training
    recorded = facts.get("data_fingerprint")
    if recorded:
        return bool(data.fingerprint == recorded)
    counts = facts.get(f"{data.unit}_by_class")
    if data.unit not in facts or "seed" not in facts:
        return False
    if "folds" in facts and "fold" not in facts:
        return sum(counts.values()) == len(data) if isinstance(counts, dict) else False
    try:
        known = recorded_split(data, facts).train
    except (DatasetError, KeyError):
        return False
    found = np.bincount(data.labels[known], minlength=len(data.classes)).tolist()
    if isinstance(counts, dict):
        return counts == dict(zip(data.classes, found, strict=True))
    return len(known) == facts[data.unit]


def unseen_part(model: Model, data: Labeled) -> Labeled:
    """Return the tiles or slides that were held out when a model was trained on them."""
    facts, unit = model.card.training, data.unit
    if "folds" in facts and "fold" not in facts:
        raise DatasetError(
            f"{model.card.name} was trained on all {unit}; its figures are those of its folds.",
            hint="Evaluate the model of a fold (.fold0.safetensors), or other data.",
        )
    if not {"seed", unit} <= set(facts) or not {"test_fraction", "fold"} & set(facts):
        raise DatasetError(
            f"The card of {model.card.name} does not state how its {unit} were split.",
            hint=f"Evaluate all {unit} with --split all.",
        )
    if not is_training_data(model.card, data):
        raise DatasetError(
            f"{model.card.name} was not trained on this data: these {len(data)} {unit} are others, "
            "so they have no test part.",
            hint=f"Evaluate all {unit} with --split all.",
        )
    return data.subset(recorded_split(data, facts).test)


def _refuse_seen(data: SlideTable, which: NDArray[np.int64], card: ModelCard, of: str) -> None:
    known, paths = trained_on(card.training), [data.paths[i] for i in which]
    seen = [path for path in paths if known.intersection(fingerprints_of([path]))]
    if seen:
        raise DatasetError(
            f"{card.name} was trained on {len(seen)} of the {len(paths)} slides {of}, such as "
            f"{seen[0]}.",
            hint="Give the table that it was trained with; --split all measures everything anyway.",
        )


def measure_data(model: Model, data: Labeled, *, progress: Progress | None = None) -> Evaluation:
    """Measure a model on labeled tiles or slides."""
    labels = class_indices(model, data.classes)[data.labels]
    names, temperature = model.card.class_names, model.card.temperature
    logits, valid = predict_logits(model, data, progress=progress)
    probabilities = mean_probabilities(logits, valid, temperature=temperature)
    return measure(
        names, labels, probabilities, data.groups, temperature=temperature, unit=data.unit
    )


def measure(
    classes: tuple[str, ...],
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float32],
    groups: Sequence[str],
    *,
    temperature: float = 1.0,
    unit: str = "tiles",
    resampled: str = "groups",
) -> Evaluation:
    """Measure predictions `(N, classes)` of what has the true classes `labels`, `(N,)`."""
    counts = confusion(labels, probabilities.argmax(axis=1), len(classes))
    numbers = np.unique(np.array(groups), return_inverse=True)[1]
    scores = class_scores(labels, probabilities, groups=numbers)
    recall = {f"recall {classes[k]}": own["recall"] for k, own in scores["per_class"].items()}
    return Evaluation(
        classes=classes,
        confusion=counts,
        metrics=summarize(counts) | recall,
        scores=scores,
        reliability=reliability(labels, probabilities),
        temperature=temperature,
        unit=unit,
        resampled=resampled,
    )


def _plain(values: NDArray[np.float64] | list[float]) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]


def class_indices(model: Model, classes: Sequence[str], *, of: str = "") -> NDArray[np.int64]:
    """Return the model's class of each class of the data."""
    names = model.card.class_names
    unknown_classes = [name for name in classes if name not in names]
    if unknown_classes:
        raise DatasetError(
            f"{of}The model {model.card.name} does not know {', '.join(unknown_classes)}; "
            f"it knows {', '.join(names)}."
        )
    return np.array([names.index(name) for name in classes], dtype=np.int64)


def fit_temperature_on(model: Model, data: Labeled, *, progress: Progress | None = None) -> None:
    """Fit a model's temperature and put it into its card."""
    index = class_indices(model, data.classes)
    logits, valid = predict_logits(model, data, progress=progress)
    temperature = fit_temperature(logits, valid, index[data.labels])
    model.card = model.card.model_copy(update={"temperature": round(temperature, 4)})


def predict_logits(
    model: Model, data: Labeled, *, progress: Progress | None = None
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return logits `(N, K, Y, X)` and where they are valid; a slide has one cell.

    Tiles of annotated slides are read off the map of their slide.
    """
    if isinstance(data, SlideTable):
        return _slide_logits(model, data, progress)
    if data.slides:
        return _logits_in_place(model, data, progress)
    device, images = model.encoder.fc.weight.device, data.images
    cells, inside = [], []
    with torch.inference_mode():
        for start in range(0, len(images), _BATCH):
            part = torch.from_numpy(np.ascontiguousarray(images[start : start + _BATCH]))
            x_BCYX = model.normalize(part.to(device))
            logits = model(x_BCYX.to(model.encoder.fc.weight.dtype))
            cells.append(logits.cells.float().cpu().numpy())
            inside.append(logits.valid.cpu().numpy())
            if progress is not None:
                progress("evaluate", min(start + _BATCH, len(images)), len(images))
    return np.concatenate(cells), np.concatenate(inside)


def _logits_in_place(
    model: Model, tiles: LabeledTiles, progress: Progress | None
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    cell = model.config.token_px
    n = max(1, tiles.images.shape[1] // cell)
    p = np.full((len(tiles), len(tiles.classes), n, n), np.nan, np.float32)
    for done, annotated in enumerate(tiles.slides, start=1):
        with open_slide(annotated.slide, **annotated.opening) as slide:
            heatmap = predict(slide, model, tissue=annotated.mask, cell_px=cell)
        for k, (name, row, col) in enumerate(tiles.places):
            if name == annotated.slide:
                i, j = round(row / cell), round(col / cell)
                part = heatmap.probabilities[:, i : i + n, j : j + n]
                p[k, :, : part.shape[1], : part.shape[2]] = part
        if progress is not None:
            progress("predict slides", done, len(tiles.slides))
    valid: NDArray[np.bool_] = np.asarray(~np.isnan(p).any(axis=1))
    is_nowhere = ~valid.any(axis=(1, 2))  # no tissue was found there: nothing is known
    valid[is_nowhere], p[is_nowhere] = True, 1 / len(tiles.classes)
    logits = np.log(np.maximum(np.nan_to_num(p, nan=1.0), 1e-30)) * model.card.temperature
    return logits.astype(np.float32), valid


def _slide_logits(
    model: Model, slides: SlideTable, progress: Progress | None
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    scores = []
    for done, (row, mask) in enumerate(zip(slides.rows, slides.masks, strict=True), start=1):
        with open_slide(row.slide, **row.opening) as slide:
            heatmap = predict(slide, model, tissue=mask, memory=slides.memory)
        scores.append([heatmap.scores[name] for name in model.card.class_names])
        if progress is not None:
            progress("predict slides", done, len(slides))
    logits = np.log(np.maximum(scores, 1e-30)) * model.card.temperature
    return logits[:, :, None, None].astype(np.float32), np.ones((len(scores), 1, 1), bool)
