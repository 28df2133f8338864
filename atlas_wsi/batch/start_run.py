"""The output folder of an archive before and after a run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from atlas_wsi.batch.lease import read_attempts, wait_for
from atlas_wsi.batch.options import agree_on_options
from atlas_wsi.batch.source import list_slides, name_slides
from atlas_wsi.errors import DatasetError, ResultExistsError
from atlas_wsi.files import disk_errors, write_text
from atlas_wsi.heatmap.result import SUMMARY
from atlas_wsi.inference.predict import check_cell_px, load_any
from atlas_wsi.models.registry import DEFAULTS, shipped_models

if TYPE_CHECKING:
    import os

    from atlas_wsi.batch.journal import Journal, SlideRequest
    from atlas_wsi.batch.options import BatchOptions


def begin(
    journal: Journal,
    source: str | os.PathLike[str],
    options: BatchOptions,
    *,
    overwrite: bool = False,
) -> tuple[list[SlideRequest], list[int]]:
    """Record what is requested, or check that it agrees with what was recorded."""
    listed = list_slides(source, leave_out=journal.out)
    options = _checked(options)
    with disk_errors(journal.out):
        journal.make_folders()
        lease = wait_for(journal.folder, "launch")
        try:
            if overwrite:
                _restart(journal)
            if journal.options_file.is_file():
                agree_on_options(journal.options_file, options)
            else:
                write_text(journal.options_file, options.model_dump_json(indent=1) + "\n")
            known = journal.read_slides()
            slides = name_slides(listed, known)
            if slides != known:
                journal.write_slides(slides)
        finally:
            lease.settle()
    indices = {slide.source: index for index, slide in enumerate(slides)}
    return slides, [indices[path] for path, _ in listed]


def _checked(options: BatchOptions) -> BatchOptions:
    """Refuse here, instead of for each slide, what cannot work; make paths absolute."""
    for name in DEFAULTS.values() if options.model is None else [options.model]:
        check_cell_px(load_any(name, trust=options.trust_model), options.cell_px)
    if options.tissue_model is not None:
        load_any(options.tissue_model)
    paths = {}
    for key in ("model", "tissue", "tissue_model", "roi"):
        value = getattr(options, key)
        if value is not None and Path(value).exists() and value not in shipped_models():
            paths[key] = str(Path(value).absolute())
        elif value is not None and key in ("tissue", "roi"):
            if "{name}" not in value:
                raise DatasetError(f"{value} does not exist.")
            paths[key] = str(Path(value).absolute())
    return options.model_copy(update=paths)


def _restart(journal: Journal) -> None:
    if any(attempts[-1].is_held for attempts in read_attempts(journal.leases_folder).values()):
        raise ResultExistsError(
            f"Workers are running on the archive in {journal.out}; it was not changed.",
            hint="Stop them first, or wait for them.",
        )
    for slide in journal.read_slides():
        if (journal.out / slide.name / SUMMARY).is_file():
            shutil.rmtree(journal.out / slide.name)
    for folder in (journal.rows_folder, journal.leases_folder, journal.work_folder):
        shutil.rmtree(folder)
    journal.make_folders()
    journal.options_file.unlink(missing_ok=True)
    journal.slides_file.unlink(missing_ok=True)


def sweep(journal: Journal) -> None:
    """Remove what dead workers left of slides that have ended."""
    ended = journal.ended()
    attempts = read_attempts(journal.leases_folder)
    busy = {name for name, past in attempts.items() if past[-1].is_held}
    for name, past in attempts.items():
        if name in ended and name not in busy:
            for attempt in past:
                (journal.leases_folder / f"{name}.{attempt.number}").unlink(missing_ok=True)
    for work in journal.work_folder.iterdir():
        if work.name in ended and work.name not in busy:
            shutil.rmtree(work, ignore_errors=True)
    for half in journal.out.glob(".*.partial-*"):
        name = half.name[1:].rpartition(".partial-")[0]
        if name in ended and name not in busy:
            shutil.rmtree(half, ignore_errors=True)
