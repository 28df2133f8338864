"""Give damaged files to every reader of files from outside; each may only raise AtlasError.

    python scripts/fuzz.py --inputs 100000 --seed 1 [--target NAME] [--replay FILE]

Workers (two) open each input in their own process. A worker that dies, hangs for 10 s or asks
for 1 GiB more than it began with is a finding, kept with its input under findings/.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import faulthandler
import hashlib
import io
import json
import multiprocessing
import random
import resource
import shutil
import signal
import struct
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from atlas_wsi.errors import AtlasError

if TYPE_CHECKING:
    from collections.abc import Callable

SECONDS = 10
ROOM_BYTES = 2**30
LEAST = 2000
_CHUNK = 250  # inputs a worker does between two reports
_NASTY = (0, 1, -1, 2**31 - 1, 2**32, 2**63, 10**400, 1e308, -0.5, None, True, "", "x", [], {})
_RESULT = {
    "summary.json": "summary.json",
    "group.json": "heatmap.ome.zarr/zarr.json",
    "array.json": "heatmap.ome.zarr/0/zarr.json",
}
_NASTY_TEXT = ("NaN", "Infinity", "-1e999", "[" * 5000, "\x00", "\\ud83d")


class Hang(BaseException):
    """An input took too long."""


# --- seeds: small valid files ------------------------------------------------------------------


def make_seeds(folder: Path) -> dict[str, list[Path]]:
    """Write valid files of every kind.

    Parameters
    ----------
    folder
        An empty folder.

    Returns
    -------
    dict
        Files by target.
    """
    import h5py
    import rasterio
    import tifffile
    import torch
    from PIL import Image
    from rasterio.transform import from_origin
    from safetensors.torch import save_file

    import atlas_wsi
    from atlas_wsi.models.registry import load_model
    from atlas_wsi.slides.synthetic import make_svs

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (128, 96, 3), dtype=np.uint8)
    make_svs(folder / "a.svs", (128, 128), tile=64, levels=1)
    tifffile.imwrite(folder / "a.tif", pixels, tile=(64, 64), compression="deflate")
    tifffile.imwrite(folder / "b.tif", pixels, bigtiff=True, photometric="rgb")
    tifffile.imwrite(folder / "a.ome.tif", pixels, metadata={"axes": "YXS"}, photometric="rgb")
    with rasterio.open(
        folder / "geo.tif", "w", driver="GTiff", width=96, height=128, count=3, dtype="uint8",
        crs="EPSG:32633", transform=from_origin(5e5, 5e6, 10, 10),
    ) as raster:  # fmt: skip
        raster.write(pixels.transpose(2, 0, 1))
    for name in ("a.png", "a.jpg", "a.bmp"):
        Image.fromarray(pixels).save(folder / name)
    Image.fromarray(pixels[..., 0]).resize((128, 128)).save(folder / "mask.png")
    ring = [[5, 5], [100, 5], [100, 100], [5, 100], [5, 5]]
    feature = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"classification": {"name": "tumor", "color": [1, 2, 3]}},
    }
    whole = {"type": "FeatureCollection", "features": [feature, feature]}
    (folder / "a.geojson").write_text(json.dumps(whole))
    with h5py.File(folder / "a.h5", "w") as file:
        file["coords"] = np.array([[0, 0], [64, 64]])
        file["coords"].attrs.update(patch_size=64, patch_level=0)
        file["features"] = np.ones((2, 4), np.float32)
    (folder / "list.csv").write_text("slide,regions,group\na.svs,a.geojson,p1\nb.tif,a.geojson,\n")
    (folder / "batch.csv").write_text("slide,mpp\na.svs,0.5\nb.tif,\n")
    names = [f"{c}/{n}.png" for c in "ab" for n in (0, 1)]
    rows = "".join(f"{name},{name[0]},p{k}\n" for k, name in enumerate(names))
    (folder / "groups.csv").write_text(f"path,class,group\n{rows}")
    tensors = {"w": torch.ones(3, 4), "b": torch.zeros(3)}
    save_file(tensors, folder / "a.safetensors", metadata={"format": "pt"})
    torch.save(tensors, folder / "a.pth")
    model = load_model("atlas_test")
    model.save(folder / "model.safetensors")
    atlas_wsi.predict(atlas_wsi.open_slide(folder / "a.svs"), model).write(folder)
    for name, part in _RESULT.items():
        shutil.copy(folder / "a" / part, folder / name)
    steps: list[Any] = [
        {"name": "Resize", "arguments": {"size": 64}},
        {"name": "ToTensor"},
        {"name": "Normalize", "arguments": {"mean": [0.5] * 3, "std": [0.5] * 3}},
    ]
    config = {
        "num_classes": 2, "class_names": ["a", "b"], "patch_size_pixels": 64,
        "spacing_um_px": 0.5, "architecture": "resnet", "transform": steps,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    multiscale = {
        "version": "0.4",
        "axes": [{"name": n, "type": "channel" if n == "c" else "space"} for n in "cyx"],
        "datasets": [
            {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1, 0.5, 0.5]}]}
        ],
    }
    zattrs = {"multiscales": [multiscale]}
    zarray = {
        "zarr_format": 2, "shape": [3, 64, 64], "chunks": [3, 64, 64], "dtype": "|u1",
        "compressor": None, "fill_value": 0, "order": "C", "filters": None,
    }  # fmt: skip
    (folder / "zattrs.json").write_text(json.dumps(zattrs))
    (folder / "zarray.json").write_text(json.dumps(zarray))
    return {
        "tiff": [folder / n for n in ("a.svs", "a.tif", "b.tif", "a.ome.tif")],
        "geotiff": [folder / "geo.tif"],
        "image": [folder / n for n in ("a.png", "a.jpg", "a.bmp")],
        "omezarr": [folder / n for n in ("zattrs.json", "zarray.json")],
        "areas": [folder / "a.geojson"],
        "regions": [folder / "a.geojson"],
        "mask": [folder / "mask.png"],
        "tiles": [folder / "a.h5"],
        "list": [folder / "list.csv"],
        "groups": [folder / "groups.csv"],
        "batch": [folder / "batch.csv"],
        "model": [folder / "model.safetensors"],
        "result": [folder / name for name in _RESULT],
        "weights": [folder / "a.safetensors", folder / "a.pth"],
        "config": [folder / "config.json"],
        "inspect": [
            folder / n
            for n in ("a.svs", "geo.tif", "a.png", "a.geojson", "a.h5", "list.csv",
                      "a.safetensors", "a.pth", "config.json")
        ],
    }  # fmt: skip


# --- mutators ----------------------------------------------------------------------------------


def mutate(data: bytes, name: str, rng: random.Random) -> bytes:
    """Damage a file.

    Parameters
    ----------
    data
        A valid file.
    name
        Its name; JSON and TIFF files are damaged by their structure, too.
    rng
        Decides how.

    Returns
    -------
    bytes
        The damaged file.
    """
    if name.endswith(("json",)) and rng.random() < 0.8:
        return _mutate_json(data, rng)
    if name.endswith((".tif", ".svs")) and rng.random() < 0.7:
        return _mutate_tiff(data, rng)
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.randrange(len(found) + 1)
        # Headers are worth more than pixels.
        at = min(at, rng.choice((at, 64, 512)))
        match rng.randrange(5):
            case 0 if at < len(found):
                found[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(found):
                found[at] = rng.choice((0, 255, 127, 128, rng.randrange(256)))
            case 2:
                del found[max(1, rng.randrange(len(found) + 1)) :]
            case 3:
                found[at:at] = rng.randbytes(rng.choice((1, 4, 64)))
            case _:
                found[at:at] = found[at : at + rng.choice((4, 32, 512))]
    return bytes(found) or b"\0"


def _mutate_json(data: bytes, rng: random.Random) -> bytes:
    whole = json.loads(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        places: list[tuple[Any, Any]] = []
        _places(whole, places)
        if not places:
            break
        parent, key = rng.choice(places)
        match rng.randrange(5):
            case 0:
                del parent[key]
            case 1 if isinstance(parent, dict):
                parent[rng.choice(("extra", "type", "crs", "\x00"))] = parent[key]
            case 2:
                deep: Any = parent[key]
                for _ in range(rng.choice((1, 20, 100))):
                    deep = [deep]
                parent[key] = deep
            case _:
                parent[key] = copy.copy(rng.choice(_NASTY))
    if rng.random() < 0.1:
        whole = rng.choice((whole, [whole], 0, None, "x", [], {}))
    text = json.dumps(whole, allow_nan=True)
    if rng.random() < 0.15:
        text = text.replace(rng.choice("0123456789"), rng.choice(_NASTY_TEXT), 1)
    return text.encode("utf-8", "replace")


def _places(value: Any, found: list[tuple[Any, Any]]) -> None:
    if isinstance(value, dict):
        items: Any = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    else:
        return
    for key, child in items:
        found.append((value, key))
        _places(child, found)


def _mutate_tiff(data: bytes, rng: random.Random) -> bytes:
    """Change the type, count or value of tags."""
    found = bytearray(data)
    is_big = found[2:4] == b"+\0"
    head, n_form, size, at = ("<Q", "<Q", 20, 8) if is_big else ("<I", "<H", 12, 4)
    (where,) = struct.unpack_from(head, found, at)
    (n_tags,) = struct.unpack_from(n_form, found, where)
    first = where + struct.calcsize(n_form)
    for _ in range(rng.choice((1, 1, 2, 3))):
        tag = first + size * rng.randrange(n_tags)
        value = rng.choice((0, 1, 2, 255, 65535, 2**24, 2**31, 2**32 - 1, rng.randrange(2**32)))
        match rng.randrange(5):
            case 0:
                struct.pack_into(
                    "<H", found, tag, rng.choice((value & 65535, 256, 258, 277, 34735))
                )
            case 1:
                struct.pack_into("<H", found, tag + 2, rng.randrange(20))
            case 2:
                struct.pack_into("<I", found, tag + 4, value)
            case 3:
                struct.pack_into("<H", found, tag + size - 4 - 4 * is_big, value & 65535)
            case _:
                struct.pack_into("<I", found, tag + size - 4 - 4 * is_big, value)
    return bytes(found)


# --- public doors ------------------------------------------------------------------------------


def _door(target: str, seeds: Path) -> Callable[[Path], object]:
    from atlas_wsi import open_result
    from atlas_wsi.batch.source import list_slides
    from atlas_wsi.interop.inspect import inspect_file
    from atlas_wsi.models.checkpoints import read_weights
    from atlas_wsi.models.registry import load_model
    from atlas_wsi.models.wsinfer import read_config
    from atlas_wsi.slides.open import open_slide
    from atlas_wsi.tissue.areas import read_areas, read_tissue
    from atlas_wsi.training.regions import areas_by_class, read_list
    from atlas_wsi.training.tiles import read_tiles

    def read_slide(path: Path) -> None:
        with open_slide(path) as slide:
            rows, cols = (min(64, n) for n in slide.shape)
            slide.read_region(0, 0, rows, cols)

    doors: dict[str, Callable[[Path], object]] = {
        "list": read_list, "result": lambda path: open_result(path).areas(), "batch": list_slides, "model": load_model, "weights": read_weights,
        "config": lambda path: read_config(path.parent), "inspect": inspect_file,
        "groups": lambda path: read_tiles(path.parent),
    }  # fmt: skip
    if target in doors:
        return doors[target]
    if target in ("areas", "regions", "mask", "tiles"):
        slide = open_slide(seeds / "a.svs")
        read = {"areas": read_areas, "regions": areas_by_class}.get(target, read_tissue)
        return lambda path: read(path, slide)
    return read_slide


def lay_out(target: str, name: str, data: bytes, folder: Path) -> Path:
    """Write an input where its reader looks for it.

    Parameters
    ----------
    target
        What is to read it.
    name
        Name of the valid file that it comes from.
    data
        The damaged file.
    folder
        Where; emptied first.

    Returns
    -------
    Path
        What to open.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if target == "omezarr":
        valid = make_zarr_files(folder.parent / "seeds")
        place = folder / "a.zarr"
        (place / "0").mkdir(parents=True)
        (place / ".zgroup").write_text('{"zarr_format": 2}')
        for key, file in (("zattrs.json", ".zattrs"), ("zarray.json", "0/.zarray")):
            (place / file).write_bytes(data if key == name else valid[key])
        (place / "0" / "0.0.0").write_bytes(bytes(3 * 64 * 64))
        return place
    if target == "groups":
        for one in "ab":
            (folder / one).mkdir()
            for k in (0, 1):
                shutil.copy(folder.parent / "seeds" / "a.png", folder / one / f"{k}.png")
    if target == "result":
        shutil.copytree(folder.parent / "seeds" / "a", folder / "a")
        (folder / "a" / _RESULT[name]).write_bytes(data)
        return folder / "a"
    if target == "config":
        (folder / "torchscript_model.pt").write_bytes(b"PK")
    path = folder / name
    path.write_bytes(data)
    return path


