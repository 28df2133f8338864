"""From an open slide to a heatmap."""

from __future__ import annotations

from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from atlas_wsi.errors import CellSizeError
from atlas_wsi.inference.attention import CoarseContext
from atlas_wsi.inference.doubts import familiarity
from atlas_wsi.inference.patches import predict_by_tile
from atlas_wsi.inference.preview import Preview, into_heatmap
from atlas_wsi.inference.provenance import RunningPrediction, reporter
from atlas_wsi.models.model import Model
from atlas_wsi.models.registry import DEFAULTS, is_tile_classifier, load_model
from atlas_wsi.models.tile_classifier import TileClassifier, load_tile_classifier
from atlas_wsi.progress import CancelToken, Progress, silent
from atlas_wsi.slides.open import open_slide
from atlas_wsi.slides.slide import Slide
from atlas_wsi.streaming.device import Precision, choose_device, choose_dtype, prepare
from atlas_wsi.streaming.fine_windows import fine_blocks
from atlas_wsi.streaming.forward import SlideLogits, StreamedPass
from atlas_wsi.streaming.plan import MemoryPlan, memory_budget
from atlas_wsi.streaming.shard import open_share, plan_for
from atlas_wsi.tissue.windows import plan_windows

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from atlas_wsi.heatmap.heatmap import Heatmap
    from atlas_wsi.models.layout import Layout
    from atlas_wsi.streaming.shard import OpenShares
    from atlas_wsi.streaming.working_image import WorkingImage
    from atlas_wsi.tissue.mask import TissueMask


def choose_model(
    slide: Slide,
    model: Model | TileClassifier | str | os.PathLike[str] | None = None,
    *,
    trust: bool = False,
) -> tuple[Model | TileClassifier, str]:
    """Load the requested model, or the default for the kind of slide.

    Parameters
    ----------
    slide
        What will be predicted.
    model
        A model, its name or file, or the folder of a tile classifier; None takes the default.
    trust
        Whether a TorchScript file, which can execute code, may be loaded.

    Returns
    -------
    tuple
        The model, which is shared with later calls, and why it was chosen.
    """
    if isinstance(model, Model | TileClassifier):
        return model, "given by the caller"
    if model is not None:
        return load_any(model, trust=trust), "named by the user"
    if slide.is_georeferenced:
        return load_any(DEFAULTS["scene"]), "the default for georeferenced scenes"
    return load_any(DEFAULTS["slide"]), "the default for slides without georeference"


def load_any(name: str | os.PathLike[str], *, trust: bool = False) -> Model | TileClassifier:
    """Load a model or a tile classifier; an unchanged file is loaded once per process."""
    path = Path(name).absolute()
    files = sorted(path.iterdir()) if path.is_dir() else [path] if path.is_file() else []
    changed = tuple(file.stat().st_mtime_ns for file in files)
    return _load(str(name), str(path) if files else "", changed, trust)


@lru_cache(maxsize=4)
def _load(
    name: str,
    path: str,  # noqa: ARG001 - part of the key, as the time of change
    changed: tuple[int, ...],  # noqa: ARG001
    trust: bool,
) -> Model | TileClassifier:
    if is_tile_classifier(name):
        return load_tile_classifier(name, trust=trust)
    return load_model(name)


def check_cell_px(model: Model | TileClassifier, cell_px: int | None) -> int:
    """Return the side of a heatmap cell, which the model must be able to make."""
    if isinstance(model, TileClassifier):
        if cell_px not in (None, model.patch_px):
            raise CellSizeError(
                f"The cells of {model.card.name} are its patches of {model.patch_px} px, not of "
                f"{cell_px} px.",
                hint="Omit the cell size.",
            )
        return model.patch_px
    choices = [model.config.token_px * n for n in (1, 2, 4)]
    if cell_px is not None and cell_px not in choices:
        raise CellSizeError(
            f"{model.card.name} cannot make cells of {cell_px} px; it can make cells of "
            f"{', '.join(map(str, choices))} px."
        )
    return cell_px or choices[-1]


