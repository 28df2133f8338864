"""Pictures of several classes and glass, made of tiles: they teach where a class ends."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from atlas_wsi.training.data.augment import augment, vary_colors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from atlas_wsi.training.data.labeled import LabeledTiles
    from atlas_wsi.training.recipe import Recipe

CELL_TOKENS = 4
"""Tokens along the side of a labeled cell."""

NOTHING = frozenset({"glass", "unknown"})
"""Names of classes that glass belongs to, so that a map can say that there is nothing."""

_AHEAD = 4
_MAKERS = 1
_WINDOW_CELLS = 4
_MIN_LABELED = 0.05
_FEW_SINGLES, _SINGLES_A_MEGAPIXEL = 96, 120


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mosaic:
    """A picture and what its cells show."""

    image: NDArray[np.uint8]
    """`(rows, cols, 3)`."""
    shares: NDArray[np.float32]
    """`(class, cell rows, cell cols)`: share of the cell's area; the rest is glass."""


def make_mosaic(
    tiles: LabeledTiles,
    shape: tuple[int, int],
    rng: np.random.Generator,
    *,
    stain: bool,
    vary: bool = True,
    jitter: float = 1.0,
    token_px: int = 16,
) -> Mosaic:
    """Make a picture of `shape` pixels, in whole cells; half have one stain all over."""
    n_classes = len(tiles.classes)
    area = _areas(
        (shape[0] // token_px, shape[1] // token_px), n_classes + int(stain), rng
    )  # the last number is glass
    if (area == n_classes).all():
        area[:] = rng.integers(n_classes)
    is_one_slide = bool(rng.random() < 0.5)
    rows, cols = shape
    image = np.zeros((rows, cols, 3), np.uint8)
    if stain:
        image[:] = _glass(shape, rng)
    side = tiles.images.shape[1], tiles.images.shape[2]
    wide = area.repeat(token_px, axis=0).repeat(token_px, axis=1)
    start = -rng.integers(0, side[0]), -rng.integers(0, side[1])
    by_class = [np.flatnonzero(tiles.labels == label) for label in range(n_classes)]
    for top in range(int(start[0]), rows, side[0]):
        for left in range(int(start[1]), cols, side[1]):
            there = (
                slice(max(top, 0), min(top + side[0], rows)),
                slice(max(left, 0), min(left + side[1], cols)),
            )
            part = wide[there]
            for label in np.unique(part):
                if label == n_classes:
                    continue
                tile = tiles.images[rng.choice(by_class[label])]
                if vary:
                    tile = augment(tile, rng, stain=stain, colors=0 if is_one_slide else jitter)
                cut = tile[
                    there[0].start - top : there[0].stop - top,
                    there[1].start - left : there[1].stop - left,
                ]
                image[there][part == label] = cut[part == label]
    if vary and is_one_slide:
        image = vary_colors(image, rng, stain=stain, strength=jitter)
    nothing = next((k for k, name in enumerate(tiles.classes) if name in NOTHING), n_classes)
    return Mosaic(
        image=image, shares=_shares(np.where(area == n_classes, nothing, area), n_classes)
    )


def _areas(shape: tuple[int, int], n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw areas: where each of some smooth random fields is the largest."""
    from scipy.ndimage import gaussian_filter

    rows, cols = shape
    scale = float(np.exp(rng.uniform(np.log(4), np.log(16))))
    present = rng.permutation(n)[: int(rng.integers(1, min(n, 4) + 1))]
    if len(present) == 1 and present[0] == n - 1:
        present = np.arange(n)
    fields = np.full((n, rows, cols), -np.inf)
    for i in present:
        noise = gaussian_filter(rng.normal(size=(rows, cols)), scale, mode="wrap")
        fields[i] = noise / noise.std() + rng.normal(0, 0.3)
    return np.argmax(fields, axis=0)


def _shares(area: NDArray[np.int64], n_classes: int) -> NDArray[np.float32]:
    cell = CELL_TOKENS
    rows, cols = area.shape[0] // cell, area.shape[1] // cell
    one_hot = area[None] == np.arange(n_classes)[:, None, None]
    blocks = one_hot.reshape(n_classes, rows, cell, cols, cell)
    return blocks.mean(axis=(2, 4)).astype(np.float32)


def _glass(shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.uint8]:
    light = rng.uniform(222, 250) + rng.uniform(-6, 6, 3)
    slope = np.linspace(-1, 1, shape[0])[:, None, None] * rng.uniform(-5, 5)
    noise = rng.normal(0, rng.uniform(0.5, 3), (*shape, 3))
    return np.clip(light + slope + noise, 0, 255).astype(np.uint8)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """Pictures of one size with dense labels."""

    images: torch.Tensor
    """uint8 `(B, rows, cols, 3)`."""
    shares: torch.Tensor
    """`(B, classes, cell rows, cell cols)`: share of a cell's area that is of a class."""
    n_scales: int | None
    """Scales to use; None for what the size asks for."""
    active: torch.Tensor | None = None
    """bool `(B, window rows, window cols)`: which windows are computed; None for all."""
    idle: bool = False
    """Whether it stands for no picture at all: its labels are empty."""

    def to(self, device: torch.device) -> Batch:
        """Bring the tensors to a device."""
        return replace(
            self,
            images=self.images.to(device),
            shares=self.shares.to(device),
            active=None if self.active is None else self.active.to(device),
        )


def _draw_active(shares: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Leave out windows of glass, and now and then others, as happens around real tissue."""
    labeled = shares.sum(dim=1, keepdim=True)
    active = functional.avg_pool2d(labeled, _WINDOW_CELLS, ceil_mode=True)[:, 0] > _MIN_LABELED
    if rng.random() < 0.5:
        drop = torch.from_numpy(rng.random(active.shape) < rng.uniform(0, 0.6))
        active &= ~drop
    if rng.random() < 0.3:
        active |= True
    active[~active.flatten(1).any(dim=1)] = True
    return active


def _cells_of(active: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Spread windows over their cells, `(B, 1, cell rows, cell cols)`."""
    wide = active.repeat_interleave(_WINDOW_CELLS, 1).repeat_interleave(_WINDOW_CELLS, 2)
    return wide[:, None, : shares.shape[2], : shares.shape[3]].to(shares)


def shows_mosaics(recipe: Recipe, step: int) -> bool:
    """Tell whether a step shows mosaics."""
    share = recipe.mosaics
    assert share is not None, "of a recipe that is `suited`"
    return math.floor((step + 1) * share) > math.floor(step * share)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batches(Dataset[Batch]):
    """Single tiles or mosaics of every step; the same ones for the same seed and step."""

    tiles: LabeledTiles
    recipe: Recipe
    stain: bool
    part: tuple[int, int] = (0, 1)
    """Number of this process, and of all that share the pictures of a step."""
    token_px: int = 16

    def __getitem__(self, step: int) -> Batch:
        rng = np.random.default_rng((self.recipe.seed, step))
        make = self._mosaics if shows_mosaics(self.recipe, step) else self._singles
        return make(step, rng)

    @property
    def _jitter(self) -> float:
        assert self.recipe.color_jitter is not None, "of a recipe that is `suited`"
        return self.recipe.color_jitter

    def ahead(self, steps: Sequence[int]) -> DataLoader[Batch]:
        """Make pictures ahead in a process; their order and content do not depend on it."""
        return DataLoader(
            self,
            batch_size=None,
            sampler=steps,
            num_workers=_MAKERS,
            prefetch_factor=_AHEAD,
            generator=torch.Generator(),  # the loader's own draw must not touch the caller's
        )

    def _pictures(self, step: int, n: int) -> tuple[list[int], list[np.random.Generator], bool]:
        """Return the own pictures, a source of random numbers each, and whether there are none."""
        mine = list(range(n)[self.part[0] :: self.part[1]])
        is_idle = not mine
        mine = mine or [0]  # without labels: every process has to run something
        # 1 + i: a seed that ends in 0 is the seed without it
        rngs = [np.random.default_rng((self.recipe.seed, step, 1 + i)) for i in mine]
        return mine, rngs, is_idle

    def _singles(self, step: int, rng: np.random.Generator) -> Batch:
        tiles, megapixels = self.tiles, self.recipe.megapixels
        rows, cols = tiles.images.shape[1:3]
        n = max(2, int(megapixels * 1e6 / (rows * cols)))
        most = max(_FEW_SINGLES, round(_SINGLES_A_MEGAPIXEL * megapixels))  # of small tiles
        chosen = rng.choice(len(tiles), size=min(n, most))
        mine, rngs, is_idle = self._pictures(step, len(chosen))
        images = [
            augment(tiles.images[i], rng=rng, stain=self.stain, colors=self._jitter)
            for i, rng in zip(chosen[mine], rngs, strict=True)
        ]
        cell_px = CELL_TOKENS * self.token_px
        labels = torch.from_numpy(tiles.labels[chosen[mine]])
        shares = functional.one_hot(labels, len(tiles.classes)).float() * (not is_idle)
        return Batch(
            images=torch.from_numpy(np.stack(images)),
            shares=shares[:, :, None, None].expand(
                -1, -1, -(-rows // cell_px), -(-cols // cell_px)
            ),
            n_scales=None,
            idle=is_idle,
        )

    def _mosaics(self, step: int, rng: np.random.Generator) -> Batch:
        rows = int(rng.integers(17, 21)) if step % 16 == 1 else int(rng.integers(5, 13))
        cols = int(rng.integers(max(5, rows - 2), rows + 1))
        cell_px = CELL_TOKENS * self.token_px
        shape = rows * cell_px, cols * cell_px
        n = max(1, round(self.recipe.megapixels * 1e6 / (shape[0] * shape[1])))
        added = int(rng.choice([0, 0, 1, 2]))  # the coarsest parameters learn to be shared
        _, rngs, is_idle = self._pictures(step, n)
        jitter, token_px = self._jitter, self.token_px
        mosaics = [
            make_mosaic(self.tiles, shape, rng, stain=self.stain, jitter=jitter, token_px=token_px)
            for rng in rngs
        ]
        shares = torch.from_numpy(np.stack([m.shares for m in mosaics]))
        active = torch.cat([_draw_active(s[None], r) for s, r in zip(shares, rngs, strict=True)])
        natural = 1 + sum(max(shape) > _WINDOW_CELLS * cell_px * 4**k for k in range(4))
        return Batch(
            images=torch.from_numpy(np.stack([m.image for m in mosaics])),
            shares=shares * _cells_of(active, shares) * (not is_idle),
            n_scales=natural + added,
            active=active,
            idle=is_idle,
        )