def make_zarr_files(seeds: Path) -> dict[str, bytes]:
    """Return the valid metadata of an OME-Zarr by name."""
    return {name: (seeds / name).read_bytes() for name in ("zattrs.json", "zarray.json")}


# --- running -----------------------------------------------------------------------------------


def try_one(door: Callable[[Path], object], path: Path) -> str:
    """Open an input.

    Parameters
    ----------
    door
        Reads it.
    path
        The input.

    Returns
    -------
    str
        ``"read"``, ``"refused"`` or the traceback of what is a finding.
    """

    def hang(*_: object) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, hang)
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            door(path)
    except AtlasError:
        return "refused"
    except (Exception, Hang):  # noqa: BLE001 - any is what is looked for
        return traceback.format_exc()
    else:
        return "read"
    finally:
        signal.alarm(0)


def make_input(target: str, seed: int, index: int, files: list[Path]) -> tuple[str, bytes]:
    """Make the input of a number: the same for the same seed.

    Parameters
    ----------
    target, seed, index
        Decide the input.
    files
        Valid files of the target.

    Returns
    -------
    tuple
        Name of the valid file, and the damaged one.
    """
    rng = random.Random(f"{target}/{seed}/{index}")
    file = rng.choice(files)
    return file.name, mutate(file.read_bytes(), file.name, rng)


