"""Whole slides with a label each: the slide's score, end to end through the streamed encoder."""

# N slides, K classes

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch.nn import functional

from atlas_wsi.errors import DatasetError
from atlas_wsi.grid import Box
from atlas_wsi.inference.predict import plan_layout, predict
from atlas_wsi.slides.open import open_slide
from atlas_wsi.streaming.plan import parse_bytes
from atlas_wsi.streaming.sampled import sampled_logits
from atlas_wsi.streaming.shard import plan_for
from atlas_wsi.streaming.working_image import open_working_image
from atlas_wsi.tissue.mask import tissue_mask
from atlas_wsi.tissue.windows import plan_windows
from atlas_wsi.training import parallel
from atlas_wsi.training.augment import vary_colors
from atlas_wsi.training.steps import measure_norms
from atlas_wsi.training.tables import class_names

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from atlas_wsi.models.model import Model
    from atlas_wsi.progress import CancelToken, Progress
    from atlas_wsi.streaming.forward import SlideLogits
    from atlas_wsi.tissue.mask import TissueMask
    from atlas_wsi.training.recipe import Recipe
    from atlas_wsi.training.tables import LabeledSlide

EVIDENCE_LOSS = 0.5
"""Weight of the heatmap's loss beside the slide score's."""

_SHOWN = 64  # windows that colors and batch norms are measured on
_MEASURED = 16  # of them, a step, before batch norm is kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How much a step learns from."""

    windows: int = 16
    """Fine windows of a slide that keep a gradient."""
    slides: int = 4
    """Slides a step."""
    memory: int | str = "4GB"
    """Memory that the pass over a slide may take beside the gradient, as of `predict`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SlideSet:
    """Slides with a class and a group each, and where their tissue is."""

    unit: ClassVar[str] = "slides"

    rows: tuple[LabeledSlide, ...]
    """The lines of the table."""
    masks: tuple[TissueMask, ...]
    """Tissue of each."""
    classes: tuple[str, ...]
    """Names of the labels, sorted."""
    mpp: float
    """Micrometers a pixel that a model sees."""
    seed: int
    """Decides which windows are in `images`."""
    sampling: Sampling
    """How much a step learns from."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def arguments(self) -> dict[str, int]:
        """How much a step learns from."""
        return {"windows": self.sampling.windows, "batch": self.sampling.slides}

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """`(N,)` index into `classes`."""
        return np.array([self.classes.index(row.label) for row in self.rows], dtype=np.int64)

    @property
    def groups(self) -> tuple[str, ...]:
        """`N` names; slides of one group are kept on one side of a split."""
        return tuple(row.group for row in self.rows)

    @property
    def paths(self) -> tuple[str, ...]:
        """`N` files or URLs."""
        return tuple(row.slide for row in self.rows)

    @property
    def is_grouped(self) -> bool:
        """Whether some slides share a group."""
        return len(set(self.groups)) < len(self)

    @cached_property
    def images(self) -> NDArray[np.uint8]:
        """A sample of windows with tissue, to measure colors and batch norms on."""
        rng = np.random.default_rng(self.seed)
        images: list[NDArray[np.uint8]] = []
        order = rng.permutation(len(self))[:_SHOWN]
        for i in order:
            with open_slide(self.rows[i].slide) as slide:
                image = open_working_image(slide, mpp=self.mpp)
                mpp = slide.require_mpp()
                grid = plan_windows(slide.shape, mpp, self.masks[i], mpp=image.mpp)
                places = rng.permutation(np.argwhere(grid.active))[: -(-_SHOWN // len(order))]
                for row, col in places * grid.window_px:
                    side = grid.window_px
                    box = Box(row=int(row), col=int(col), rows=side, cols=side)
                    part = image.read(box.clip(image.shape))
                    after = [(0, side - n) for n in part.shape[:2]]
                    images.append(np.pad(part, (*after, (0, 0)), mode="symmetric"))
        return np.stack(images)

    def subset(self, which: NDArray[np.int64]) -> SlideSet:
        """Return some of the slides."""
        rows, masks = tuple(self.rows[i] for i in which), tuple(self.masks[i] for i in which)
        return replace(self, rows=rows, masks=masks)

    def work(self, model: Model, recipe: Recipe) -> SlideWork:
        """Return the steps of a training on these slides."""
        return SlideWork(model, self, recipe)

    def logits(
        self, model: Model, *, progress: Progress | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Predict the slides as `atlas_wsi.predict` does.

        Returns: Logits of the slides' scores, `(N, K, 1, 1)`, each as of one cell; all are valid.
        """
        out = []
        for done, (row, mask) in enumerate(zip(self.rows, self.masks, strict=True), start=1):
            found = predict(row.slide, model, tissue=mask, memory=self.sampling.memory)
            out.append([found.scores[name] for name in model.card.class_names])
            if progress is not None:
                progress("predict slides", done, len(self))
        logits = np.log(np.maximum(out, 1e-30)) * model.card.temperature
        return logits[:, :, None, None].astype(np.float32), np.ones((len(out), 1, 1), bool)


def find_slides(
    rows: Sequence[LabeledSlide],
    *,
    mpp: float,
    seed: int = 0,
    sampling: Sampling | None = None,
    progress: Progress | None = None,
) -> SlideSet:
    """Find the tissue of labeled slides."""
    classes = class_names(rows)
    if len(classes) < 2:
        raise DatasetError(
            f"All {len(rows)} slides have the label {classes[0]}; two or more labels are needed."
        )
    masks = []
    for done, row in enumerate(rows, start=1):
        with open_slide(row.slide) as slide:
            slide.require_mpp()
            masks.append(tissue_mask(slide))
        if not masks[-1].mask.any():
            raise DatasetError(
                f"No tissue was found on {row.slide}.", hint="Take it out of the table."
            )
        if progress is not None:
            progress("find tissue", done, len(rows))
    return SlideSet(
        rows=tuple(rows),
        masks=tuple(masks),
        classes=classes,
        mpp=mpp,
        seed=seed,
        sampling=sampling or Sampling(),
    )


class SlideWork:
    """Steps that stream a few slides, with a gradient through a sample of their windows."""

    def __init__(self, model: Model, slides: SlideSet, recipe: Recipe) -> None:
        self.model, self.slides, self.recipe = model, slides, recipe
        self.steps_an_epoch = -(-len(slides) // slides.sampling.slides)
        self.steps = max(1, round(recipe.epochs * self.steps_an_epoch))
        self.fix_at = self.steps // 2

    def batches(self, steps: range) -> list[NDArray[np.int64]]:
        """Return the slides of some steps; every slide is seen once an epoch."""
        n, out = self.slides.sampling.slides, []
        for step in steps:
            epoch, place = divmod(step, self.steps_an_epoch)
            order = np.random.default_rng((self.recipe.seed, epoch)).permutation(len(self.slides))
            out.append(order[place * n :][:n])
        return out

    def learn(self, batch: NDArray[np.int64], step: int, cancel: CancelToken) -> float:
        """Add the gradient of some slides, one after the other, to the model's weights."""
        total = 0.0
        if step < self.fix_at:
            # windows of one slide are no batch: their own statistics would hide what it is
            rng = np.random.default_rng((self.recipe.seed, step))
            images = self.slides.images
            measure_norms(self.model, [images[rng.permutation(len(images))[:_MEASURED]]])
        for i in batch[parallel.rank() :: parallel.n_ranks()].tolist():
            loss = slide_loss(self._stream(i, step, cancel), int(self.slides.labels[i]))
            (loss / len(batch)).backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach()) / len(batch)
        parallel.add_gradients(self.model)
        return float(parallel.total(torch.tensor(total)))

    def _stream(self, i: int, step: int, cancel: CancelToken) -> SlideLogits:
        seed, card = self.recipe.seed, self.model.card
        rng = np.random.default_rng((seed, step, 1 + i))
        colors = int(rng.integers(2**32))
        up, left = (int(way) for way in rng.choice([1, -1], 2))
        mask = self.slides.masks[i]
        with open_slide(self.slides.rows[i].slide) as slide:
            image = open_working_image(slide, mpp=card.mpp)
            windows = plan_windows(
                slide.shape,
                slide.require_mpp(),
                replace(mask, mask=mask.mask[::up, ::left]),
                mpp=image.mpp,
                window_px=self.model.config.window_px,
            )
            layout = plan_layout(self.model, image, windows)

            def read(box: Box) -> NDArray[np.uint8]:
                pixels = image.read(_mirrored(box, image.shape, up, left))[::up, ::left]
                # the same numbers for every part: a slide has one stain
                same = np.random.default_rng(colors)
                stain, strength = card.domain == "slide", self.recipe.jitter
                return vary_colors(
                    np.ascontiguousarray(pixels), same, stain=stain, strength=strength
                )

            order = rng.permutation(layout.scales[0].n_windows)
            memory = self.slides.sampling.memory
            return sampled_logits(
                self.model,
                layout,
                read,
                image.shape,
                plan_for(self.model, layout, parse_bytes(memory), itemsize=4),
                sampled=np.sort(order[: self.slides.sampling.windows]),
                step=lambda *_: cancel.raise_if_cancelled(),
            )


def _mirrored(box: Box, shape: tuple[int, int], up: int, left: int) -> Box:
    """Return where a box of a mirrored image lies in the image; -1 mirrors."""
    return replace(
        box,
        row=box.row if up > 0 else shape[0] - box.row_end,
        col=box.col if left > 0 else shape[1] - box.col_end,
    )


def slide_loss(found: SlideLogits, label: int) -> torch.Tensor:
    """Compare what a model says of a slide with its label."""
    target = torch.tensor([label])
    score = functional.cross_entropy(found.slide[None], target)
    cells = found.cells[:, found.valid]
    together = cells.logsumexp(dim=1) - math.log(max(1, cells.shape[1]))
    return score + EVIDENCE_LOSS * functional.cross_entropy(together[None], target)
