"""An archive whose machines die gives what an undisturbed one gives."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import atlas_wsi
from atlas_wsi.batch.journal import Journal
from atlas_wsi.batch.lease import read_attempts
from atlas_wsi.slides.synthetic import make_svs

LARGE = ("large0", "large1")
FORMATS = ("--format", "ome-zarr", "--format", "geojson")


@pytest.fixture(scope="module")
def slides(tmp_path_factory) -> Path:
    """Forty slides: 34 small and 2 large ones, 3 corrupt, 1 that kills whoever opens it."""
    folder = tmp_path_factory.mktemp("slides")
    for n in range(34):
        shape = (512 + 16 * n, 512 + 32 * (n % 5))
        make_svs(folder / f"small{n:02}.svs", shape, mpp=1.0, tissue=0.5, levels=2)
    for seed, name in enumerate(LARGE):
        make_svs(folder / f"{name}.svs", (4096 - seed, 4096), mpp=1.0, tissue=0.6, levels=3)
    whole = (folder / "small00.svs").read_bytes()
    (folder / "corrupt-cut.svs").write_bytes(whole[: len(whole) // 2])
    (folder / "corrupt-text.svs").write_text("this was a slide once")
    (folder / "corrupt-empty.svs").touch()
    (folder / "poison.svs").write_bytes(whole)
    return folder


@pytest.mark.slow
def test_forty_slides_survive_dying_workers_and_a_dying_scheduler(
    slides, tmp_path, processes, command, wait_until
):
    calm, out = tmp_path / "calm", tmp_path / "out"
    good = tmp_path / "good.csv"
    sources = [p for p in sorted(slides.iterdir()) if not p.name.startswith(("corrupt", "poison"))]
    good.write_text("\n".join(["slide", *map(str, sources)]))
    undisturbed = command.here("batch", good, "-o", calm, *command.plain, *FORMATS)
    assert undisturbed.exit_code == 0, undisturbed.stderr

    finished = tmp_path / "finished"
    cluster = processes(FAULTS_FINISHED=str(finished))
    cluster.start_scheduler()
    cluster.start_workers(2)
    launcher = command.start(
        *("batch", slides, "-o", out, *command.plain, *FORMATS),
        *("--cluster", cluster.address, "--max-attempts", 2),
    )
    journal = Journal(out)

    def worker_amid(name: str) -> int | None:
        """Return the process that has encoded a part of a slide."""
        attempts = read_attempts(journal.leases_folder) if journal.leases_folder.is_dir() else {}
        sums = journal.work_folder / name / "sums.bin"
        encoded = sums.is_file() and any(sums.read_bytes())
        if not encoded or name not in attempts or not attempts[name][-1].is_held:
            return None
        return attempts[name][-1].holder.pid

    for name in LARGE:
        victim = wait_until(lambda n=name: worker_amid(n), what=f"{name} is amid its encoding")
        os.kill(victim, signal.SIGKILL)
    wait_until(lambda: len(journal.ended()) > 15, what="some slides have ended")
    cluster.kill_scheduler()
    cluster.start_scheduler()
    cluster.start_workers(1)
    said, _ = launcher.communicate(timeout=600)
    assert launcher.returncode == 2, said  # some slides failed

    rows = journal.read_rows()
    assert Counter(row.state for row in rows.values()) == {"done": 36, "failed": 4}
    assert {name: row.error for name, row in rows.items() if row.state == "failed"} == {
        "corrupt-cut": "UnreadableSlideError",
        "corrupt-empty": "UnreadableSlideError",
        "corrupt-text": "UnsupportedFormatError",
        "poison": "WorkerDied",
    }
    assert "truncated" in rows["corrupt-cut"].reason
    assert "is empty" in rows["corrupt-empty"].reason
    assert "a text file" in rows["corrupt-text"].reason
    assert rows["poison"].attempts == 2
    assert "died" in rows["poison"].reason
    for name in LARGE:
        assert rows[name].attempts == 2
        assert any("died" in warning for warning in rows[name].warnings)

    ended = Counter(Path(line).name for line in finished.read_text().splitlines())
    assert ended == dict.fromkeys((p.stem for p in sources), 1)
    for source in sources:
        assert_same_result(calm / source.stem, out / source.stem)
    assert_no_temporary_file(out)
    table = pq.read_table(out / "archive.parquet").to_pylist()
    assert Counter(row["state"] for row in table) == {"done": 36, "failed": 4}


def assert_same_result(one: Path, other: Path) -> None:
    """Two results are the same to the last bit; when and how fast they were made may differ."""
    told = {"summary.json", "heatmap.ome.zarr/zarr.json"}
    files = [
        {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
        for folder in (one, other)
    ]
    assert files[0].keys() == files[1].keys()
    assert len(files[0]) > 5
    for name in files[0].keys() - told:
        assert files[0][name].read_bytes() == files[1][name].read_bytes(), name
    first, second = atlas_wsi.open_result(one), atlas_wsi.open_result(other)
    assert first.scores == second.scores
    assert first.areas() == second.areas()
    np.testing.assert_array_equal(first.probabilities, second.probabilities)


def assert_no_temporary_file(out: Path) -> None:
    names = {p.name for p in out.iterdir()}
    assert not [n for n in names if n.startswith(".") and n != ".batch"]
    journal = Journal(out)
    assert not list(journal.leases_folder.iterdir())
    assert not list(journal.work_folder.iterdir())
    assert all(p.suffix == ".json" for p in journal.rows_folder.iterdir())
    left = {p.name for p in journal.folder.iterdir()}
    assert left == {"options.json", "slides.jsonl", "rows", "leases", "work"}
