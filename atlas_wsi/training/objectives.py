"""What the steps of a training learn from: mosaics and tiles, or streamed slides."""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch.nn import functional

from atlas_wsi.errors import DatasetError
from atlas_wsi.inference.predict import plan_slide
from atlas_wsi.slides.open import open_slide
from atlas_wsi.streaming.device import has_bfloat16
from atlas_wsi.streaming.plan import parse_bytes
from atlas_wsi.streaming.sampled import CELL_TOKENS, sampled_logits
from atlas_wsi.streaming.shard import plan_for
from atlas_wsi.streaming.working_image import open_working_image
from atlas_wsi.training import distributed
from atlas_wsi.training.data.annotated_slide import NO_LABEL, draw_even, labeled_windows
from atlas_wsi.training.data.augment import vary_colors
from atlas_wsi.training.data.mosaics import Batches, shows_mosaics
from atlas_wsi.training.data.slide_table import SlideTable
from atlas_wsi.training.norms import measure_norms

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import nn
    from torch.utils.data import DataLoader

    from atlas_wsi.grid import Box
    from atlas_wsi.models.layout import Layout
    from atlas_wsi.models.model import Model
    from atlas_wsi.progress import CancelToken
    from atlas_wsi.streaming.fine_windows import Pixels
    from atlas_wsi.streaming.forward import SlideLogits
    from atlas_wsi.streaming.working_image import WorkingImage
    from atlas_wsi.tissue.mask import TissueMask
    from atlas_wsi.training.data.annotated_slide import LabeledWindows
    from atlas_wsi.training.data.labeled import Labeled, LabeledTiles
    from atlas_wsi.training.data.mosaics import Batch
    from atlas_wsi.training.features import FeatureStores, Store
    from atlas_wsi.training.recipe import Recipe

SLIDE_LOSS = 0.3
"""Weight of the slide score's loss beside the cells'."""
EVIDENCE_LOSS = 0.5
"""Weight of the heatmap's loss beside the slide score's, for labels of whole slides."""
MIN_SLIDES, WINDOWS_PER_SLIDE = 2, 16
"""Annotated slides per step, and labeled windows of each that are learned from."""
_NORM_WINDOWS = 16  # per step, before batch norm is fixed
_REGION_MEMORY = "4GB"
_TURNS = ((False, False), (False, True), (True, False), (True, True))


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


def objective_for(
    data: Labeled, model: Model, recipe: Recipe, stores: FeatureStores | None = None
) -> Objective:
    """Return the steps of a training on some data; `stores`: of the tokens of a frozen stem."""
    if isinstance(data, SlideTable):
        return SlideObjective(model, data, recipe)
    if data.slides:
        return RegionObjective(model, data, recipe, stores)
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

    def batches(self, steps: Sequence[int]) -> DataLoader[Batch]:
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


