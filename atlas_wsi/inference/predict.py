"""From an open slide to a heatmap."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil
import torch

from atlas_wsi.inference.attention import CoarseContext
from atlas_wsi.inference.patches import predict_by_tile
from atlas_wsi.inference.preview import Preview, into_heatmap
from atlas_wsi.inference.provenance import (
    MIN_CELL_TISSUE,
    Clock,
    empty_heatmap,
    find_mask,
    finished,
    reporter,
    starting_warnings,
)
from atlas_wsi.models.model import Model
from atlas_wsi.models.registry import DEFAULTS, load_model
from atlas_wsi.models.stem import STRIDE_PX
from atlas_wsi.models.tile_classifier import TileClassifier
from atlas_wsi.progress import CancelToken, Progress, silent
from atlas_wsi.slides.open import open_slide
from atlas_wsi.slides.slide import Slide
from atlas_wsi.streaming.device import Precision, choose_device, choose_dtype, prepare
from atlas_wsi.streaming.fine_windows import fine_blocks
from atlas_wsi.streaming.forward import SlideLogits, StreamedPass
from atlas_wsi.streaming.plan import MemoryPlan, parse_bytes
from atlas_wsi.streaming.shard import open_share, plan_for
from atlas_wsi.streaming.working_image import WorkingImage, open_working_image
from atlas_wsi.tissue.windows import WindowGrid, plan_windows

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from atlas_wsi.heatmap.heatmap import Heatmap
    from atlas_wsi.models.layout import Layout
    from atlas_wsi.streaming.shard import OpenShares
    from atlas_wsi.tissue.mask import TissueMask


def choose_model(slide: Slide, model: Model | str | os.PathLike[str] | None) -> tuple[Model, str]:
    """Load the model asked for, or the default for the kind of slide.

    Parameters
    ----------
    slide
        What will be predicted.
    model
        A model, its name or file; None takes the default.

    Returns
    -------
    tuple
        The model, and why it was taken.
    """
    if isinstance(model, Model):
        return model, "given by the caller"
    if model is not None:
        return load_model(model), "asked for"
    if slide.is_georeferenced:
        return load_model(DEFAULTS["scene"]), "the default for georeferenced scenes"
    return load_model(DEFAULTS["slide"]), "the default for slides without georeference"


def predict(
    slide: Slide | str | os.PathLike[str],
    model: Model | TileClassifier | str | os.PathLike[str] | None = None,
    *,
    tissue: TissueMask | None = None,
    cell_px: int = 64,
    memory: int | str | None = None,
    precision: Precision = "auto",
    device: str = "auto",
    batch_size: int | None = None,
    work: str | os.PathLike[str] | None = None,
    preview: Preview | None = None,
    spread: OpenShares | None = None,
    context: bool = False,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> Heatmap:
    """Predict a heatmap of class probabilities for a whole slide or scene.

    Parameters
    ----------
    slide
        An open slide or a path.
    model
        A model, a shipped name or a file; None takes the default for the kind of slide. A
        `TileClassifier` sees patch by patch: its patches are the cells, and of the other arguments
        `tissue`, `device`, `batch_size`, `progress` and `cancel` hold.
    tissue
        Where to predict; by default `atlas_wsi.tissue_mask` of the slide.
    cell_px
        Side of a heatmap cell in working pixels: 16, 32 or 64.
    memory
        Memory that the encoder may take, such as ``"4GB"`` or bytes; by default half of what is
        free. Fine tokens that do not fit lie in a temporary file.
    precision
        ``"auto"`` computes in bfloat16 where the hardware multiplies it, else in float32.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"``, ...
    batch_size
        Windows that attend at once; by default what fits.
    work
        Folder that keeps encoded windows as they come. A call that died is gone on with by a call
        with the same slide, model and parameters; the folder is removed when a call ends well.
    preview
        Called as ``preview(heatmap, box)`` from the thread that predicts, with what is known so far
        and the cells that are new in it; always the same heatmap, which changes. First each window
        is seen alone, then with its context.
    spread
        Opens shares of the windows that other processes compute; by default all are computed here,
        and `work` and `preview` hold for those alone.
    context
        Whether the result can tell what cells attend to (`Heatmap.context`); the slide must stay
        open for it.
    progress
        Told how far the work is.
    cancel
        Stops the work between two pieces.

    Returns
    -------
    Heatmap
        Probabilities, NaN where there is no tissue.

    Raises
    ------
    ValueError
        If `cell_px`, `memory` or `batch_size` is not possible, or a `TileClassifier` is asked for
        what only our own models can.
    """
    if cell_px not in (16, 32, 64):
        raise ValueError(f"cell_px is {cell_px}, expected 16, 32 or 64")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, expected at least 1")
    budget = parse_bytes(memory) if memory is not None else psutil.virtual_memory().available // 2
    opened = slide if isinstance(slide, Slide) else open_slide(slide)
    try:
        if isinstance(model, TileClassifier):
            if preview is not None or spread is not None or context:
                raise ValueError("a tile classifier has no preview, no shares and no context")
            return predict_by_tile(
                opened,
                model,
                tissue=tissue,
                device=choose_device(device),
                batch_size=batch_size,
                report=progress or silent,
                cancel=cancel or CancelToken(),
            )
        return _predict(
            opened,
            model,
            tissue=tissue,
            cell_px=cell_px,
            budget=budget,
            precision=precision,
            device=choose_device(device),
            batch_size=batch_size,
            work=None if work is None else Path(work),
            preview=preview,
            spread=spread,
            context=context,
            report=progress or silent,
            cancel=cancel or CancelToken(),
        )
    finally:
        if opened is not slide:
            opened.close()


def _predict(
    slide: Slide,
    chosen: Model | str | os.PathLike[str] | None,
    *,
    tissue: TissueMask | None,
    cell_px: int,
    budget: int,
    precision: Precision,
    device: torch.device,
    batch_size: int | None,
    work: Path | None,
    preview: Preview | None,
    spread: OpenShares | None,
    context: bool,
    report: Progress,
    cancel: CancelToken,
) -> Heatmap:
    clock = Clock()
    slide.require_mpp()
    model, reason = choose_model(slide, chosen)
    image = open_working_image(slide, mpp=model.card.mpp)
    warnings = starting_warnings(image, model.card)
    clock.lap("open")
    mask = tissue if tissue is not None else find_mask(slide, report)
    windows = plan_windows(
        slide.shape,
        slide.require_mpp(),
        mask,
        mpp=image.mpp,
        window_px=model.config.window_px,
    )
    clock.lap("tissue")
    dtype = choose_dtype(device, precision)
    empty = empty_heatmap(
        image,
        model.card,
        sha256=model.sha256,
        reason=reason,
        cell_px=cell_px,
        tissue=mask,
        started=clock.started,
    )
    probabilities = empty.probabilities.copy()
    scores: dict[str, float] = {}
    seen: CoarseContext | None = None
    parameters: dict[str, object] = {
        "cell_px": cell_px,
        "device": str(device),
        "precision": str(dtype).removeprefix("torch."),
        "memory_bytes": budget,
        "windows": windows.n_active,
        "tissue_method": mask.method,
        "tissue_fraction": round(mask.fraction, 6),
    }
    if windows.n_active:
        layout = plan_layout(model, image, windows)
        plan = plan_for(model, layout, budget, itemsize=dtype.itemsize, batch=batch_size)
        parameters |= {
            "batch": plan.batch,
            "macro_side": plan.macro_side,
            "tokens_in_ram": plan.tokens_in_ram,
            "scales": len(layout.scales),
        }
        ready = prepare(model, device=device, dtype=dtype)
        wanted = mask.coverage(empty.grid) >= MIN_CELL_TISSUE
        logits, seen, n_shares = _encode(
            ready,
            layout,
            image,
            plan,
            cell_px=cell_px,
            work=work,
            preview=preview
            and into_heatmap(empty, preview, layout, wanted, model.card.temperature),
            spread=spread,
            context=context,
            report=report,
            cancel=cancel,
        )
        if spread is not None:
            parameters["shares"] = n_shares
        shown = logits.valid.numpy() & wanted
        heat = model.card.temperature
        probabilities[:, shown] = torch.softmax(logits.cells / heat, dim=0).numpy()[:, shown]
        slide_scores = torch.softmax(logits.slide / heat, dim=0).tolist()
        scores = dict(zip(model.card.class_names, slide_scores, strict=True))
    else:
        warnings.append("No tissue was found; the result is empty.")
    clock.lap("encode")
    run = finished(empty.run, slide, clock, parameters=parameters, warnings=warnings)
    return replace(empty, probabilities=probabilities, scores=scores, context=seen, run=run)


def plan_layout(model: Model, image: WorkingImage, windows: WindowGrid) -> Layout:
    """List the windows of every scale of a slide."""
    active = windows.active
    if max(image.shape) <= model.config.window_px:
        active = np.ones((1, 1), dtype=bool)
    return model.encoder.plan(image.shape, active_windows=active)


def _encode(
    model: Model,
    layout: Layout,
    image: WorkingImage,
    plan: MemoryPlan,
    *,
    cell_px: int,
    work: Path | None,
    preview: Callable[[torch.Tensor, torch.Tensor], None] | None,
    spread: OpenShares | None,
    context: bool,
    report: Progress,
    cancel: CancelToken,
) -> tuple[SlideLogits, CoarseContext | None, int]:
    n, n_blocks = layout.scales[0].n_windows, len(fine_blocks(model, layout))
    step = reporter(report, cancel, {"encode": n, "attend": n * n_blocks})
    cell_tokens = cell_px // STRIDE_PX
    with ExitStack() as opened:
        if spread is not None:
            shares = opened.enter_context(spread(model, layout, image, plan, step))
        else:
            here = open_share(
                *(model, layout, image, plan),
                cell_tokens=cell_tokens,
                step=step,
                work=work,
                preview=preview,
            )
            shares = [(np.arange(n), opened.enter_context(here))]
        stream = StreamedPass(model, layout, shares, batch=plan.batch, keep_context=context)
        logits = stream.run(cell_tokens=cell_tokens)
    seen = CoarseContext(model, layout, image, stream.coarse_kv, cell_tokens) if context else None
    return logits, seen, len(shares)