def predict(
    slide: Slide | str | os.PathLike[str],
    model: Model | TileClassifier | str | os.PathLike[str] | None = None,
    *,
    tissue: TissueMask | None = None,
    cell_px: int | None = None,
    memory: int | str | None = None,
    precision: Precision = "auto",
    device: str = "auto",
    batch_size: int | None = None,
    work: str | os.PathLike[str] | None = None,
    preview: Preview | None = None,
    shards: OpenShares | None = None,
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
        A model, its name or file; None takes the default for the kind of slide. A `TileClassifier`
        classifies patch by patch: its patches are the cells, and of the other arguments `tissue`,
        `device`, `batch_size`, `progress` and `cancel` apply.
    tissue
        Where to predict; by default `atlas_wsi.tissue_mask` of the slide.
    cell_px
        Side of a heatmap cell in working pixels: one, two or four tokens of the model (16, 32 or 64
        for the bundled ones); the largest by default.
    memory
        Memory for the encoder, such as ``"4GB"`` or bytes; by default half of the free memory. Fine
        tokens that do not fit are stored in a temporary file.
    precision
        ``"auto"`` uses bfloat16 where the hardware supports it, else float32.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"``, ...
    batch_size
        Windows processed per batch; by default as many as fit in memory.
    work
        Folder for encoded windows. A call that was interrupted resumes when it is repeated with the
        same slide, model and parameters; the folder is removed when a call completes.
    preview
        Called as ``preview(heatmap, box)`` from the thread that predicts, with the heatmap so far
        and its new cells; always the same heatmap, which changes. First each window is seen alone,
        then with its context.
    shards
        Opens shards of the windows that other processes compute; by default all are computed here.
        `work` and `preview` apply to windows of this process only.
    context
        Whether the result can report what cells attend to (`Heatmap.context`); the slide must stay
        open for it.
    progress
        Called as the work proceeds.
    cancel
        Stops the work between two steps.

    Returns
    -------
    Heatmap
        Probabilities, NaN where there is no tissue.

    Raises
    ------
    CellSizeError
        If the model cannot make cells of this size.
    ValueError
        If `memory` or `batch_size` is not possible, or `preview`, `shards` or `context` is requested
        of a `TileClassifier`.
    """
    opened = slide if isinstance(slide, Slide) else open_slide(slide)
    try:
        chosen, reason = choose_model(opened, model)
        return run_model(
            opened,
            chosen,
            reason=reason,
            tissue=tissue,
            cell_px=check_cell_px(chosen, cell_px),
            budget=memory_budget(memory),
            precision=precision,
            device=choose_device(device),
            batch_size=batch_size,
            work=None if work is None else Path(work),
            preview=preview,
            shards=shards,
            context=context,
            report=progress or silent,
            cancel=cancel or CancelToken(),
        )
    finally:
        if opened is not slide:
            opened.close()


def run_model(
    slide: Slide,
    model: Model | TileClassifier,
    *,
    reason: str,
    tissue: TissueMask | None,
    cell_px: int,
    budget: int,
    precision: Precision,
    device: torch.device,
    batch_size: int | None,
    work: Path | None,
    preview: Preview | None,
    shards: OpenShares | None,
    context: bool,
    report: Progress,
    cancel: CancelToken,
) -> Heatmap:
    """Predict a heatmap of an open slide with a model that was chosen for `reason`."""
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, expected at least 1")
    is_by_tile = isinstance(model, TileClassifier)
    if is_by_tile and (preview is not None or shards is not None or context):
        raise ValueError("a tile classifier has no preview, no shards and no context")
    run = RunningPrediction(
        slide, model, reason=reason, tissue=tissue, cell_px=cell_px, report=report
    )
    if isinstance(model, TileClassifier):
        return predict_by_tile(
            run, model, device=device, batch_size=batch_size, report=report, cancel=cancel
        )
    dtype = choose_dtype(device, precision)
    layout = plan_slide(model, run.image, run.tissue)
    run.parameters |= {
        "device": str(device),
        "precision": str(dtype).removeprefix("torch."),
        "memory_bytes": budget,
        "windows": layout.scales[0].n_windows if layout else 0,
    }
    if layout is None:
        return run.finish("encode", run.heatmap.probabilities, ())
    plan = plan_for(model, layout, budget, itemsize=dtype.itemsize, batch=batch_size)
    run.parameters |= {
        "batch": plan.batch,
        "macro_side": plan.macro_side,
        "tokens_in_ram": plan.tokens_in_ram,
        "scales": len(layout.scales),
    }
    wanted, temperature = run.wanted_cells(), model.card.temperature
    logits, seen, n_shards = _encode(
        prepare(model, device=device, dtype=dtype),
        layout,
        run.image,
        plan,
        cell_px=cell_px,
        work=work,
        preview=preview and into_heatmap(run.heatmap, preview, layout, wanted, temperature),
        shards=shards,
        context=context,
        report=report,
        cancel=cancel,
    )
    if shards is not None:
        run.parameters["shards"] = n_shards
    run.leave_out(logits.missing.numpy(), logits.unreadable.numpy())
    run.familiarity = familiarity(logits.familiar, model, run.image, run.heatmap.tissue)
    shown = logits.valid.numpy() & wanted
    # not the array of `run.heatmap`, which previews show
    probabilities = np.full_like(run.heatmap.probabilities, np.nan)
    cells = logits.cells[:, torch.from_numpy(shown)]
    probabilities[:, shown] = torch.softmax(cells / temperature, dim=0).numpy()
    scores = torch.softmax(logits.slide / temperature, dim=0).tolist()
    return run.finish("encode", probabilities, scores, seen)


def plan_slide(model: Model, image: WorkingImage, tissue: TissueMask) -> Layout | None:
    """List the windows of every scale of a slide that hold tissue; None if there are none."""
    slide, window_px = image.slide, model.config.window_px
    windows = plan_windows(
        slide.shape, slide.require_mpp(), tissue, mpp=image.mpp, window_px=window_px
    )
    if not windows.n_active:
        return None
    return model.encoder.plan(image.shape, active_windows=windows.active)


def _encode(
    model: Model,
    layout: Layout,
    image: WorkingImage,
    plan: MemoryPlan,
    *,
    cell_px: int,
    work: Path | None,
    preview: Callable[[torch.Tensor, torch.Tensor], None] | None,
    shards: OpenShares | None,
    context: bool,
    report: Progress,
    cancel: CancelToken,
) -> tuple[SlideLogits, CoarseContext | None, int]:
    n, n_blocks = layout.scales[0].n_windows, len(fine_blocks(model, layout))
    step = reporter(report, cancel, {"encode": n, "attend": n * n_blocks})
    cell_tokens = cell_px // model.config.token_px
    with ExitStack() as opened:
        if shards is not None:
            opened_shards = opened.enter_context(shards(model, layout, image, plan, step))
        else:
            here = open_share(
                *(model, layout, image, plan),
                cell_tokens=cell_tokens,
                step=step,
                work=work,
                preview=preview,
            )
            opened_shards = [(np.arange(n), opened.enter_context(here))]
        stream = StreamedPass(model, layout, opened_shards, batch=plan.batch, keep_context=context)
        logits = stream.run(cell_tokens=cell_tokens)
    seen = (
        CoarseContext(model, stream.layout, image, stream.coarse_kv, cell_tokens)
        if context
        else None
    )
    return logits, seen, len(opened_shards)
