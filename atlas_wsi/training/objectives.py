"""What the steps of a training learn from: mosaics and tiles, or streamed slides."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch.nn import functional

from atlas_wsi.inference.predict import plan_slide
from atlas_wsi.slides.open import open_slide
from atlas_wsi.streaming.device import has_bfloat16
from atlas_wsi.streaming.plan import parse_bytes
from atlas_wsi.streaming.sampled import sampled_logits
from atlas_wsi.streaming.shard import plan_for
from atlas_wsi.streaming.working_image import open_working_image
from atlas_wsi.training import distributed
from atlas_wsi.training.data.augment import vary_colors
from atlas_wsi.training.data.mosaics import Batches
from atlas_wsi.training.data.slide_table import SlideTable
from atlas_wsi.training.norms import measure_norms

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray
    from torch import nn
    from torch.utils.data import DataLoader

    from atlas_wsi.grid import Box
    from atlas_wsi.models.model import Model
    from atlas_wsi.progress import CancelToken
    from atlas_wsi.streaming.fine_windows import Pixels
    from atlas_wsi.streaming.forward import SlideLogits
    from atlas_wsi.training.data.labeled import Labeled, LabeledTiles
    from atlas_wsi.training.data.mosaics import Batch
    from atlas_wsi.training.recipe import Recipe

SLIDE_LOSS = 0.3
"""Weight of the slide score's loss beside the cells'."""
EVIDENCE_LOSS = 0.5
"""Weight of the heatmap's loss beside the slide score's, for labels of whole slides."""
_NORM_WINDOWS = 16  # per step, before batch norm is fixed


class Objective(Protocol):
    """The steps of a training."""

    steps: int
    """Number of steps."""
    fix_at: int
    """Step before which batch norm is measured and fixed."""

    def batches(self, steps: range) -> Iterable[Any]:
        """Return the batch of each of some steps."""

    def learn(self, batch: Any, step: int, cancel: CancelToken) -> float:
        """Add the gradient of a step to the model's weights; return the loss."""


def objective_for(data: Labeled, model: Model, recipe: Recipe) -> Objective:
    """Return the steps of a training on some data."""
    if isinstance(data, SlideTable):
        return SlideObjective(model, data, recipe)
    return TileObjective(model, data, recipe)


class TileObjective:
    """Steps that show mosaics and single tiles."""

    def __init__(self, model: Model, tiles: LabeledTiles, recipe: Recipe) -> None:
        self.model, self.tiles, self.recipe = model, tiles, recipe
        pixels = len(tiles) * tiles.images.shape[1] * tiles.images.shape[2]
        self.steps = max(4, round(recipe.epochs * pixels / (recipe.megapixels * 1e6)))
        self.fix_at = 0 if "init" in model.card.training else self.steps // 2
        self.device = model.encoder.fc.weight.device
        self.is_low = recipe.precision == "bfloat16" or (
            recipe.precision == "auto" and has_bfloat16(self.device)
        )
        self.sharded = distributed.shard(model)

    def batches(self, steps: range) -> DataLoader[Batch]:
        """Make the images of some steps."""
        return Batches(
            tiles=self.tiles,
            recipe=self.recipe,
            stain=self.model.card.domain == "slide",
            part=(distributed.rank(), distributed.n_ranks()),
            token_px=self.model.config.token_px,
        ).ahead(steps)

    def learn(self, batch: Batch, step: int, cancel: CancelToken) -> float:  # noqa: ARG002
        """Add the gradient of a batch to the model's weights."""
        batch = batch.to(self.device)
        distributed.set_idle(self.model, idle=batch.idle)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.is_low):
            dense, slide = losses(self.model, batch, run=self.sharded)
        (dense + SLIDE_LOSS * slide).backward()  # type: ignore[no-untyped-call]
        return float(distributed.total(dense.detach())) / distributed.n_ranks()