def run_chunk(
    target: str, seed: int, first: int, n: int, home: Path, files: list[Path], told: Any = None
) -> list[tuple[int, str]]:
    """Try inputs one after another in this process.

    Parameters
    ----------
    target, seed
        Decide the inputs.
    first, n
        Numbers of the inputs.
    home
        Holds the folder ``seeds``; inputs are written beside it.
    files
        Valid files of the target.
    told
        Shared number of the input that is being read.

    Returns
    -------
    list of tuple
        Number and outcome of each.
    """
    door, found = _door(target, home / "seeds"), []
    place = Path(tempfile.mkdtemp(dir=home)) if told is not None else home / "input"
    for index in range(first, first + n):
        if told is not None:
            told.value = index
        name, data = make_input(target, seed, index, files)
        found.append((index, try_one(door, lay_out(target, name, data, place))))
    shutil.rmtree(place, ignore_errors=True)
    return found


def _work(args: tuple[Any, ...], told: Any, pipe: Any) -> None:
    faulthandler.enable()
    import torch

    torch.set_num_threads(1)
    _door(args[0], args[4] / "seeds")
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + ROOM_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    found = run_chunk(*args, told=told)
    pipe.send((found, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
    pipe.close()


class Worker:
    """A process that tries inputs; it is started anew after what it does not survive."""

    def __init__(self, args: tuple[Any, ...]) -> None:
        fork = multiprocessing.get_context("fork")
        self.args, self.told = args, fork.Value("q", args[2])
        self.seen, self.since = args[2], time.monotonic()
        self.pipe, child = fork.Pipe(duplex=False)
        self.process = fork.Process(target=_work, args=(args, self.told, child))
        self.process.start()
        child.close()

    def poll(self) -> tuple[list[tuple[int, str]], int] | None:
        """Return the outcomes and the peak memory (KiB) once it has ended, else None."""
        if self.pipe.poll(0.02):
            try:
                found: tuple[list[tuple[int, str]], int] = self.pipe.recv()
            except EOFError:
                self.process.join()
                return [(self.told.value, f"died: exit code {self.process.exitcode}")], 0
            self.process.join()
            return found
        now = self.told.value
        if now != self.seen:
            self.seen, self.since = now, time.monotonic()
        elif time.monotonic() - self.since > 2 * SECONDS:
            self.process.kill()
            self.process.join()
            return [(now, f"hang: no answer in {2 * SECONDS} s")], 0
        return None


def key_of(outcome: str) -> str:
    """Name a finding by its error and the last line of ours that it passed."""
    lines = outcome.strip().splitlines()
    ours = [line.strip() for line in lines if "/atlas_wsi/" in line and "File" in line]
    place = ours[-1].split("/atlas_wsi/")[-1] if ours else ""
    return f"{lines[-1][:90]} @ {place}"


def run(inputs: int, seed: int, only: str | None, findings: Path, minutes: float) -> dict[str, Any]:
    """Try many inputs in two workers.

    Parameters
    ----------
    inputs
        How many, over all targets.
    seed
        Decides them.
    only
        One target, or None for all.
    findings
        Where inputs that are findings are kept.
    minutes
        No new inputs are begun after that.

    Returns
    -------
    dict
        What happened, by target.
    """
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
                if kib == 0:  # died, and with it what it knew of the others
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
    """Share inputs out: the least to each, the rest to those that are read fast."""
    fast = [t for t in targets if t in ("areas", "regions", "list", "batch", "config")] or targets
    each = min(LEAST, inputs // len(targets))
    rest = (inputs - each * len(targets)) // len(fast)
    todo = {t: each + (rest if t in fast else 0) for t in targets}
    todo[fast[0]] += inputs - sum(todo.values())
    return todo


def keep(findings: Path, target: str, made: tuple[str, bytes], outcome: str) -> None:
    """Keep an input that is a finding, and what happened."""
    name, data = made
    findings.mkdir(exist_ok=True)
    stem = f"{target}@{hashlib.sha256(data).hexdigest()[:10]}@{name}"
    (findings / stem).write_bytes(data)
    (findings / f"{stem}.txt").write_text(outcome)


def replay(file: Path) -> str:
    """Try one kept input in this process and return what happened."""
    target, _, name = file.name.split("@", 2)
    with tempfile.TemporaryDirectory() as home:
        seeds = Path(home) / "seeds"
        seeds.mkdir()
        make_seeds(seeds)
        path = lay_out(target, name, file.read_bytes(), Path(home) / "input")
        return try_one(_door(target, seeds), path)


def main() -> None:
    """Run or replay."""
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
