"""The steps of a training, whatever the labels: learning rate, averaged weights, validation."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from atlas_wsi.errors import CheckpointMismatchError
from atlas_wsi.models.atlas import AtlasConfig, make_config
from atlas_wsi.models.model import Model
from atlas_wsi.models.start import Start, take_weights
from atlas_wsi.models.stems.timm_network import PREFIX
from atlas_wsi.training import distributed
from atlas_wsi.training.evaluation import predict_logits
from atlas_wsi.training.history import read_checkpoint, write_checkpoint
from atlas_wsi.training.metrics import confusion, mean_probabilities, summarize
from atlas_wsi.training.norms import fit_projection, fix_modes, fix_norms

if TYPE_CHECKING:
    from pathlib import Path

    from atlas_wsi.models.card import ModelCard
    from atlas_wsi.progress import CancelToken, Progress
    from atlas_wsi.training.data.labeled import Labeled
    from atlas_wsi.training.history import History
    from atlas_wsi.training.objectives import Objective
    from atlas_wsi.training.recipe import Recipe

_EMA = 0.998


class Trainer:
    """Weights, their average, the optimizer and the best weights so far."""

    def __init__(self, model: Model, recipe: Recipe, history: History) -> None:
        self.model, self.average = model, copy.deepcopy(model)
        self.recipe, self.history = recipe, history
        self.optimizer = _optimizer(model, recipe)
        self.best: dict[str, torch.Tensor] = {}

    def train(
        self,
        objective: Objective,
        data: Labeled,
        validation: Labeled | None,
        *,
        checkpoint: Path | None,
        report: Progress,
        cancel: CancelToken,
    ) -> None:
        """Run the remaining steps; the average holds the best weights at the end."""
        init = self.model.card.training.get("init", {}).get("name")
        key = self.recipe.as_dict() | data.arguments | {"init": init}
        first = self._resume(checkpoint, key, len(data)) if checkpoint else 0
        if first > objective.fix_at:
            fix_modes(self.model)
        every = max(1, objective.steps // self.recipe.n_validations)
        losses: list[float] = []
        todo = range(first, first if self._is_out_of_patience() else objective.steps)
        with self.history.logging(first):
            for step, batch in zip(todo, objective.batches(todo), strict=True):
                cancel.raise_if_cancelled()
                if step == objective.fix_at:
                    fix_norms(self.model, data.images, self.recipe)
                if step == 0 and self.recipe.encoder is not None and not self.recipe.freeze:
                    fit_projection(self.model, data.images, self.recipe)
                rate = self.recipe.learning_rate * _schedule(step, objective.steps)
                losses.append(self._step(objective, batch, step, rate, cancel))
                self.history.log(step + 1, loss=losses[-1], learning_rate=rate)
                report(f"train (loss {losses[-1]:.3f})", step + 1, objective.steps)
                if (step + 1) % every == 0 or step + 1 == objective.steps:
                    self._validate(step + 1, rate, sum(losses) / len(losses), validation)
                    losses.clear()
                    if checkpoint:
                        self._store(checkpoint, key, len(data), step + 1)
                    if self._is_out_of_patience():
                        break
        self.average.load_state_dict(self.best)

    def _step(
        self, objective: Objective, batch: Any, step: int, rate: float, cancel: CancelToken
    ) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["share"]
        self.optimizer.zero_grad()
        loss = objective.learn(batch, step, cancel)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        _follow(self.average, self.model, keep=min(_EMA, step / (step + 10)))
        return loss

    def _validate(self, step: int, rate: float, loss: float, validation: Labeled | None) -> None:
        """Validate the averaged weights and keep them if they are the best."""
        for mean, now in zip(self.average.buffers(), self.model.buffers(), strict=True):
            mean.copy_(now)
        row: dict[str, float] = {"step": step, "learning_rate": rate, "loss": loss}
        if validation is not None and distributed.rank() == 0:
            p = mean_probabilities(*predict_logits(self.average.eval(), validation))
            counts = confusion(validation.labels, p.argmax(axis=1), len(validation.classes))
            own = p[np.arange(len(p)), validation.labels]
            row["validation_loss"] = float(-np.log(np.maximum(own, 1e-12)).mean())
            row["validation_balanced_accuracy"] = summarize(counts)["balanced_accuracy"]
        self.history.add(distributed.broadcast(row))
        if self.history.validations_since_best == 0:
            self.best = copy.deepcopy(self.average.state_dict())

    def _is_out_of_patience(self) -> bool:
        """Whether the validation loss has not fallen for as many validations as `patience`."""
        patience = self.recipe.patience
        return bool(patience) and self.history.validations_since_best >= patience

    def _store(self, path: Path, key: dict[str, Any], tiles: int, step: int) -> None:
        if distributed.rank() != 0:
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
        """Load the checkpoint, if there is one; return the number of steps that are done."""
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
    stem = set(model.encoder.stem.parameters())
    stem_rate = recipe.encoder_learning_rate or recipe.learning_rate
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for weight in model.parameters():
        if weight.requires_grad:
            groups.setdefault((weight in stem, weight.ndim > 1), []).append(weight)
    return torch.optim.AdamW(
        [
            {
                "params": weights,
                "weight_decay": recipe.weight_decay if is_decayed else 0,
                "share": stem_rate / recipe.learning_rate if is_stem else 1.0,
            }
            for (is_stem, is_decayed), weights in groups.items()
        ],
        lr=recipe.learning_rate,
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


def new_model(n_classes: int, card: ModelCard, recipe: Recipe, start: Start | None) -> Model:
    """Make the model that a training starts from."""
    config = _sizes(recipe, start, n_classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = Model(config, card)
    model.encoder.start_as_identity()
    model.head.start_with_finest()
    facts: dict[str, Any] = {
        "backbone": config.backbone,
        "dim": config.dim,
        "depths": list(config.depths),
        "n_scales": config.n_scales,
    }
    if start is not None:
        taken = take_weights(model, start)
        facts["init"] = {"name": start.name, "taken": str(taken), "training": dict(start.training)}
        if start.normalization is not None:
            mean, std = start.normalization
            card = card.model_copy(update={"mean": mean, "std": std})
    model.card = card.model_copy(update={"training": facts})
    model.encoder.stem.to(memory_format=torch.channels_last)
    model.train()
    if recipe.freeze:
        model.encoder.stem.eval().requires_grad_(False)
    return model


def _sizes(recipe: Recipe, start: Start | None, n_classes: int) -> AtlasConfig:
    given = start.config if start is not None else None
    readout, context = recipe.readout or "mean", recipe.context
    timm = recipe.encoder.removeprefix(PREFIX) if recipe.encoder else None
    if timm is not None and (recipe.backbone, given) != (None, None):
        raise CheckpointMismatchError(
            f"The encoder {recipe.encoder} is the backbone.",
            hint="Give neither --backbone nor --init beside --encoder.",
        )
    if given is None:
        return make_config(
            "timm+msa" if timm else recipe.backbone or "atlas",
            timm=timm,
            dim=recipe.dim,
            depths=recipe.depths or (1, 2),
            n_scales=recipe.n_scales or 3,
            n_classes=n_classes,
            readout=readout,
            context=context,
        )
    assert start is not None
    for what, requested, existing in (
        ("backbone", recipe.backbone, given.backbone),
        ("dim", recipe.dim, given.dim // (2 if given.backbone == "mambavision" else 1)),
    ):
        if requested is not None and requested != existing:
            raise CheckpointMismatchError(
                f"{start.name} has the {what} {existing}; requested was {requested}.",
                hint=f"Omit --{what}: with --init it is that of the model.",
            )
    alone = given.backbone == "mambavision"
    return replace(
        given,
        n_classes=n_classes,
        readout=readout,
        context=context,
        alignment="spatial",
        depths=given.depths if alone else recipe.depths or given.depths,
        n_scales=given.n_scales if alone else recipe.n_scales or given.n_scales,
    )