def losses(
    model: Model, batch: Batch, *, run: nn.Module | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the losses of a batch: of the cells, and of the slide score."""
    logits = (run or model)(
        model.normalize(batch.images).contiguous(memory_format=torch.channels_last),
        batch.active,
        n_scales=batch.n_scales,
    )
    logs = functional.log_softmax(logits.cells.float(), dim=1)
    labeled = distributed.total(batch.shares.sum()).clamp(min=1e-6)
    dense = -(logs * batch.shares).sum() / labeled
    whole = batch.shares.sum(dim=(2, 3))
    has_label = whole.sum(dim=1) > 0
    target = whole[has_label] / whole[has_label].sum(dim=1, keepdim=True)
    logs = functional.log_softmax(logits.slide.float()[has_label], dim=1)
    slide = -(logs * target).sum() / distributed.total(has_label.sum()).clamp(min=1)
    return dense * distributed.n_ranks(), slide * distributed.n_ranks()


class SlideObjective:
    """Steps that stream a few slides, with a gradient through a sample of their windows."""

    def __init__(self, model: Model, slides: SlideTable, recipe: Recipe) -> None:
        self.model, self.slides, self.recipe = model, slides, recipe
        self.steps_per_epoch = -(-len(slides) // slides.batch)
        self.steps = max(1, round(recipe.epochs * self.steps_per_epoch))
        self.fix_at = 0 if "init" in model.card.training else self.steps // 2

    def batches(self, steps: range) -> list[NDArray[np.int64]]:
        """Return the slides of some steps; every slide is seen once per epoch."""
        n, batches = self.slides.batch, []
        for step in steps:
            epoch, index = divmod(step, self.steps_per_epoch)
            order = np.random.default_rng((self.recipe.seed, epoch)).permutation(len(self.slides))
            batches.append(order[index * n :][:n])
        return batches

    def learn(self, batch: NDArray[np.int64], step: int, cancel: CancelToken) -> float:
        """Add the gradient of some slides, one after the other, to the model's weights."""
        total = 0.0
        if step < self.fix_at:
            # windows of one slide are no batch: their own statistics would hide what it is
            rng = np.random.default_rng((self.recipe.seed, step))
            images = self.slides.images
            measure_norms(self.model, [images[rng.permutation(len(images))[:_NORM_WINDOWS]]])
        for i in batch[distributed.rank() :: distributed.n_ranks()].tolist():
            loss = slide_loss(self._stream(i, step, cancel), int(self.slides.labels[i]))
            (loss / len(batch)).backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach()) / len(batch)
        distributed.add_gradients(self.model)
        return float(distributed.total(torch.tensor(total)))

    def _stream(self, i: int, step: int, cancel: CancelToken) -> SlideLogits:
        seed, card, row = self.recipe.seed, self.model.card, self.slides.rows[i]
        rng = np.random.default_rng((seed, step, 1 + i))
        colors = int(rng.integers(2**32))
        up, left = (int(sign) for sign in rng.choice([1, -1], 2))
        mask = self.slides.masks[i]
        with open_slide(row.slide, **row.opening) as slide:
            image = open_working_image(slide, mpp=card.mpp, white=card.white_reflectance)
            layout = plan_slide(self.model, image, replace(mask, mask=mask.mask[::up, ::left]))
            assert layout is not None

            def read(box: Box) -> Pixels:
                pixels, state = image.read_masked(_mirrored(box, image.shape, up, left))
                # the same numbers for every part: a slide has one stain
                same = np.random.default_rng(colors)
                stain, strength = card.domain == "slide", self.recipe.color_jitter or 0.0
                pixels = np.ascontiguousarray(pixels[::up, ::left])
                known = None if state is None else np.ascontiguousarray(state[::up, ::left])
                return vary_colors(pixels, same, stain=stain, strength=strength), known

            order = rng.permutation(layout.scales[0].n_windows)
            memory = parse_bytes(self.slides.memory)
            return sampled_logits(
                self.model,
                layout,
                read,
                image.shape,
                plan_for(self.model, layout, memory, itemsize=4),
                sampled=np.sort(order[: self.slides.windows]),
                step=lambda *_: cancel.raise_if_cancelled(),
            )


def _mirrored(box: Box, shape: tuple[int, int], up: int, left: int) -> Box:
    """Return the box in the image of a box in the mirrored image; -1 mirrors."""
    return replace(
        box,
        row=box.row if up > 0 else shape[0] - box.row_end,
        col=box.col if left > 0 else shape[1] - box.col_end,
    )


def slide_loss(logits: SlideLogits, label: int) -> torch.Tensor:
    """Compare the scores of a slide with its label."""
    target = torch.tensor([label])
    score = functional.cross_entropy(logits.slide[None], target)
    cells = logits.cells[:, logits.valid]
    together = cells.logsumexp(dim=1) - math.log(max(1, cells.shape[1]))
    return score + EVIDENCE_LOSS * functional.cross_entropy(together[None], target)
