"""The slides of an archive: a folder, a pattern, a list, or a prefix of an object store."""

from __future__ import annotations

import os
import posixpath
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
from pydantic import ValidationError

from atlas_wsi.batch.journal import SlideRequest
from atlas_wsi.errors import ArchiveError
from atlas_wsi.files import read_csv
from atlas_wsi.inference.slide_run import result_names
from atlas_wsi.slides.registry import slide_suffixes
from atlas_wsi.slides.resolution import check_mpp, parse_gsd

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

_COLUMNS = ("slide", "wsi")


def list_slides(
    source: str | os.PathLike[str], *, leave_out: str | os.PathLike[str] | None = None
) -> list[tuple[str, float | None]]:
    """List the slides of an archive."""
    text = os.fspath(source)
    if text.lower().endswith(".csv"):
        slides = _read_csv(text)
    else:
        skip = None if leave_out is None else str(Path(leave_out).absolute())
        slides = [(path, None) for path in sorted(set(_search(text, skip)))]
    if not slides:
        raise ArchiveError(
            f"No slide was found in {text}.",
            hint=f"In a folder, slides are files ending in {', '.join(slide_suffixes())}; "
            "a pattern or a CSV takes any name.",
        )
    return slides


def _search(text: str, skip: str | None) -> Iterator[str]:
    fs, root = fsspec.core.url_to_fs(text)
    is_url = "://" in text
    try:
        if any(mark in text for mark in "*?[") and not (not is_url and Path(text).exists()):
            paths: Iterable[str] = fs.glob(root)
        elif fs.isfile(root) or (root.rstrip("/").lower().endswith(".zarr") and fs.isdir(root)):
            paths = [root]
        elif fs.isdir(root):
            paths = _walk(fs, root, skip)
        else:
            raise ArchiveError(
                f"{text} does not exist.", hint="Give a folder, a pattern, a CSV or a slide."
            )
        for path in paths:
            yield fs.unstrip_protocol(path) if is_url else os.path.abspath(path)  # noqa: PTH100
    except (OSError, ImportError) as error:
        if isinstance(error, ArchiveError):
            raise
        raise ArchiveError(f"{text} cannot be listed: {error}.") from error


def _walk(fs: Any, root: str, skip: str | None) -> Iterator[str]:
    """Yield slides below a folder, without entering folders that are one slide."""
    for folder, folders, files in fs.walk(root, topdown=True):
        if any(name.lower().endswith(".dcm") for name in files):
            yield folder
            folders.clear()
            continue
        for name in list(folders):
            path = posixpath.join(folder, name)
            of_mrxs = f"{name}.mrxs" in files
            if name.lower().endswith(".zarr"):
                yield path
            if name.startswith(".") or of_mrxs or path == skip or name.lower().endswith(".zarr"):
                folders.remove(name)
        for name in files:
            if name.lower().endswith(slide_suffixes()) and not name.startswith("."):
                yield posixpath.join(folder, name)


def _read_csv(text: str) -> list[tuple[str, float | None]]:
    base = posixpath.dirname(text) if "://" in text else str(Path(text).absolute().parent)
    names, rows = read_csv(text, error=ArchiveError)
    column = next((name for name in _COLUMNS if name in names), None)
    if column is None:
        raise ArchiveError(
            f"{text} has the columns {', '.join(names) or 'none'}; expected one named 'slide' or "
            "'wsi', and optionally 'mpp' or 'gsd'."
        )
    slides: dict[str, float | None] = {}
    for line, row in enumerate(rows, start=2):
        if not row[column]:
            continue
        slide, mpp = _beside(base, row[column]), _mpp(row, f"{text}, line {line}")
        if slides.setdefault(slide, mpp) != mpp:
            raise ArchiveError(
                f"{text}, line {line}: {row[column]} is listed before with another pixel size."
            )
    return list(slides.items())


def _beside(base: str, slide: str) -> str:
    """Resolve a path of a CSV, which is relative to the folder of the CSV."""
    if "://" in slide:
        return slide
    if "://" in base:
        return posixpath.join(base, slide)
    path = os.path.expandvars(os.path.expanduser(slide))  # noqa: PTH111 - it never raises
    return os.path.normpath(Path(base, path))


def _mpp(row: Mapping[str, str], where: str) -> float | None:
    """Return the pixel size of a row: micrometers in `mpp`, or a length in `gsd`."""
    mpp, gsd = row.get("mpp", ""), row.get("gsd", "")
    if not mpp and not gsd:
        return None
    if mpp and gsd:
        raise ArchiveError(f"{where}: both mpp and gsd are given; one is enough.")
    try:
        return check_mpp(float(mpp))[0] if mpp else parse_gsd(gsd)
    except ValueError as error:
        name, value = ("mpp", mpp) if mpp else ("gsd", gsd)
        raise ArchiveError(
            f"{where}: {name} is '{value}', expected mpp such as 0.25, gsd such as 10m, or nothing."
        ) from error


def name_slides(
    listed: Sequence[tuple[str, float | None]], known: Sequence[SlideRequest]
) -> list[SlideRequest]:
    """Give each slide its own folder name in the output folder."""
    slides = list(known)
    by_source = {slide.source: slide for slide in slides}
    new = [source for source, _ in listed if source not in by_source]
    names = result_names(new, taken=[slide.name for slide in slides])
    for source, mpp in listed:
        old = by_source.get(source)
        if old is not None:
            if mpp is not None and mpp != old.mpp:
                raise ArchiveError(
                    f"{source} was listed with mpp {old.mpp} before, and is now listed with {mpp}.",
                    hint="Choose another output folder, or --overwrite.",
                )
            continue
        try:
            slides.append(SlideRequest(name=names[source], source=source, mpp=mpp))
        except ValidationError as error:
            raise ArchiveError(f"{source}: {error.errors()[0]['msg']}.") from error
    return slides
