"""Open damaged files with every reader of untrusted files; each may raise only AtlasError.

    python scripts/fuzz.py --inputs 100000 --seed 1 [--target NAME] [--replay FILE]

Two workers open the inputs in their own processes. A worker that crashes, or an input that takes 10 s
or 1 GiB of additional memory, is a finding, stored with its input under findings/.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import hashlib
import io
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fuzz_files import door_of, lay_out, make_seeds
from fuzz_mutators import mutate

from atlas_wsi.errors import AtlasError

if TYPE_CHECKING:
    from collections.abc import Callable

SECONDS = 10
ROOM_BYTES = 2**30
_CHUNK = 250  # inputs per worker between two reports


class Hang(BaseException):
    """An input took too long."""


def try_one(door: Callable[[Path], object], path: Path) -> str:
    """Open an input; return "read", "refused" or the traceback of a finding."""

    def hang(*_: object) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, hang)
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            door(path)
    except AtlasError as error:
        return traceback.format_exc() if _lacked_memory(error) else "refused"
    except (Exception, Hang):  # noqa: BLE001 - any other error is a finding
        return traceback.format_exc()
    else:
        return "read"
    finally:
        signal.alarm(0)


def _lacked_memory(error: BaseException | None) -> bool:
    """Return whether a refusal hides a failed allocation."""
    while error is not None:
        if isinstance(error, MemoryError) or "unable to allocate" in str(error).lower():
            return True
        error = error.__cause__ or error.__context__
    return False


def make_input(target: str, seed: int, index: int, files: list[Path]) -> tuple[str, bytes]:
    """Make an input: the same for the same seed and index."""
    rng = random.Random(f"{target}/{seed}/{index}")
    file = rng.choice(files)
    return file.name, mutate(file.read_bytes(), file.name, rng)


def run_chunk(
    target: str, seed: int, first: int, n: int, home: Path, files: list[Path], current: Any = None
) -> list[tuple[int, str]]:
    """Try inputs one after another in this process."""
    door, found = door_of(target, home / "seeds"), []
    place = Path(tempfile.mkdtemp(dir=home)) if current is not None else home / "input"
    for index in range(first, first + n):
        if current is not None:
            current.value = index
        name, data = make_input(target, seed, index, files)
        found.append((index, try_one(door, lay_out(target, name, data, place))))
    shutil.rmtree(place, ignore_errors=True)
    return found


def _work(args: tuple[Any, ...], current: Any, pipe: Any) -> None:
    faulthandler.enable()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff warns about every other file
    import torch

    torch.set_num_threads(1)
    door_of(args[0], args[4] / "seeds")
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + ROOM_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    found = run_chunk(*args, current=current)
    pipe.send((found, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
    pipe.close()


class Worker:
    """A process that tries inputs; restarted after a crash."""

    def __init__(self, args: tuple[Any, ...]) -> None:
        fork = multiprocessing.get_context("fork")
        self.args, self.current = args, fork.Value("q", args[2])
        self.seen, self.since = args[2], time.monotonic()
        self.pipe, child = fork.Pipe(duplex=False)
        self.process = fork.Process(target=_work, args=(args, self.current, child))
        self.process.start()
        child.close()

    def poll(self) -> tuple[list[tuple[int, str]], int] | None:
        """Return the outcomes and the peak memory (KiB) once it has ended, else None."""
        if self.pipe.poll(0.02):
            try:
                found: tuple[list[tuple[int, str]], int] = self.pipe.recv()
            except EOFError:
                self.process.join()
                return [(self.current.value, f"died: exit code {self.process.exitcode}")], 0
            self.process.join()
            return found
        now = self.current.value
        if now != self.seen:
            self.seen, self.since = now, time.monotonic()
        elif time.monotonic() - self.since > 2 * SECONDS:
            self.process.kill()
            self.process.join()
            return [(now, f"hang: no answer in {2 * SECONDS} s")], 0
        return None


def key_of(outcome: str) -> str:
    """Name a finding by its error and the last line of our code in the traceback."""
    lines = outcome.strip().splitlines()
    ours = [line.strip() for line in lines if "/atlas_wsi/" in line and "File" in line]
    place = ours[-1].split("/atlas_wsi/")[-1] if ours else ""
    return f"{lines[-1][:90]} @ {place}"


def run(inputs: int, seed: int, only: str | None, findings: Path, minutes: float) -> dict[str, Any]:
    """Try many inputs in two workers."""
    begin, peak = time.monotonic(), 0
    counts: dict[str, Counter[str]] = {}
    kinds: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        (home / "seeds").mkdir()
        seeds = make_seeds(home / "seeds")
        todo = plan(inputs, [only] if only else list(seeds))
        jobs = [(t, i, min(_CHUNK, n - i)) for t, n in todo.items() for i in range(0, n, _CHUNK)]
        random.Random(seed).shuffle(jobs)
        workers: list[Worker] = []
        while jobs or workers:
            if (time.monotonic() - begin) > 60 * minutes:
                jobs.clear()
            while jobs and len(workers) < 2:
                target, first, n = jobs.pop()
                workers.append(Worker((target, seed, first, n, home, seeds[target])))
            for worker in list(workers):
                if (done := worker.poll()) is None:
                    continue
                workers.remove(worker)
                target, _, first, n = worker.args[:4]
                outcomes, kib = done
                peak = max(peak, kib)
                if kib == 0:  # crashed, and its other results with it
                    last = outcomes[0][0]
                    if last > first:
                        jobs.append((target, first, last - first))
                    if last + 1 < first + n:
                        jobs.append((target, last + 1, first + n - last - 1))
                for index, outcome in outcomes:
                    kind = outcome if outcome in ("read", "refused") else "finding"
                    counts.setdefault(target, Counter())[kind] += 1
                    if kind == "finding":
                        key = f"{target}: {key_of(outcome)}"
                        kinds[key] += 1
                        if kinds[key] == 1:
                            keep(
                                findings,
                                target,
                                make_input(target, seed, index, seeds[target]),
                                outcome,
                            )
    return {
        "seed": seed, "targets": {t: dict(c) for t, c in sorted(counts.items())},
        "inputs": sum(sum(c.values()) for c in counts.values()), "findings": dict(kinds),
        "minutes": round((time.monotonic() - begin) / 60, 2), "peak_MiB": peak // 1024,
    }  # fmt: skip


def plan(inputs: int, targets: list[str]) -> dict[str, int]:
    """Distribute inputs evenly; readers of TIFF get twice as many, those of models half."""
    weights = {
        "tiff": 4,
        "codecs": 4,
        "geotiff": 2,
        "omexml": 2,
        "image": 2,
        "model": 1,
        "result": 1,
        "groups": 1,
    }
    shares = {target: weights.get(target, 3) for target in targets}
    todo = {target: inputs * n // sum(shares.values()) for target, n in shares.items()}
    todo[targets[0]] += inputs - sum(todo.values())
    return todo


def keep(findings: Path, target: str, made: tuple[str, bytes], outcome: str) -> None:
    """Store the input of a finding, and its outcome."""
    name, data = made
    findings.mkdir(exist_ok=True)
    stem = f"{target}@{hashlib.sha256(data).hexdigest()[:10]}@{name}"
    (findings / stem).write_bytes(data)
    (findings / f"{stem}.txt").write_text(outcome)


def replay(file: Path) -> str:
    """Try a stored input in this process and return the outcome."""
    target, _, name = file.name.split("@", 2)
    with tempfile.TemporaryDirectory() as home:
        seeds = Path(home) / "seeds"
        seeds.mkdir()
        make_seeds(seeds)
        path = lay_out(target, name, file.read_bytes(), Path(home) / "input")
        return try_one(door_of(target, seeds), path)


def main() -> None:
    """Run the fuzzer, or replay an input."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--target")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--findings", type=Path, default=Path("findings"))
    parser.add_argument("--replay", type=Path)
    args = parser.parse_args()
    if args.replay:
        print(replay(args.replay))
        return
    found = run(args.inputs, args.seed, args.target, args.findings, args.minutes)
    print(json.dumps(found, indent=1))
    raise SystemExit(bool(found["findings"]))


if __name__ == "__main__":
    main()
