"""Train a model on labeled data, measure it on a test part, and describe both in its card."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from atlas_wsi.errors import ArgumentError
from atlas_wsi.models.card import ModelCard, ModelClass, class_colors
from atlas_wsi.models.model import Model
from atlas_wsi.models.start import Start, load_start, timm_start
from atlas_wsi.progress import CancelToken, silent
from atlas_wsi.training import distributed
from atlas_wsi.training.amid import measure_amid
from atlas_wsi.training.baselines import choose, linear_model
from atlas_wsi.training.cards import (
    COMPARED,
    fingerprints_of,
    split_text,
    table_split_text,
    write_card,
)
from atlas_wsi.training.data.labeled import LabeledTiles
from atlas_wsi.training.evaluation import fit_temperature_on, measure_data
from atlas_wsi.training.familiar import learn_familiarity
from atlas_wsi.training.features import FeatureStores
from atlas_wsi.training.history import History
from atlas_wsi.training.metrics import MIN_CALIBRATION, color_baseline, confusion, summarize
from atlas_wsi.training.norms import channel_statistics, fit_projection
from atlas_wsi.training.objectives import objective_for
from atlas_wsi.training.recipe import Recipe, TrainOptions
from atlas_wsi.training.split import split, table_split
from atlas_wsi.training.trainer import Trainer, new_model

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from atlas_wsi.progress import Progress
    from atlas_wsi.training.data.labeled import Labeled, LabeledData
    from atlas_wsi.training.recipe import CardSpec
    from atlas_wsi.training.split import Split


def train(
    data: LabeledData,
    spec: CardSpec,
    recipe: Recipe | None = None,
    options: TrainOptions | None = None,
    *,
    history: History | None = None,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> Model:
    """Train a model and measure it on test data that it has not seen.

    Parameters
    ----------
    data
        Labeled tiles, regions or slides, from `read_tile_folder`, `read_regions` or
        `read_slide_table`, or `LabeledTiles`. Whole groups, such as patients, are kept in one part
        of the split. A table of slides with a column split decides the parts itself.
    spec
        Name, kind and resolution of the model.
    recipe
        How the model is trained.
    options
        What is measured and written, and where the weights start.
    history
        Collects the learning curve.
    progress
        Called with a text, the steps done and their number.
    cancel
        Stops the training when another thread cancels it.

    Returns
    -------
    Model
        With the weights of the lowest validation loss, else the last ones. Its card has the
        figures of the test part. With `TrainOptions.out` it is written, too, and a training that
        was stopped resumes.

    Raises
    ------
    ArgumentError
        If recipe and options contradict each other.
    ResultExistsError
        If the model file exists.
    DatasetError
        If the data cannot be read or split.
    CheckpointMismatchError
        If initial weights do not fit, or a checkpoint is of another training.
    Cancelled
        If `cancel` was set.
    """
    recipe, options = recipe or Recipe(), options or TrainOptions()
    history = history if history is not None else History(tensorboard=options.tensorboard)
    with distributed.joined():
        stated = table_split(data)
        if stated is not None and options.validation_fraction:
            raise ArgumentError("The table's column split replaces the validation fraction.")
        options.check(recipe, is_validated=bool(len(stated.validation)) if stated else None)
        ready = data.prepared(mpp=spec.mpp, seed=recipe.seed, progress=progress)
        facts: dict[str, Any] = {}
        if stated is not None:
            parts, text = stated, table_split_text(ready, stated)
        else:
            test, validation = options.test_fraction, options.validation_fraction
            parts = split(ready, test=test, validation=validation, seed=recipe.seed)
            text = split_text(ready, parts, test, recipe.seed)
            facts = {"test_fraction": test, "validation_fraction": validation}
        model = fit(
            ready,
            parts,
            spec,
            text,
            recipe,
            options,
            facts=facts,
            history=history,
            progress=progress,
            cancel=cancel,
        )
        save(model, options, history)
    return model


def _make_card(data: Labeled, parts: Split, spec: CardSpec, text: str) -> ModelCard:
    """Make the card of a model before training."""
    mpp = spec.mpp or data.mpp
    if mpp is None:
        raise ArgumentError("Training needs the resolution of the data: micrometers per pixel.")
    mean, std = channel_statistics(data.subset(parts.train).images)
    colors = class_colors(len(data.classes))
    return ModelCard(
        name=spec.name,
        domain=spec.domain,
        classes=tuple(
            ModelClass(name=label, color=color)
            for label, color in zip(data.classes, colors, strict=True)
        ),
        mpp=mpp,
        mean=mean,
        std=std,
        license=spec.license,
        data=spec.data,
        limits=spec.limits,
        split=text,
    )


def fit(
    data: Labeled,
    parts: Split,
    spec: CardSpec,
    text: str,
    recipe: Recipe,
    options: TrainOptions,
    *,
    facts: Mapping[str, Any],
    history: History,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> Model:
    """Train, select and calibrate, and measure on the test part; `text` describes the split."""
    known = data.subset(parts.train)
    validation = data.subset(parts.validation) if len(parts.validation) else None
    card, start = _make_card(data, parts, spec, text), initial_weights(recipe, options)
    in_place = isinstance(known, LabeledTiles) and bool(known.slides)
    recipe = recipe.suited(
        spec.domain, is_pretrained=start is not None, in_place=in_place, unit=data.unit
    )
    started = time.perf_counter()
    with ExitStack() as opened:
        stores = None
        if in_place and recipe.freeze:
            stores = opened.enter_context(FeatureStores(options.features))
        candidates = _candidates(
            known, validation, recipe, options, (card, start, stores), history, progress, cancel
        )
    counts = np.bincount(known.labels, minlength=len(data.classes))
    recorded = {
        **recipe.as_dict(),
        **known.arguments,
        "steps": int(history.rows[-1]["step"]),
        "chosen": {k: round(v, 6) for k, v in history.best.items()},
        "seconds": round(time.perf_counter() - started),
        data.unit: len(known),
        **next(iter(candidates.values())).card.training,
        **data.facts,
        **facts,
        f"{data.unit}_by_class": dict(zip(data.classes, counts.tolist(), strict=True)),
        "data_fingerprint": data.fingerprint,
    }
    if data.unit == "slides":
        used = np.concatenate([parts.train, parts.validation])
        recorded["trained_on"] = sorted(fingerprints_of([data.paths[i] for i in used]))
    for model in candidates.values():
        model.card = model.card.model_copy(update={"training": recorded})
        model.cpu().to(getattr(torch, options.dtype)).float()
    if distributed.rank() != 0:
        return model
    name = next(iter(candidates))
    if validation is not None:
        if len(candidates) > 1:
            name, scores = choose(candidates, validation)
            recorded["validation"] = {k: round(v, 4) for k, v in scores.items()}
        if len(validation) >= MIN_CALIBRATION:
            for model in candidates.values():
                fit_temperature_on(model, validation)
    model = candidates.pop(name)
    recorded |= {"reading": name, "depths": list(model.config.depths)}
    model.card = model.card.model_copy(update={"training": recorded})
    learn_familiarity(model, data, parts)
    test = data.subset(parts.test)
    figures = _figures(model, known, test, progress)
    for other, baseline in candidates.items() if len(test) else ():
        found = _measured(baseline, test, progress)[0]
        figures["metrics"] |= {f"{other}_{k}": v for k, v in found.items() if k in COMPARED}
    model.card = model.card.model_copy(update=figures)
    return model


def _candidates(
    known: Labeled,
    validation: Labeled | None,
    recipe: Recipe,
    options: TrainOptions,
    given: tuple[ModelCard, Start | None, FeatureStores | None],
    history: History,
    progress: Progress | None,
    cancel: CancelToken | None,
) -> dict[str, Model]:
    """Train the model that was requested, first, and its baselines.

    Over a frozen encoder all of them start as the linear reading of its tokens.
    """
    card, start, stores = given
    frozen = first = None
    if start is not None and isinstance(known, LabeledTiles):
        frozen = new_model(len(known.classes), card, replace(recipe, freeze=True), start)
        frozen.to(distributed.device())
        if recipe.encoder is not None:
            fit_projection(frozen, known.images, recipe)
        if recipe.encoder is not None and recipe.freeze:
            colors = 0.0 if known.slides else recipe.color_jitter or 0.0
            first = linear_model(frozen, known, validation, jitter=colors)
    has_baselines = options.baselines and frozen is not None
    arms = {"context" if recipe.context else "window": (recipe, history, options.checkpoint)}
    if has_baselines and recipe.freeze and recipe.context:
        path = options.checkpoint and options.checkpoint.with_suffix(".window.pt")
        arms["window"] = replace(recipe, context=False), History(), path
    found: dict[str, Model] = {}
    for name, (own, curve, checkpoint) in arms.items():
        model = new_model(len(known.classes), card, own, start).to(distributed.device())
        if recipe.encoder is not None and recipe.freeze:
            fit_projection(model, known.images, recipe)
            if first is not None:
                model.head.reads[0].load_state_dict(first.head.reads[0].state_dict())
        trainer = Trainer(model, own, curve)
        trainer.train(
            objective_for(known, model, own, stores),
            known,
            validation,
            checkpoint=checkpoint,
            report=progress or silent,
            cancel=cancel or CancelToken(),
        )
        found[name] = trainer.average.eval()
    if distributed.rank() != 0:
        return found
    for _, _, checkpoint in arms.values():
        if checkpoint is not None:
            checkpoint.unlink(missing_ok=True)
    if frozen is not None and has_baselines:
        found["linear"] = linear_model(frozen, known, validation)
    return found


def initial_weights(recipe: Recipe, options: TrainOptions) -> Start | None:
    """Load what a training starts from; None for random weights."""
    if recipe.encoder is not None:
        return timm_start(recipe.encoder, options.encoder_weights)
    if isinstance(options.init, Model):
        return Start.of(options.init)
    if options.init is None or isinstance(options.init, Start):
        return options.init
    return load_start(options.init)


def save(model: Model, options: TrainOptions, history: History) -> None:
    """Write a model, its card and its learning curve, from the first process."""
    if options.out is None or distributed.rank() != 0:
        return
    write_card(model, options.path)
    history.write(options.path)
    model.save(options.path, dtype=getattr(torch, options.dtype))  # last: the rest is complete


def _figures(
    model: Model, known: Labeled, test: Labeled, progress: Progress | None
) -> dict[str, Any]:
    """Return metrics and confusion for the card; nothing without a test part."""
    if not len(test):
        return {}
    metrics, counts = _measured(model, test, progress)
    if isinstance(test, LabeledTiles):
        guessed = color_baseline(known.images, known.labels, test.images, len(test.classes))
        color = summarize(confusion(test.labels, guessed, len(test.classes)))
        metrics |= {f"color_baseline_{k}": round(v, 4) for k, v in color.items()}
    return {"metrics": metrics, "confusion": tuple(tuple(row) for row in counts.tolist())}


def _measured(
    model: Model, test: Labeled, progress: Progress | None
) -> tuple[dict[str, float], NDArray[np.int64]]:
    result = measure_data(model, test, progress=progress)
    metrics = dict(result.metrics) | {"ece": result.reliability.ece}
    if isinstance(test, LabeledTiles) and not test.slides:
        metrics |= measure_amid(model, test)
    return {k: round(v, 4) for k, v in metrics.items()}, result.confusion
