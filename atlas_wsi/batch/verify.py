"""Read finished results again and compare them with their checksums."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from atlas_wsi.batch.journal import Journal
from atlas_wsi.errors import CorruptResultError
from atlas_wsi.heatmap.result import find_damage, read_summary
from atlas_wsi.progress import silent

if TYPE_CHECKING:
    import os

    from atlas_wsi.progress import Progress

_THREADS = 4


def verify_archive(
    out: str | os.PathLike[str], *, progress: Progress | None = None
) -> dict[str, str]:
    """Compare the finished results of an archive with their checksums.

    Parameters
    ----------
    out
        Output folder of the archive.
    progress
        Called with the number of results that were read.

    Returns
    -------
    dict
        Damage by the name of the slide; empty if all results are as they were written.
    """
    journal, report = Journal(out), progress or silent
    done = [row.name for row in journal.read_rows().values() if row.state == "done"]
    damaged = {}
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="atlas-wsi-verify") as threads:
        damages = threads.map(lambda name: _damage(journal, name), done)
        for number, (name, damage) in enumerate(zip(done, damages, strict=True), start=1):
            if damage:
                damaged[name] = damage
            report("verify", number, len(done))
    return damaged


def _damage(journal: Journal, name: str) -> str:
    folder = journal.out / name
    try:
        damage = find_damage(folder, read_summary(folder))
    except CorruptResultError as error:
        return error.message
    more = f" and {len(damage) - 1} more" if len(damage) > 1 else ""
    return f"{damage[0]}{more}" if damage else ""
