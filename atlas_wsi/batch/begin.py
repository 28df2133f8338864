"""The output folder of an archive before and after a run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from atlas_wsi.batch.lease import read_tries, wait_for
from atlas_wsi.batch.options import agree_on_options
from atlas_wsi.batch.source import list_slides, name_slides
from atlas_wsi.errors import ResultExistsError
from atlas_wsi.files import disk_errors, write_text
from atlas_wsi.heatmap.write import SUMMARY
from atlas_wsi.models.registry import load_model

if TYPE_CHECKING:
    import os

    from atlas_wsi.batch.journal import Journal, SlideAsked
    from atlas_wsi.batch.options import BatchOptions


def begin(
    journal: Journal,
    source: str | os.PathLike[str],
    options: BatchOptions,
    *,
    overwrite: bool = False,
) -> tuple[list[SlideAsked], list[int]]:
    """Take down what is asked for, or see that it was."""
    found = list_slides(source, leave_out=journal.out)
    if options.model is not None:
        load_model(options.model)  # a wrong name is told here, not by each slide
        if Path(options.model).is_file():
            options = options.model_copy(update={"model": str(Path(options.model).absolute())})
    with disk_errors(journal.out):
        journal.make_folders()
        lease = wait_for(journal.folder, "launch")
        try:
            if overwrite:
                _start_anew(journal)
            if journal.options_file.is_file():
                agree_on_options(journal.options_file, options)
            else:
                write_text(journal.options_file, options.model_dump_json(indent=1) + "\n")
            known = journal.read_slides()
            slides = name_slides(found, known)
            if slides != known:
                journal.write_slides(slides)
        finally:
            lease.settle()
    sources = {slide.source: place for place, slide in enumerate(slides)}
    return slides, [sources[path] for path, _ in found]


def _start_anew(journal: Journal) -> None:
    if any(tries[-1].is_held for tries in read_tries(journal.leases_folder).values()):
        raise ResultExistsError(
            f"Workers are busy with the archive in {journal.out}; it is left alone.",
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
    """Remove what workers that died left of slides that have ended."""
    ended = journal.ended()
    tries = read_tries(journal.leases_folder)
    busy = {name for name, past in tries.items() if past[-1].is_held}
    for name, past in tries.items():
        if name in ended and name not in busy:
            for one in past:
                (journal.leases_folder / f"{name}.{one.number}").unlink(missing_ok=True)
    for work in journal.work_folder.iterdir():
        if work.name in ended and work.name not in busy:
            shutil.rmtree(work, ignore_errors=True)
    for half in journal.out.glob(".*.partial-*"):
        name = half.name[1:].rpartition(".partial-")[0]
        if name in ended and name not in busy:
            shutil.rmtree(half, ignore_errors=True)
