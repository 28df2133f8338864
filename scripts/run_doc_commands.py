"""Run every command of README and docs, and every Python example, as a reader would.

    python scripts/run_doc_commands.py [PAGE ...]

Each page has its own folder with the files that the pages name (`doc_inputs.py`). The `bash` fences
of a page run from top to bottom, then its `python` fences as one program. Commands that need a
cluster, a window or another machine have a comment before their fence, `<!-- not run: why -->`, and
are listed. Commands outside a tagged fence are an error.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

from doc_inputs import make_inputs

ROOT = Path(__file__).parents[1]
FENCE = re.compile(
    r"^(?: *<!-- not run: (?P<why>.+?) -->\n+)?^ *```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)
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
        make_inputs(inputs)
        with ThreadPoolExecutor(2) as pool:
            outcomes = list(pool.map(lambda page: _show(_run_page(page, inputs)), pages))
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
            ok, said = _run(["bash", "-euo", "pipefail", "-c", command], folder)
            ran, failed = ran + 1, failed + (not ok)
            lines.append(f"  {said} {command}")
    if programs:
        (folder / "page.py").write_text("\n".join(programs))
        ok, said = _run([sys.executable, "page.py"], folder)
        ran, failed = ran + 1, failed + (not ok)
        lines.append(f"  {said} {len(programs)} blocks of Python")
    shutil.rmtree(folder)
    return Outcome(page, (*lines, *bad), ran, skipped, failed + len(bad))


def _commands(code: str) -> list[str]:
    joined = code.replace("\\\n", " ")
    return [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]


def _run(command: list[str], folder: Path) -> tuple[bool, str]:
    before = time.monotonic()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=os.environ | {"PATH": path},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False, f"FAILED (more than {TIMEOUT_S} s)"
    took = f"{time.monotonic() - before:.0f} s"
    if done.returncode:
        return False, f"FAILED ({took})\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}\n "
    return True, f"ok ({took})"


def _show(outcome: Outcome) -> Outcome:
    if len(outcome.lines) > 1:
        print("\n".join(outcome.lines), flush=True)
    return outcome


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
