"""Read finished results again and compare them with their checksums."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from atlas_wsi.errors import CorruptResultError
from atlas_wsi.heatmap.write import find_damage, read_summary

if TYPE_CHECKING:
    from atlas_wsi.batch.journal import Journal
    from atlas_wsi.progress import Progress

_THREADS = 4


def find_damaged(journal: Journal, progress: Progress) -> dict[str, str]:
    """Find finished results that are not as they were written."""
    done = [row.name for row in journal.read_rows().values() if row.state == "done"]
    damaged = {}
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="atlas-wsi-verify") as threads:
        found = threads.map(lambda name: _damage(journal, name), done)
        for number, (name, damage) in enumerate(zip(done, found, strict=True), start=1):
            if damage:
                damaged[name] = damage
            progress("verify", number, len(done))
    return damaged


def _damage(journal: Journal, name: str) -> str:
    folder = journal.out / name
    try:
        damage = find_damage(folder, read_summary(folder))
    except CorruptResultError as error:
        return error.message
    more = f" and {len(damage) - 1} more" if len(damage) > 1 else ""
    return f"{damage[0]}{more}" if damage else ""
