"""Train an Atlas on tiles: mosaics for the dense head, single tiles for what they show."""

from __future__ import annotations

import copy
import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from atlas_wsi.progress import CancelToken, Progress, silent
from atlas_wsi.training import parallel
from atlas_wsi.training.batches import load_batches
from atlas_wsi.training.history import History, read_checkpoint, write_checkpoint
from atlas_wsi.training.metrics import confusion, predict_tiles, summarise
from atlas_wsi.training.recipe import Recipe
from atlas_wsi.training.start import new_model

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from atlas_wsi.models.card import ModelCard
    from atlas_wsi.models.model import Model
    from atlas_wsi.models.start import Start
    from atlas_wsi.training.batches import Batch
    from atlas_wsi.training.tiles import TileSet

__all__ = ["SLIDE_LOSS", "Recipe", "channel_statistics", "losses", "train"]

SLIDE_LOSS = 0.3
"""Weight of the slide score's loss beside the cells'."""

_EMA = 0.998
_MEASURED = 1024


def losses(
    model: Model, batch: Batch, *, run: nn.Module | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the losses of a batch.

    Parameters
    ----------
    model
        The model.
    batch
        Pictures and labels, or this process's part of them.
    run
        What is called in the model's place, from `atlas_wsi.training.parallel.spread`.

    Returns
    -------
    tuple
        Cross entropy of the cells, weighted by how much of a cell is labelled, and of the slide
        score against the shares of the whole picture. Their mean over the processes is the loss
        of the whole batch.
    """
    found = (run or model)(
        model.normalise(batch.images).contiguous(memory_format=torch.channels_last),
        batch.active,
        n_scales=batch.n_scales,
    )
    logs = functional.log_softmax(found.cells.float(), dim=1)
    labelled = parallel.total(batch.shares.sum()).clamp(min=1e-6)
    dense = -(logs * batch.shares).sum() / labelled
    whole = batch.shares.sum(dim=(2, 3))
    has_label = whole.sum(dim=1) > 0
    target = whole[has_label] / whole[has_label].sum(dim=1, keepdim=True)
    logs = functional.log_softmax(found.slide.float()[has_label], dim=1)
    slide = -(logs * target).sum() / parallel.total(has_label.sum()).clamp(min=1)
    return dense * parallel.n_ranks(), slide * parallel.n_ranks()


def train(
    tiles: TileSet,
    card: ModelCard,
    recipe: Recipe,
    *,
    init: Model | Start | None = None,
    validation: TileSet | None = None,
    checkpoint: Path | None = None,
    history: History | None = None,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> Model:
    """Train a model on tiles.

    Halfway, or at once from given weights, batch norm is measured on unchanged tiles and kept:
    training ends with what prediction uses.

    Parameters
    ----------
    tiles
        Training tiles.
    card
        The model's card; its domain decides whether stains or light vary.
    recipe
        Sizes, length and seed.
    init
        Whose weights to take where they fit, and sizes that the recipe leaves open; random weights
        by default.
    validation
        Tiles that the best of the averaged weights are chosen by; the last ones without.
    checkpoint
        File that the state is written to at every check and read from at the start, so that a
        training that was killed goes on; removed at the end.
    history
        Filled with the curve.
    progress
        Told how many steps are done.
    cancel
        Stops the training.

    Returns
    -------
    Model
        In evaluation mode, with averaged weights.
    """
    report, cancel = progress or silent, cancel or CancelToken()
    history = history if history is not None else History()
    device = parallel.device()
    model = new_model(len(tiles.classes), card, recipe, init).to(device)
    average = copy.deepcopy(model)
    pixels = len(tiles) * tiles.images.shape[1] * tiles.images.shape[2]
    steps = max(4, round(recipe.epochs * pixels / (recipe.megapixels * 1e6)))
    run = _Run(model, average, _optimiser(model, recipe), history)
    part = parallel.rank(), parallel.n_ranks()
    arguments = recipe.as_dict() | {"init": average.card.training.get("init", {}).get("name")}
    first = run.resume(checkpoint, arguments, len(tiles)) if checkpoint else 0
    low = recipe.precision == "bfloat16" or (recipe.precision == "auto" and _has_bfloat16(device))
    fix_at = 0 if init is not None else steps // 2
    if first > fix_at:
        _fix_modes(model)
    every = max(1, steps // recipe.checks)
    start = time.perf_counter()
    total = n_losses = 0.0
    todo = range(first, first if run.is_out_of_patience(recipe) else steps)
    stain = card.domain == "slide"
    batches = load_batches(tiles, recipe, todo, stain=stain, part=part)
    with history.logging(first):
        for step, batch in zip(todo, batches, strict=True):
            cancel.raise_if_cancelled()
            if step == fix_at:
                _fix_norms(model, tiles, recipe)
            rate = recipe.rate * _schedule(step, steps)
            loss = run.step(batch.to(device), rate, low=low, keep=min(_EMA, step / (step + 10)))
            total, n_losses = total + loss, n_losses + 1
            history.log(step + 1, loss=loss, rate=rate)
            report(f"train (loss {loss:.3f})", step + 1, steps)
            if (step + 1) % every == 0 or step + 1 == steps:
                run.check(step + 1, rate, total / n_losses, validation)
                total = n_losses = 0.0
                if checkpoint:
                    run.store(checkpoint, arguments, len(tiles), step + 1)
                if run.is_out_of_patience(recipe):
                    break
    average.load_state_dict(run.best)
    average.card = average.card.model_copy(
        update={
            "training": {
                **recipe.as_dict(),
                "steps": int(history.rows[-1]["step"]),
                "chosen": {k: round(v, 6) for k, v in history.best.items()},
                "seconds": round(time.perf_counter() - start),
                "tiles": len(tiles),
            }
            | average.card.training
        }
    )
    if checkpoint and parallel.rank() == 0:
        checkpoint.unlink(missing_ok=True)
    return average.eval()


class _Run:
    """Weights, their average, the optimiser and the best weights so far."""

    def __init__(
        self, model: Model, average: Model, optimiser: torch.optim.Optimizer, history: History
    ) -> None:
        self.model, self.average, self.optimiser = model, average, optimiser
        self.spread = parallel.spread(model)
        self.history = history
        self.best: dict[str, torch.Tensor] = {}

    def step(self, batch: Batch, rate: float, *, low: bool, keep: float) -> float:
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        parallel.set_idle(self.model, idle=batch.idle)
        with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=low):
            dense, slide = losses(self.model, batch, run=self.spread)
        self.optimiser.zero_grad()
        (dense + SLIDE_LOSS * slide).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        _follow(self.average, self.model, keep)
        return float(parallel.total(dense.detach())) / parallel.n_ranks()

    def check(self, step: int, rate: float, loss: float, validation: TileSet | None) -> None:
        """Measure the averaged weights and keep them if they are the best."""
        for mean, now in zip(self.average.buffers(), self.model.buffers(), strict=True):
            mean.copy_(now)
        row: dict[str, float] = {"step": step, "rate": rate, "loss": loss}
        if validation is not None and parallel.rank() == 0:
            self.average.eval()
            p = predict_tiles(self.average, validation.images)
            counts = confusion(validation.labels, p.argmax(axis=1), len(validation.classes))
            own = p[np.arange(len(p)), validation.labels]
            row["validation_loss"] = float(-np.log(np.maximum(own, 1e-12)).mean())
            row["validation_balanced_accuracy"] = summarise(counts)["balanced_accuracy"]
        self.history.add(parallel.share(row))
        if self.history.checks_since_best == 0:
            self.best = copy.deepcopy(self.average.state_dict())

    def is_out_of_patience(self, recipe: Recipe) -> bool:
        """Whether the validation loss has not fallen for as many checks as were asked for."""
        return bool(recipe.patience) and self.history.checks_since_best >= recipe.patience

    def store(self, path: Path, arguments: dict[str, Any], tiles: int, step: int) -> None:
        if parallel.rank() != 0:
            return
        state = {
            "recipe": arguments,
            "tiles": tiles,
            "step": step,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "best": self.best,
            "optimiser": self.optimiser.state_dict(),
            "history": self.history.rows,
        }
        write_checkpoint(path, state)

    def resume(self, path: Path, arguments: dict[str, Any], tiles: int) -> int:
        """Take up what `store` wrote; return the number of steps that are done."""
        state = read_checkpoint(path, recipe=arguments, tiles=tiles)
        if state is None:
            return 0
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.best = state["best"]
        self.optimiser.load_state_dict(state["optimiser"])
        self.history.rows[:] = state["history"]
        return int(state["step"])


def _optimiser(model: Model, recipe: Recipe) -> torch.optim.Optimizer:
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": recipe.decay}, {"params": plain, "weight_decay": 0}],
        lr=recipe.rate,
    )


def _schedule(step: int, steps: int) -> float:
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


@torch.no_grad()
def _follow(average: nn.Module, model: nn.Module, keep: float) -> None:
    for mean, now in zip(average.parameters(), model.parameters(), strict=True):
        mean.lerp_(now, 1 - keep)


@torch.no_grad()
def _fix_norms(model: Model, tiles: TileSet, recipe: Recipe) -> None:
    """Measure the batch-norm statistics on unchanged tiles and keep them from then on.

    Statistics of varied mosaics, one picture a batch, are not those of a slide.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over what follows
        norm.train()
    order = np.random.default_rng(recipe.seed).permutation(len(tiles))[:_MEASURED]
    batch = max(2, int(recipe.megapixels * 1e6) // tiles.images[0, ..., 0].size)
    for start in range(0, len(order), batch):
        images = torch.from_numpy(tiles.images[order[start : start + batch]])
        x_BCYX = model.normalise(images.to(model.encoder.fc.weight.device)).contiguous(
            memory_format=torch.channels_last
        )
        model.encoder.stem(x_BCYX)
    _fix_modes(model)


def _fix_modes(model: Model) -> None:
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eval()


def _has_bfloat16(device: torch.device) -> bool:
    from atlas_wsi.inference.engine import has_bfloat16

    return has_bfloat16(device)


def channel_statistics(
    images: NDArray[np.uint8],
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Measure the mean and the deviation of each channel, in 0-1.

    Parameters
    ----------
    images
        uint8 `(N, rows, cols, 3)`.

    Returns
    -------
    tuple
        Means and deviations, rounded to four digits.
    """
    part = images[:: max(1, len(images) // 500)].reshape(-1, 3) / 255.0
    mean = tuple(round(float(v), 4) for v in part.mean(axis=0))
    std = tuple(round(float(v), 4) for v in np.maximum(part.std(axis=0), 0.02))
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])
