"""A slide's fine windows in this process: macro-tiles, decoding ahead, the store of tokens."""

from __future__ import annotations

import hashlib
import logging
import os
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from atlas_wsi.errors import DiskFullError
from atlas_wsi.models.familiarity import CELL_TOKENS
from atlas_wsi.streaming.fine_windows import FineWindows, fine_blocks
from atlas_wsi.streaming.plan import MacroTile, MemoryPlan, plan_macro_tiles, plan_memory
from atlas_wsi.streaming.prefetch import prefetch
from atlas_wsi.streaming.token_store import FileTokens, RamTokens, StoredTokens, TokenStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from atlas_wsi.models.layout import Layout
    from atlas_wsi.models.model import Model
    from atlas_wsi.streaming.fine_windows import Fine
    from atlas_wsi.streaming.working_image import WorkingImage

    Shares = list[tuple[NDArray[np.int64], Fine]]
    OpenShares = Callable[
        [Model, Layout, WorkingImage, MemoryPlan, Callable[[str, int], None]],
        AbstractContextManager[Shares],
    ]
    """Opens shares of a slide's windows: their places, and who computes them."""

_log = logging.getLogger(__name__)


def macro_tiles(model: Model, layout: Layout, shape: tuple[int, int], side: int) -> list[MacroTile]:
    """Group the fine windows of a layout into macro-tiles."""
    at = layout.scales[0]
    return plan_macro_tiles(
        at.where[:, 1:],
        image_shape=shape,
        window_px=at.side * model.config.token_px,
        reach=model.encoder.stem.reach,
        side=side,
    )


def plan_for(
    model: Model, layout: Layout, budget: int, *, itemsize: int, batch: int | None = None
) -> MemoryPlan:
    """Divide a memory budget for a model and the windows of a slide."""
    at = layout.scales[0]
    if model.pool is not None:  # what it reads is laid out as a map, three times in float32
        n_read = model.pool.gate.n_classes + model.config.n_classes
        budget -= 12 * n_read * at.grid[0] * at.grid[1] // CELL_TOKENS**2
    return plan_memory(
        budget,
        n_windows=at.n_windows if model.encoder.stages else 0,
        tokens=at.side**2,
        dim=model.config.dim,
        n_scales=len(layout.scales),
        window_px=model.config.window_px,
        pixel_floats=model.encoder.stem.floats_per_pixel,
        itemsize=itemsize,
        batch=batch,
    )


@contextmanager
def open_share(
    model: Model,
    layout: Layout,
    image: WorkingImage,
    plan: MemoryPlan,
    *,
    cell_tokens: int,
    step: Callable[[str, int], None],
    work: Path | None = None,
    preview: Callable[[torch.Tensor, torch.Tensor], None] | None = None,
) -> Iterator[FineWindows]:
    """Make ready a share of a slide's windows; pixels are decoded ahead of the encoder."""
    at, blocks = layout.scales[0], fine_blocks(model, layout)
    shape = (at.n_windows if blocks else 0, at.side**2, model.config.dim)
    dtype = model.encoder.fc.weight.dtype
    tiles = macro_tiles(model, layout, image.shape, plan.macro_side)
    stores: list[TokenStore] = []
    stored = torch.empty(0, dtype=torch.long)
    if work is not None and blocks:
        try:
            held = StoredTokens(work, stored_key(model, layout, image, plan), shape, dtype=dtype)
        except DiskFullError as error:
            _log.warning("%s Encoded windows are not stored.", error.message)
        else:
            stores.append(held)
            stored, tiles = _divide(held.stored, tiles, at.n_windows)
    try:
        if not stores or len(blocks) > 1:
            in_ram = plan.tokens_in_ram or not blocks
            stores.append((RamTokens if in_ram else FileTokens)(shape, dtype=dtype))
        pixels = prefetch(lambda tile: image.read_masked(tile.read), tiles)
        yield FineWindows(
            model,
            layout,
            pixels,
            store=stores[0],
            scratch=stores[-1],
            image_shape=image.shape,
            batch=plan.batch,
            cell_tokens=cell_tokens,
            step=step,
            stored=stored,
            preview=preview,
        )
        if isinstance(stores[0], StoredTokens):
            stores[0].discard()
    finally:
        for store in stores:
            store.close()


def _divide(
    stored: torch.Tensor, tiles: list[MacroTile], n_windows: int
) -> tuple[torch.Tensor, list[MacroTile]]:
    """Tell which windows are taken as stored, and which tiles are still to be encoded, whole."""
    has = np.zeros(n_windows, dtype=bool)
    has[stored.numpy()] = True
    open_tiles = [tile for tile in tiles if not has[tile.windows].all()]
    has[:] = True
    for tile in open_tiles:
        has[tile.windows] = False
    return torch.from_numpy(np.flatnonzero(has)), open_tiles


def stored_key(
    model: Model, layout: Layout, image: WorkingImage, plan: MemoryPlan
) -> dict[str, Any]:
    """Tell what the tokens of pass 0 depend on."""
    path = image.slide.path
    facts = os.stat(path) if os.path.exists(path) else None  # noqa: PTH110, PTH116 - may be a URL
    return {
        "torch": torch.__version__,
        "slide": path,
        "size": facts.st_size if facts else None,
        "changed": facts.st_mtime_ns if facts else None,
        "mpp": list(image.mpp),
        "channels": list(image.channels),
        "range": [image.low.tolist(), image.high.tolist()],
        "model": model.sha256,
        "dtype": str(model.encoder.fc.weight.dtype),
        "device": str(model.encoder.fc.weight.device.type),
        "macro_side": plan.macro_side,
        "windows": hashlib.sha256(layout.scales[0].where.tobytes()).hexdigest(),
    }
