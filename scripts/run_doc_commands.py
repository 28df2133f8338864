"""Run every command of README and docs, and every Python example, as a reader would.

    python scripts/run_doc_commands.py [PAGE ...]

Each page has its own folder with the files that the pages name (`doc_inputs.py`). The `bash` fences
of a page run from top to bottom, then its `python` fences as one program. Commands that need a
cluster, a window or another machine have a comment before their fence, `<!-- not run: why -->`, and
are listed. Commands outside a tagged fence are an error.
"""

from __future__ import annotations

import atexit
import importlib
import os
import pkgutil
import re
import runpy
import shlex
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from multiprocessing import get_context, process
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING, NoReturn

from doc_inputs import make_inputs

import atlas_wsi

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[1]
FENCE = re.compile(
    r"^(?: *<!-- not run: (?P<why>.+?) -->\n+)?^ *```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)
NEEDS_SHELL = frozenset("|&;<>$`{}")
NOT_IMPORTED = ("atlas_wsi.__main__", "atlas_wsi.testing")
LOOSE = re.compile(r"^ {4,}(?:atlas-wsi|pip|make|python|dask|kubectl|OMP_\w+=\S+) .*", re.MULTILINE)
TIMEOUT_S = 600


@dataclass(frozen=True, slots=True)
class Fence:
    """A code block of a page."""

    line: int
    language: str
    code: str
    why_not: str | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a page."""

    page: Path
    lines: tuple[str, ...]
    ran: int
    skipped: int
    failed: int


def main(names: list[str]) -> int:
    """Run pages, all if no names are given; return 1 if a command failed."""
    pages = [ROOT / name for name in names] or [
        ROOT / "README.md",
        *sorted(ROOT.glob("docs/**/*.md")),
    ]
    with tempfile.TemporaryDirectory(prefix="doc-commands-") as work:
        inputs = Path(work) / "inputs"
        inputs.mkdir()
        # imports only: a process that starts threads cannot be forked safely
        _preload()
        made, message = _run(lambda: make_inputs(inputs), ROOT)
        if not made:
            print(f"inputs of the pages: {message}")
            return 1
        with ProcessPoolExecutor(2, get_context("fork")) as pool:
            runs = pool.map(partial(_run_page, inputs=inputs), pages)
            outcomes = [_show(outcome) for outcome in runs]
    ran, skipped, failed = (
        sum(getattr(o, k) for o in outcomes) for k in ("ran", "skipped", "failed")
    )
    print(f"{ran} commands and programs ran, {failed} failed, {skipped} were not run")
    return 1 if failed else 0


def fences(text: str) -> list[Fence]:
    """Find the code blocks of a page, in order."""
    return [
        Fence(text.count("\n", 0, m.start()) + 1, m["language"], dedent(m["code"]), m["why"])
        for m in FENCE.finditer(text)
    ]


def _run_page(page: Path, inputs: Path) -> Outcome:
    text = page.read_text()
    blocks = fences(text)
    lines = [f"{page.relative_to(ROOT)}:"]
    bad = [f"  NO FENCE {m.group().strip()}" for m in LOOSE.finditer(FENCE.sub("", text))]
    bad += [f"  NO LANGUAGE line {b.line}" for b in blocks if not b.language]
    folder = inputs.parent / page.relative_to(ROOT).with_suffix("").as_posix().replace("/", "-")
    shutil.copytree(inputs, folder)
    ran = skipped = failed = 0
    programs = []
    for block in blocks:
        commands = _commands(block.code) if block.language == "bash" else []
        if block.why_not is not None:
            skipped += max(len(commands), 1)
            lines += [f"  not run ({block.why_not}): {c}" for c in commands or ["program"]]
        elif block.language == "python":
            programs.append(block.code)
        for command in commands if block.why_not is None else []:
            ok, said = _run_command(command, folder)
            ran, failed = ran + 1, failed + (not ok)
            lines.append(f"  {said} {command}")
    if programs:
        (folder / "page.py").write_text("\n".join(programs))
        ok, said = _run_program("page.py", folder)
        ran, failed = ran + 1, failed + (not ok)
        lines.append(f"  {said} {len(programs)} blocks of Python")
    shutil.rmtree(folder)
    return Outcome(page, (*lines, *bad), ran, skipped, failed + len(bad))


def _commands(code: str) -> list[str]:
    joined = code.replace("\\\n", " ")
    return [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]


def _run_command(command: str, folder: Path) -> tuple[bool, str]:
    """Run a command line; one of `atlas-wsi` alone needs no new Python."""
    words = shlex.split(command, comments=True)
    if words[0] != "atlas-wsi" or NEEDS_SHELL & set(" ".join(words)):
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        bash = ["bash", "-euo", "pipefail", "-c", command]
        environment = os.environ | {"PATH": path}
        return _run(lambda: os.execvpe("bash", bash, environment), folder)  # noqa: S606

    def call() -> None:
        found = [sorted(map(str, Path().glob(w))) or [w] if "*" in w else [w] for w in words[1:]]
        sys.argv = ["atlas-wsi", *chain(*found)]
        runpy.run_module("atlas_wsi", run_name="__main__", alter_sys=True)

    return _run(call, folder)


def _run_program(name: str, folder: Path) -> tuple[bool, str]:
    def call() -> None:
        sys.argv, sys.path[0] = [name], str(folder)
        runpy.run_path(name, run_name="__main__")

    return _run(call, folder)


def _run(call: Callable[[], None], folder: Path) -> tuple[bool, str]:
    """Call something in a fork of this process; return whether it worked, and a message."""
    start = time.monotonic()
    with tempfile.TemporaryFile() as output:
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            _be_a_process(call, folder, output.fileno())
        state = _wait(child, start + TIMEOUT_S)
        if state is None:
            return False, f"FAILED (more than {TIMEOUT_S} s)"
        duration = f"{time.monotonic() - start:.0f} s"
        if state:
            output.seek(0)
            text = output.read().decode(errors="replace")
            return False, f"FAILED ({duration})\n{text[-4000:]}\n "
    return True, f"ok ({duration})"


def _be_a_process(call: Callable[[], None], folder: Path, output: int) -> NoReturn:
    """Call something as if it were all that this process does, and end the process."""
    code = 1
    try:
        os.setpgrp()
        nothing = os.open(os.devnull, os.O_RDONLY)
        for ours, fd in ((nothing, 0), (output, 1), (output, 2)):
            os.dup2(ours, fd)
        os.chdir(folder)
        process.ORIGINAL_DIR = str(folder)  # where processes that it spawns begin
        atexit._clear()  # what the parent registered is the parent's
        call()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - shown as the interpreter would
        traceback.print_exc()
    finally:
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(child: int, deadline: float) -> int | None:
    """Return the exit status of a child; None if it had to be killed."""
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return status
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(0.05)


def _preload() -> None:
    """Import, once for all commands, what they import."""
    late = ("matplotlib.backends.backend_agg", "pandas", "scipy.optimize", "skimage.morphology")
    for name in ("matplotlib.pyplot", "shapely", "timm", *late, *_own_modules()):
        importlib.import_module(name)


def _own_modules() -> list[str]:
    found = pkgutil.walk_packages(atlas_wsi.__path__, "atlas_wsi.")
    return [m.name for m in found if not m.name.startswith(NOT_IMPORTED)]


def _show(outcome: Outcome) -> Outcome:
    if len(outcome.lines) > 1:
        print("\n".join(outcome.lines), flush=True)
    return outcome


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
