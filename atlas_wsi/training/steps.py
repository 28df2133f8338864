"""The steps of a training, whatever the labels: rate, averaged weights, checks, going on."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import nn

from atlas_wsi.training import parallel
from atlas_wsi.training.history import read_checkpoint, write_checkpoint
from atlas_wsi.training.metrics import confusion, mean_probabilities, summarize

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from atlas_wsi.models.model import Model
    from atlas_wsi.progress import CancelToken, Progress
    from atlas_wsi.training.history import History
    from atlas_wsi.training.recipe import Recipe
    from atlas_wsi.training.tiles import Labeled

_EMA = 0.998
_MEASURED = 1024


class Work(Protocol):
    """What the steps of a training do: show tiles, or stream slides."""

    steps: int
    """How many there are."""
    fix_at: int
    """Step before which batch norm is measured and kept."""

    def batches(self, steps: range) -> Iterable[Any]:
        """Return what each of some steps learns from."""

    def learn(self, batch: Any, step: int, cancel: CancelToken) -> float:
        """Add the gradient of a step to the model's weights; return the loss."""


class Run:
    """Weights, their average, the optimizer and the best weights so far."""

    def __init__(self, model: Model, recipe: Recipe, history: History) -> None:
        self.model, self.average = model, copy.deepcopy(model)
        self.recipe, self.history = recipe, history
        self.optimizer = _optimizer(model, recipe)
        self.best: dict[str, torch.Tensor] = {}

    def train(
        self,
        work: Work,
        tiles: Labeled,
        validation: Labeled | None,
        *,
        checkpoint: Path | None,
        report: Progress,
        cancel: CancelToken,
    ) -> None:
        """Do the steps that are not done; the average holds the best weights at the end."""
        init = self.model.card.training.get("init", {}).get("name")
        key = self.recipe.as_dict() | tiles.arguments | {"init": init}
        first = self._resume(checkpoint, key, len(tiles)) if checkpoint else 0
        if first > work.fix_at:
            fix_modes(self.model)
        every = max(1, work.steps // self.recipe.checks)
        losses: list[float] = []
        todo = range(first, first if self._is_out_of_patience() else work.steps)
        with self.history.logging(first):
            for step, batch in zip(todo, work.batches(todo), strict=True):
                cancel.raise_if_cancelled()
                if step == work.fix_at:
                    fix_norms(self.model, tiles.images, self.recipe)
                rate = self.recipe.rate * _schedule(step, work.steps)
                losses.append(self._step(work, batch, step, rate, cancel))
                self.history.log(step + 1, loss=losses[-1], rate=rate)
                report(f"train (loss {losses[-1]:.3f})", step + 1, work.steps)
                if (step + 1) % every == 0 or step + 1 == work.steps:
                    self._check(step + 1, rate, sum(losses) / len(losses), validation)
                    losses.clear()
                    if checkpoint:
                        self._store(checkpoint, key, len(tiles), step + 1)
                    if self._is_out_of_patience():
                        break
        self.average.load_state_dict(self.best)
        if checkpoint and parallel.rank() == 0:
            checkpoint.unlink(missing_ok=True)

    def _step(self, work: Work, batch: Any, step: int, rate: float, cancel: CancelToken) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        loss = work.learn(batch, step, cancel)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        _follow(self.average, self.model, keep=min(_EMA, step / (step + 10)))
        return loss

    def _check(self, step: int, rate: float, loss: float, validation: Labeled | None) -> None:
        """Measure the averaged weights and keep them if they are the best."""
        for mean, now in zip(self.average.buffers(), self.model.buffers(), strict=True):
            mean.copy_(now)
        row: dict[str, float] = {"step": step, "rate": rate, "loss": loss}
        if validation is not None and parallel.rank() == 0:
            p = mean_probabilities(*validation.logits(self.average.eval()))
            counts = confusion(validation.labels, p.argmax(axis=1), len(validation.classes))
            own = p[np.arange(len(p)), validation.labels]
            row["validation_loss"] = float(-np.log(np.maximum(own, 1e-12)).mean())
            row["validation_balanced_accuracy"] = summarize(counts)["balanced_accuracy"]
        self.history.add(parallel.share(row))
        if self.history.checks_since_best == 0:
            self.best = copy.deepcopy(self.average.state_dict())

    def _is_out_of_patience(self) -> bool:
        """Whether the validation loss has not fallen for as many checks as were asked for."""
        patience = self.recipe.patience
        return bool(patience) and self.history.checks_since_best >= patience

    def _store(self, path: Path, key: dict[str, Any], tiles: int, step: int) -> None:
        if parallel.rank() != 0:
            return
        state = {
            "recipe": key,
            "tiles": tiles,
            "step": step,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "history": self.history.rows,
        }
        write_checkpoint(path, state)

    def _resume(self, path: Path, key: dict[str, Any], tiles: int) -> int:
        """Take up what `_store` wrote; return the number of steps that are done."""
        state = read_checkpoint(path, recipe=key, tiles=tiles)
        if state is None:
            return 0
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.best = state["best"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.history.rows[:] = state["history"]
        return int(state["step"])


def _optimizer(model: Model, recipe: Recipe) -> torch.optim.Optimizer:
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


def fix_norms(model: Model, images: NDArray[np.uint8], recipe: Recipe) -> None:
    """Measure the batch-norm statistics on unchanged pictures and keep them from then on.

    Statistics of varied mosaics, one picture a batch, are not those of a slide.

    `images`: uint8 `(N, rows, cols, 3)`.
    """
    order = np.random.default_rng(recipe.seed).permutation(len(images))[:_MEASURED]
    batch = max(2, int(recipe.megapixels * 1e6) // images[0, ..., 0].size)
    measure_norms(model, [images[order[i : i + batch]] for i in range(0, len(order), batch)])


@torch.no_grad()
def measure_norms(model: Model, batches: Sequence[NDArray[np.uint8]]) -> None:
    """Give batch norm the statistics of some pictures, and use these and not a batch's own.

    `batches`: uint8 `(N, rows, cols, 3)` each.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over what follows
        norm.train()
    for images in batches:
        x_BCYX = model.normalize(
            torch.from_numpy(images).to(model.encoder.fc.weight.device)
        ).contiguous(memory_format=torch.channels_last)
        model.encoder.stem(x_BCYX)
    fix_modes(model)


def fix_modes(model: nn.Module) -> None:
    """Keep the batch-norm statistics as they are."""
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eval()