class RegionObjective:
    """Steps that stream annotated slides, and mosaics of what was cut out of them.

    Of a slide some labeled windows are learned from; all the rest of it is context. Slides and
    windows are drawn so that every class has the same weight. The tokens of a frozen stem are
    computed once for every slide.
    """

    def __init__(
        self,
        model: Model,
        tiles: LabeledTiles,
        recipe: Recipe,
        stores: FeatureStores | None,
    ) -> None:
        self.model, self.tiles, self.recipe = model, tiles, recipe
        self.mosaics = TileObjective(model, tiles, recipe)
        self.stores = stores
        self.labeled = {
            (i, mirrored): self._labeled(i, mirrored)
            for i in range(len(tiles.slides))
            for mirrored in (_TURNS if self.stores is None else _TURNS[:1])
        }
        empty = {i for (i, _), found in self.labeled.items() if not len(found.windows)}
        self.shown = np.array([i for i in range(len(tiles.slides)) if i not in empty], dtype=int)
        if not len(self.shown):
            raise DatasetError("No labeled area lies on tissue.")
        seen = [self.labeled[i, _TURNS[0]] for i in self.shown]
        self.counts = np.stack([found.counts(len(tiles.classes)).sum(axis=0) for found in seen])
        n_windows = np.array([len(found.windows) for found in seen])
        learned = np.minimum(n_windows, WINDOWS_PER_SLIDE).mean()
        filling = round(recipe.megapixels * 1e6 / (learned * model.config.window_px**2))
        self.slides_per_step = min(max(MIN_SLIDES, filling), len(self.shown))
        pass_over = max(len(self.shown), n_windows.sum() / WINDOWS_PER_SLIDE)
        steps = recipe.epochs * pass_over / self.slides_per_step
        share = recipe.mosaics or 0.0
        self.steps = max(4, round(steps + share * self.mosaics.steps))
        self.fix_at = self.mosaics.fix_at if self.mosaics.fix_at == 0 else self.steps // 2

    def batches(self, steps: range) -> Iterator[Batch | None]:
        """Return the mosaics of some steps; None for a step of slides."""
        shown = [step for step in steps if shows_mosaics(self.recipe, step)]
        mosaics = iter(self.mosaics.batches(shown) if shown else ())
        for step in steps:
            yield next(mosaics) if shows_mosaics(self.recipe, step) else None

    def learn(self, batch: Batch | None, step: int, cancel: CancelToken) -> float:
        """Add the gradient of mosaics or of some slides to the model's weights."""
        if batch is not None:
            return self.mosaics.learn(batch, step, cancel)
        rng = np.random.default_rng((self.recipe.seed, step))
        if step < self.fix_at:
            images = self.tiles.images
            measure_norms(self.model, [images[rng.permutation(len(images))[:_NORM_WINDOWS]]])
        chosen = self.shown[draw_even(self.counts, self.slides_per_step, rng)]
        total = 0.0
        for i in chosen[distributed.rank() :: distributed.n_ranks()].tolist():
            loss = self._loss(i, step, cancel)
            (loss / len(chosen)).backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach()) / len(chosen)
        distributed.add_gradients(self.model)
        return float(distributed.total(torch.tensor(total)))

    def _labeled(self, i: int, mirrored: tuple[bool, bool]) -> LabeledWindows:
        slide = self.tiles.slides[i]
        with _opened(self.model, slide.slide, slide.opening, slide.mask, mirrored) as seen:
            return labeled_windows(
                slide,
                self.tiles.classes,
                seen.image,
                seen.layout,
                token_px=self.model.config.token_px,
                mirrored=mirrored,
            )

    def _loss(self, i: int, step: int, cancel: CancelToken) -> torch.Tensor:
        """Return the mean cross entropy of the labeled tokens of a sample of windows."""
        slide = self.tiles.slides[i]
        rng = np.random.default_rng((self.recipe.seed, step, 1 + i))
        mirrored = _TURNS[0 if self.stores is not None else int(rng.integers(len(_TURNS)))]
        found = self.labeled[i, mirrored]
        drawn = found.draw(WINDOWS_PER_SLIDE, len(self.tiles.classes), rng)
        colors = int(rng.integers(2**32))
        with _opened(self.model, slide.slide, slide.opening, slide.mask, mirrored) as seen:
            store = (
                None if self.stores is None else self.stores.of(self.model, seen.image, seen.layout)
            )
            logits = seen.logits(
                found.windows[drawn],
                memory=_REGION_MEMORY,
                colors=None if store else (colors, self.recipe.color_jitter or 0.0),
                cell_tokens=1,
                store=store,
                cancel=cancel,
            )
            at = seen.layout.scales[0]
        m = at.side
        losses, count = logits.cells.new_zeros(()), 0
        for window, labels in zip(found.windows[drawn], found.labels[drawn], strict=True):
            row, col = (int(n) * m for n in at.where[window, 1:])
            cells = logits.cells[:, row : row + m, col : col + m]
            target = torch.from_numpy(labels.astype(np.int64)).view(m, m)
            target = target[: cells.shape[1], : cells.shape[2]].clone()
            target[~logits.valid[row : row + m, col : col + m]] = NO_LABEL
            losses = losses + functional.cross_entropy(
                cells[None], target[None], ignore_index=NO_LABEL, reduction="sum"
            )
            count += int((target != NO_LABEL).sum())
        return losses / max(1, count)


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
        seed, row = self.recipe.seed, self.slides.rows[i]
        rng = np.random.default_rng((seed, step, 1 + i))
        colors = int(rng.integers(2**32))
        up, left = (int(sign) < 0 for sign in rng.choice([1, -1], 2))
        with _opened(self.model, row.slide, row.opening, self.slides.masks[i], (up, left)) as seen:
            order = rng.permutation(seen.layout.scales[0].n_windows)
            return seen.logits(
                np.sort(order[: self.slides.windows]),
                memory=self.slides.memory,
                colors=(colors, self.recipe.color_jitter or 0.0),
                cancel=cancel,
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """A slide as a step sees it, perhaps mirrored."""

    model: Model
    image: WorkingImage
    layout: Layout
    mirrored: tuple[bool, bool]

    def logits(
        self,
        sampled: NDArray[np.int64],
        *,
        memory: int | str,
        colors: tuple[int, float] | None,
        cancel: CancelToken,
        cell_tokens: int = CELL_TOKENS,
        store: Store | None = None,
    ) -> SlideLogits:
        """Stream it, with a gradient through some windows; `colors`: seed and strength of jitter."""
        stain, image = self.model.card.domain == "slide", self.image
        up, left = (-1 if back else 1 for back in self.mirrored)

        def read(box: Box) -> Pixels:
            pixels, state = image.read_masked(_mirrored(box, image.shape, up, left))
            pixels = np.ascontiguousarray(pixels[::up, ::left])
            known = None if state is None else np.ascontiguousarray(state[::up, ::left])
            if colors is not None:
                # the same numbers for every part: a slide has one stain
                same = np.random.default_rng(colors[0])
                pixels = vary_colors(pixels, same, stain=stain, strength=colors[1])
            return pixels, known

        logits = sampled_logits(
            self.model,
            self.layout,
            read,
            image.shape,
            plan_for(self.model, self.layout, parse_bytes(memory), itemsize=4),
            sampled=sampled,
            cell_tokens=cell_tokens,
            tokens=None if store is None else store.tokens,
            is_filled=store is not None and store.is_filled,
            step=lambda *_: cancel.raise_if_cancelled(),
        )
        if store is not None:
            store.is_filled = True
        return logits


@contextmanager
def _opened(
    model: Model,
    path: str,
    opening: Mapping[str, Any],
    mask: TissueMask,
    mirrored: tuple[bool, bool],
) -> Iterator[_Seen]:
    """Open a slide for a step."""
    up, left = (-1 if back else 1 for back in mirrored)
    with open_slide(path, **opening) as slide:
        image = open_working_image(slide, mpp=model.card.mpp, white=model.card.white_reflectance)
        layout = plan_slide(model, image, replace(mask, mask=mask.mask[::up, ::left]))
        if layout is None:
            raise DatasetError(f"No tissue was found on {path}.", hint="Remove it from the table.")
        yield _Seen(model=model, image=image, layout=layout, mirrored=mirrored)


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
