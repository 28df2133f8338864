"""The folder of a result: checked before it is written and when it is read."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from atlas_wsi.errors import CorruptResultError, OutputNotWritableError, ResultExistsError
from atlas_wsi.files import disk_errors, folder_name, remove_leftovers
from atlas_wsi.heatmap.formats import RESULT_FORMATS
from atlas_wsi.heatmap.records import Summary, record_file

if TYPE_CHECKING:
    from atlas_wsi.heatmap.heatmap import Heatmap

SUMMARY = "summary.json"
MAX_SUMMARY_BYTES = 1 << 26


def check_writable(out_dir: str | os.PathLike[str], name: str, *, overwrite: bool = False) -> Path:
    """Check, before long work, that its result can be written."""
    folder = Path(out_dir)
    final = folder / folder_name(name)
    if folder.exists() and not folder.is_dir():
        raise OutputNotWritableError(
            f"{folder} is a file, expected a folder for results.",
            hint="Choose another output folder.",
        )
    with disk_errors(final):
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        with tempfile.TemporaryDirectory(dir=folder, prefix=f".{final.name}."):
            pass
        if final.is_dir() and not any(final.iterdir()):
            return final
    if not os.path.lexists(final):
        return final
    if not (final / SUMMARY).is_file():
        raise ResultExistsError(
            f"{final} exists and is not a result (it has no {SUMMARY}); it was not changed.",
            hint="Move it away or choose another output folder.",
        )
    if not overwrite:
        raise ResultExistsError(
            f"There is a result in {final}.", hint="Replace it with --overwrite."
        )
    return final


def find_results(path: str | os.PathLike[str]) -> list[Path]:
    """List the results in a folder.

    Parameters
    ----------
    path
        The folder of a result, or a folder of such folders.

    Returns
    -------
    list[Path]
        Folders of results.

    Raises
    ------
    CorruptResultError
        If there are none.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise CorruptResultError(f"{folder} is not a folder with a result.")
    if (folder / SUMMARY).is_file():
        return [folder]
    results = [p.parent for p in folder.glob(f"*/{SUMMARY}") if not p.parent.name.startswith(".")]
    if not results:
        raise CorruptResultError(
            f"{folder} is not a result: it has no {SUMMARY}.",
            hint="Give a folder that `atlas-wsi predict` or `atlas-wsi batch` wrote.",
        )
    return sorted(results)


def open_result(path: str | os.PathLike[str]) -> Heatmap:
    """Read a result back.

    Parameters
    ----------
    path
        The result's folder, or a folder that holds one result.

    Returns
    -------
    Heatmap
        The result, probabilities in float16.

    Raises
    ------
    CorruptResultError
        If there is no result, or a file of its OME-Zarr is missing or changed.
    """
    from atlas_wsi.heatmap.formats.omezarr import read_omezarr

    folder, *others = find_results(path)
    if others:
        names = ", ".join(p.name for p in (folder, *others[:4]))
        raise CorruptResultError(
            f"{path} holds {1 + len(others)} results ({names}{', ...' if others[4:] else ''}).",
            hint="Open one of them.",
        )
    summary = read_summary(folder)
    file = RESULT_FORMATS["ome-zarr"].file
    if not any(name.startswith(f"{file}/") for name in summary.files):
        raise CorruptResultError(
            f"{folder} was written without {file}, so it cannot be opened.",
            hint="Predict again with the format ome-zarr.",
        )
    damage = find_damage(folder, summary, below=f"{file}/")
    if damage:
        more = f" and {len(damage) - 1} more" if len(damage) > 1 else ""
        raise CorruptResultError(
            f"{folder}: {damage[0]}{more}.", hint="Predict again with --overwrite."
        )
    return read_omezarr(folder / file)


def read_summary(folder: Path) -> Summary:
    """Read the summary of a result."""
    path = folder / SUMMARY
    try:
        size = path.stat().st_size
        if size > MAX_SUMMARY_BYTES:
            raise CorruptResultError(
                f"{path} is {size} bytes long, at most {MAX_SUMMARY_BYTES} are read."
            )
        return Summary.model_validate_json(path.read_bytes())
    except OSError as error:
        raise CorruptResultError(f"{path} cannot be read: {error.strerror}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise CorruptResultError(f"{path}: {where}: {first['msg']}.") from error


def find_damage(folder: Path, summary: Summary, *, below: str = "") -> tuple[str, ...]:
    """Compare the files of a result with the sizes and hashes in its summary."""
    damage = []
    for name, expected in summary.files.items():
        path = folder / name
        if not name.startswith(below):
            continue
        if not path.is_file():
            damage.append(f"{name} is missing")
        elif path.stat().st_size != expected.bytes:
            damage.append(f"{name} has {path.stat().st_size} bytes, expected {expected.bytes}")
        elif record_file(path) != expected:
            damage.append(f"{name} was changed: its SHA-256 is not {expected.sha256}")
    return tuple(damage)
