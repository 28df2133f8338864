"""Install the wheel into its own environment and use it as a new user would.

    python scripts/try_wheel.py

The environment has no compiler, no Qt and none of this environment's variables; where the system
allows it, the commands also run without a network. The sdist must give the same wheel.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from functools import cache
from pathlib import Path

import atlas_wsi

ROOT = Path(__file__).parents[1]
NO_NETWORK = [shutil.which("unshare") or "unshare", "--net", "--map-root-user"]


def main() -> int:
    """Build, install, run."""
    with tempfile.TemporaryDirectory(prefix="wheel-") as folder:
        work = Path(folder)
        wheel = _build(ROOT, work / "dist")
        _same_from_sdist(work / "dist", work, wheel)
        python = _install(wheel, work / "env")
        _use(python, work)
    print("the wheel installs and works")
    return 0


def _build(source: Path, target: Path) -> Path:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", str(target)],
        cwd=source,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    (wheel,) = target.glob("*.whl")
    print(f"{wheel.name}: {wheel.stat().st_size / 2**20:.1f} MiB")
    return wheel


def _same_from_sdist(dist: Path, work: Path, wheel: Path) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as packed:
        packed.extractall(work / "source", filter="data")
    (source,) = (work / "source").iterdir()
    again = _build(source, work / "again")
    here, there = (_contents(w) for w in (wheel, again))
    if here != there:
        sys.exit(f"{sdist.name} gives another wheel: {sorted(set(here) ^ set(there))[:5]}")


def _contents(wheel: Path) -> list[tuple[str, int]]:
    with zipfile.ZipFile(wheel) as packed:
        return sorted((info.filename, info.CRC) for info in packed.infolist())


def _install(wheel: Path, folder: Path) -> Path:
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    subprocess.run(
        [*pip, "--only-binary", ":all:", "-c", str(ROOT / "constraints.txt"), str(wheel)],
        check=True,
        stderr=subprocess.DEVNULL,
    )
    return python


def _use(python: Path, work: Path) -> None:
    home = work / "home"
    home.mkdir()
    shutil.copy(atlas_wsi.fetch_sample(), home / "slide.svs")
    tools = python.parent
    absent = "import importlib.util as u; print([n for n in {} if u.find_spec(n)])"
    found = _run([str(python), "-c", absent.format(["PyQt6", "PySide6", "napari", "pytest"])], home)
    if found.strip() != "[]":
        sys.exit(f"unexpected packages are installed: {found}")
    for command in (
        ["atlas-wsi", "models"],
        ["atlas-wsi", "info", "slide.svs"],
        ["atlas-wsi", "predict", "slide.svs", "-o", "out"],
        ["atlas-wsi", "export", "out/slide", "--to", "qupath", "-o", "exported"],
    ):
        _run([str(tools / command[0]), *command[1:]], home)
    summary = json.loads((home / "out" / "slide" / "summary.json").read_text())
    if not summary["predicted_area"]:
        sys.exit("nothing was predicted")


@cache
def _without_network() -> list[str]:
    if not Path(NO_NETWORK[0]).is_file():
        return []
    works = subprocess.run([*NO_NETWORK, "/bin/true"], check=False, capture_output=True)
    print(
        "network is cut off"
        if works.returncode == 0
        else "the network cannot be cut off on this system"
    )
    return NO_NETWORK if works.returncode == 0 else []


def _run(command: list[str], home: Path) -> str:
    print(Path(command[0]).name, *command[1:3], flush=True)
    done = subprocess.run(
        [*_without_network(), *command],
        cwd=home,
        env={"HOME": str(home), "PATH": f"{Path(command[0]).parent}", "CC": "/bin/false"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{command} failed:\n{done.stdout}\n{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
