"""From a slide to a folder of results: what the command line, archives and napari call."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from atlas_wsi.errors import (
    CorruptResultError,
    MemoryBudgetError,
    ResultExistsError,
)
from atlas_wsi.files import folder_name
from atlas_wsi.heatmap.formats import RESULT_FORMATS, choose_formats
from atlas_wsi.heatmap.result import (
    SUMMARY,
    check_writable,
    find_damage,
    open_result,
    read_summary,
)
from atlas_wsi.inference.area import Area
from atlas_wsi.inference.predict import check_cell_px, choose_model, run_model
from atlas_wsi.models.tile_classifier import TileClassifier
from atlas_wsi.progress import CancelToken, Progress, silent
from atlas_wsi.slides.open import open_slide
from atlas_wsi.slides.slide import Slide, slide_name
from atlas_wsi.streaming.device import Precision, choose_device
from atlas_wsi.streaming.plan import memory_budget

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from atlas_wsi.heatmap.heatmap import Heatmap
    from atlas_wsi.inference.preview import Preview
    from atlas_wsi.models.model import Model
    from atlas_wsi.streaming.shard import OpenShares
    from atlas_wsi.tissue.mask import TissueMask

    ShardsFor = Callable[[int, int | None], OpenShares]
    """Makes shards for an amount of memory and a batch size."""

MIN_MEMORY_BYTES = 16 << 20
MAX_UNREADABLE = 0.01
"""Fraction of the tissue above which a result counts as incomplete."""
_TILE_BATCH = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideResult:
    """The result of a slide, in memory and on disk."""

    heatmap: Heatmap
    """The result; its ``run.model.reason`` states why the model was chosen."""
    folder: Path | None = None
    """Where it is; None if it was not written."""
    files: Mapping[str, Path] = field(default_factory=dict)
    """File by format."""
    is_new: bool = True
    """False if the same result existed already."""


def predict_to_folder(
    slide: Slide | str | os.PathLike[str],
    out: str | os.PathLike[str] | None,
    *,
    name: str | None = None,
    mpp: float | None = None,
    scale: tuple[float, float] | None = None,
    image: int | None = None,
    allow_truncated: bool = False,
    strict: bool = False,
    max_unreadable: float = MAX_UNREADABLE,
    model: Model | TileClassifier | str | os.PathLike[str] | None = None,
    trust_model: bool = False,
    tissue: TissueMask | str | os.PathLike[str] | None = None,
    tissue_model: str | os.PathLike[str] | None = None,
    keep_fat: bool = False,
    roi: str | os.PathLike[str] | Sequence[NDArray[np.float64]] | None = None,
    cell_px: int | None = None,
    memory: int | str | None = None,
    precision: Precision = "auto",
    device: str = "auto",
    batch_size: int | None = None,
    formats: Sequence[str] | None = None,
    overwrite: bool = False,
    repair: bool = False,
    work: str | os.PathLike[str] | None = None,
    shards: ShardsFor | None = None,
    context: bool = False,
    preview: Preview | None = None,
    on_model: Callable[[str, str], None] | None = None,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> SlideResult:
    """Predict a slide or scene and write its result folder, unless the same result exists.

    A call that was interrupted resumes when it is repeated.

    Parameters
    ----------
    slide
        An open slide, or a path or URL.
    out
        Folder in which the slide gets its folder; None keeps the result in memory.
    name
        Name of the slide's folder; by default the slide's name.
    mpp
        Micrometers per pixel of a slide given by its path, overriding the file.
    scale
        As for `open_slide`, of a slide given by its path.
    image
        As for `open_slide`, of a slide given by its path.
    allow_truncated
        As for `open_slide`, of a slide given by its path.
    strict
        Whether a slide given by its path fails at the first tile that cannot be read.
    max_unreadable
        Fraction of the tissue above which the result is marked as incomplete.
    model
        As for `predict`, or the folder of a tile classifier.
    trust_model
        Whether a TorchScript model, which can execute code, may be loaded.
    tissue
        Where to predict: a mask; a file (an image, GeoJSON polygons, HDF5 tiles); a folder with one
        such file per slide, named for it; or a pattern with ``{name}`` in it.
    tissue_model
        A model with a class ``tissue`` that finds the tissue.
    keep_fat
        Whether pale adipose tissue counts as tissue; without `tissue` and `tissue_model` only.
    roi
        Areas to which the tissue is restricted: GeoJSON, as a file, folder or pattern, or level-0
        polygons `(n, 2)` of `(y, x)`.
    cell_px
        As for `predict`; the patch of a tile classifier.
    memory
        Memory for the encoder. It is halved each time that a GPU runs out of memory.
    precision
        As for `predict`.
    device
        As for `predict`.
    batch_size
        As for `predict`.
    formats
        Outputs to write; by default all that suit the slide.
    overwrite
        Whether to replace an existing result.
    repair
        Whether to replace an existing result of the same request whose files were changed or lost;
        it is refused otherwise, as a change may be a correction by hand.
    work
        Folder for encoded windows, by default ``OUT/.NAME.work``; removed at the end.
    shards
        Makes, for an amount of memory and a batch size, the `shards` of `predict`.
    context
        As for `predict`; for an open slide only.
    preview
        As for `predict`.
    on_model
        Called with the model's name and why it was chosen, before the work.
    progress
        Called as the work proceeds.
    cancel
        Stops the work between two steps.

    Returns
    -------
    SlideResult
        The result and its files.

    Raises
    ------
    ResultExistsError
        If the folder holds another result, or one that was changed, and neither `overwrite` nor
        `repair` allows to replace it.
    DatasetError
        If a file of tissue or areas is missing or damaged.
    MemoryBudgetError
        If a GPU has too little memory for any batch.
    ValueError
        If arguments contradict each other.
    """
    if tissue is not None and tissue_model is not None:
        raise ValueError("tissue and tissue_model both define the tissue; give one")
    choose_formats(formats)
    if context and not isinstance(slide, Slide):
        raise ValueError("context reads the slide later: give an open slide")
    budget = memory_budget(memory)
    computer = choose_device(device)
    report, cancel = progress or silent, cancel or CancelToken()
    with ExitStack() as opened:
        if not isinstance(slide, Slide):
            slide = opened.enter_context(
                open_slide(
                    slide,
                    mpp=mpp,
                    scale=scale,
                    image=image,
                    allow_truncated=allow_truncated,
                    strict=strict,
                )
            )
        slide.require_mpp()
        samples = slide.require_samples()
        chosen, reason = choose_model(slide, model, trust=trust_model)
        cell_px = check_cell_px(chosen, cell_px)
        name = name or slide.name
        area = Area.of(slide, tissue, tissue_model, roi, keep_fat=keep_fat)
        decisive = {
            "cell_px": cell_px,
            "image": slide.image,
            "scale": samples.describe(),
            **area.provenance(),
        }
        folder = None if out is None else Path(out) / folder_name(name)
        if folder is not None:
            if not overwrite and is_finished(folder, slide, chosen.sha256, decisive, repair=repair):
                return _existing(folder)
            check_writable(folder.parent, name, overwrite=overwrite)
            work = work or folder.with_name(f".{folder.name}.work")
            if overwrite:
                shutil.rmtree(work, ignore_errors=True)
        if on_model is not None:
            on_model(chosen.card.name, reason)
        report("find tissue", 0, 1)
        mask = area.find(slide, cancel)
        report("find tissue", 1, 1)
        heatmap = _in_less_memory(
            lambda budget, batch_size: run_model(
                slide,
                chosen,
                reason=reason,
                tissue=mask,
                cell_px=cell_px,
                budget=budget,
                precision=precision,
                device=computer,
                batch_size=batch_size,
                work=None if work is None else Path(work),
                preview=preview,
                shards=None if shards is None else shards(budget, batch_size),
                context=context,
                report=report,
                cancel=cancel,
            ),
            budget,
            (batch_size or _TILE_BATCH) if isinstance(chosen, TileClassifier) else batch_size,
            device,
        )
        run = heatmap.run.model_copy(
            update={
                "parameters": {**heatmap.run.parameters, **decisive},
                "is_incomplete": heatmap.run.unreadable_fraction > max_unreadable,
            }
        )
        heatmap = replace(heatmap, run=run, slide=heatmap.slide.model_copy(update={"name": name}))
        if folder is None:
            return SlideResult(heatmap=heatmap)
        cancel.raise_if_cancelled()
        files = heatmap.write(
            folder.parent,
            formats=formats,
            thumbnail=slide.thumbnail(),
            overwrite=overwrite,
            progress=report,
        )
    return SlideResult(heatmap=heatmap, folder=folder, files=files)


def result_names(
    sources: Iterable[str | os.PathLike[str]], *, taken: Iterable[str] = ()
) -> dict[str, str]:
    """Name the result folder of each slide, so that none overwrites another's.

    Parameters
    ----------
    sources
        Paths or URLs of slides.
    taken
        Names that other slides have.

    Returns
    -------
    dict[str, str]
        Name by path: that of the file, and where several files have it, with a hash of the path.
    """
    paths = {str(source): slide_name(os.fspath(source)) for source in sources}
    stems = {path: folder_name(name) for path, name in paths.items()}
    count = Counter([*(stem.casefold() for stem in stems.values()), *map(str.casefold, taken)])
    names = {}
    for path, stem in stems.items():
        names[path] = stem
        if count[stem.casefold()] > 1:
            place = path if "://" in path else os.path.abspath(path)  # noqa: PTH100
            names[path] = folder_name(f"{stem}~{hashlib.sha256(place.encode()).hexdigest()[:8]}")
    return names


def is_finished(
    folder: Path, slide: Slide, sha256: str, decisive: Mapping[str, object], *, repair: bool
) -> bool:
    """Return whether a folder holds the requested result; with `repair`, remove a damaged one."""
    if not (folder / SUMMARY).is_file():
        return False
    try:
        summary = read_summary(folder)
    except CorruptResultError as error:
        raise ResultExistsError(
            f"{folder} is not a valid result: {error.message}", hint="Move it away, or --overwrite."
        ) from error
    run = summary.run
    same = (
        summary.slide.path == slide.path
        and summary.slide.mpp == slide.require_mpp()
        and run.model.sha256 == sha256
        and all(run.parameters.get(key) == value for key, value in decisive.items())
    )
    if not same:
        raise ResultExistsError(
            f"{folder} holds another result: of {summary.slide.path} by {run.model.name}.",
            hint="Choose another output folder, or --overwrite.",
        )
    damage = find_damage(folder, summary)
    if damage and not repair:
        raise ResultExistsError(
            f"{folder} is not as it was written: {damage[0]}.",
            hint="Move what you changed, and --overwrite the result.",
        )
    if damage:
        shutil.rmtree(folder)
    return not damage


def _existing(folder: Path) -> SlideResult:
    names = {"json": SUMMARY, **{name: form.file for name, form in RESULT_FORMATS.items()}}
    files = {kind: folder / file for kind, file in names.items() if (folder / file).exists()}
    return SlideResult(heatmap=open_result(folder), folder=folder, files=files, is_new=False)


def _in_less_memory(
    predict: Callable[[int, int | None], Heatmap], memory: int, batch_size: int | None, device: str
) -> Heatmap:
    """Predict, with half the memory and batch size each time that a GPU runs out of memory."""
    warnings: list[str] = []
    while True:
        try:
            heatmap = predict(memory, batch_size)
        except torch.OutOfMemoryError as error:
            if memory // 2 < MIN_MEMORY_BYTES:
                raise MemoryBudgetError(
                    f"{device} is out of memory even with {memory >> 20} MiB: {error}",
                    hint="Check what else uses the GPU.",
                ) from error
            memory, batch_size = memory // 2, batch_size and max(1, batch_size // 2)
            warnings.append(f"Out of GPU memory; repeated with {memory >> 20} MiB.")
        else:
            run = heatmap.run.model_copy(update={"warnings": (*heatmap.run.warnings, *warnings)})
            return replace(heatmap, run=run)
        torch.cuda.empty_cache()
