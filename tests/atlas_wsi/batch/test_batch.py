"""`atlas-wsi batch` and `status` as a user meets them."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from pathlib import Path

import dask
import pyarrow.parquet as pq
import pytest

from atlas_wsi.batch.journal import Journal, Row, now
from atlas_wsi.batch.lease import take, worker_name
from atlas_wsi.batch.options import BatchOptions
from atlas_wsi.batch.start_run import begin
from atlas_wsi.batch.status import archive_status
from atlas_wsi.slides.synthetic import make_svs


@pytest.fixture(scope="module")
def dozen(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dozen")
    for n in range(12):
        make_svs(folder / f"slide{n:02}.svs", (512, 512 + 32 * n), mpp=1.0, tissue=0.5, levels=2)
    return folder


@pytest.mark.slow
def test_an_archive_is_done_told_verified_and_done_again_where_it_is_damaged(
    few_slides, tmp_path, command, cluster, caplog
):
    out = tmp_path / "out"
    table = tmp_path / "slides.csv"
    (tmp_path / "bad.svs").write_text("no slide")
    rows = [f"{few_slides / 'slide0.svs'},0.5", f"{few_slides / 'slide1.svs'},", "bad.svs,"]
    table.write_text("\n".join(["wsi,mpp", *rows]))
    asked = ("batch", table, "-o", out, *command.plain, "--cell-px", 64)
    asked += ("--cluster", cluster.scheduler_address)

    done = command.here(*asked)
    assert done.exit_code == 2, done.stderr
    assert "2 done, 0 running, 0 waiting, 1 failed" in done.stdout
    assert "failed: bad" in done.stdout
    told = {row["name"]: row for row in pq.read_table(out / "archive.parquet").to_pylist()}
    assert told["slide0"]["mpp_y"] == 0.5
    assert told["slide0"]["mpp_source"] == "argument"
    assert told["slide1"]["mpp_y"] == 1.0
    assert told["slide1"]["area:red"] >= 0
    assert told["bad"]["state"] == "failed"

    as_json = json.loads(command.here("status", out, "--json").stdout)
    assert (as_json["done"], as_json["waiting"], as_json["failed"]) == (2, 0, 1)
    chunk = next(p for p in (out / "slide1").rglob("c/*/*/*") if p.is_file())
    chunk.write_bytes(b"changed")
    checked = command.here("status", out, "--verify")
    assert checked.exit_code == 2
    assert "damaged: slide1" in checked.stdout

    kept = (out / "slide0" / "summary.json").stat().st_mtime_ns
    command.here(*asked, "--verify")
    assert "slide1 is repeated" in caplog.text
    assert command.here("status", out, "--verify").exit_code == 0
    assert (out / "slide0" / "summary.json").stat().st_mtime_ns == kept

    other = command.here(*asked, "--cell-px", 32)
    assert other.exit_code == 2
    assert "cell_px was 64 and is now 32" in other.stderr


@pytest.mark.slow
def test_two_launchers_do_no_slide_twice(dozen, tmp_path, command):
    out, finished = tmp_path / "out", tmp_path / "finished"
    faults = command.with_faults | {"FAULTS_FINISHED": str(finished)}
    asked = ("batch", dozen, "-o", out, *command.plain, "--format", "ome-zarr")
    both = [command.start(*asked, **faults) for _ in range(2)]
    for launcher in both:
        said, _ = launcher.communicate(timeout=120)
        assert launcher.returncode == 0, said
        assert "12 done" in said
    lines = [line.split() for line in finished.read_text().splitlines()]
    assert Counter(Path(path).name for _, path in lines) == dict.fromkeys(
        (p.stem for p in dozen.iterdir()), 1
    )
    assert not list(Journal(out).leases_folder.iterdir())


@pytest.mark.slow
def test_ctrl_c_finishes_what_is_begun_and_the_same_command_goes_on(
    dozen, tmp_path, command, cluster, wait_until
):
    out = tmp_path / "out"
    asked = ("batch", dozen, "-o", out, *command.plain, "--format", "ome-zarr")
    launcher = command.start(*asked)
    journal = Journal(out)
    wait_until(lambda: len(journal.ended()) > 1, what="two slides have ended")
    os.killpg(launcher.pid, signal.SIGINT)  # a terminal tells all processes of the group
    said, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 130, said
    assert "same command to resume" in said
    stopped = archive_status(out)
    assert 2 <= stopped.count("done") < 12
    assert stopped.count("running") == stopped.count("failed") == 0
    assert not list(journal.leases_folder.iterdir())
    assert not list(journal.folder.glob("stop-*"))
    on = command.here(*asked, "--cluster", cluster.scheduler_address)
    assert on.exit_code == 0, on.stderr
    assert "12 done" in on.stdout


@pytest.mark.slow
def test_a_full_disk_stops_cleanly_and_keeps_what_is_finished(few_slides, tmp_path, command):
    out = tmp_path / "out"
    full_disk = {
        "distributed.worker.preload": list(command.with_faults.values()),
        "distributed.nanny.environ.FAULTS_FILE_BYTES": "20000",
    }
    with dask.config.set(full_disk):
        full = command.here("batch", few_slides, "-o", out, *command.plain)
    assert full.exit_code == 3, full.stderr
    assert "disk is full" in full.stderr
    status = archive_status(out)
    assert status.count("failed") == status.count("running") == 0
    assert not [p for p in out.iterdir() if p.name.startswith(".") and p.name != ".batch"]


def test_status_is_shown_until_the_last_slide_has_ended(few_slides, tmp_path, command):
    out = tmp_path / "out"
    begin(Journal(out), few_slides, BatchOptions())
    one, *others = Journal(out).read_slides()
    assert take(Journal(out).leases_folder, one.name)
    page = command.here("status", out).stdout
    assert "0 done, 1 running, 2 waiting, 0 failed" in page
    assert worker_name() in page
    watching = command.start("status", out, "--watch", "--json", "--every", 0.1)
    assert json.loads(watching.stdout.readline())["waiting"] == 2
    for slide in (one, *others):
        Journal(out).write_row(Row(name=slide.name, source=slide.source, state="done", ended=now()))
    *_, last = watching.communicate(timeout=60)[0].splitlines()
    assert json.loads(last)["done"] == 3
    assert watching.returncode == 0
    assert json.loads(last)["eta_s"] in {0.0, None}


def test_a_folder_without_an_archive_is_said_to_be_none(tmp_path, command):
    done = command.here("status", tmp_path)
    assert done.exit_code == 2
    assert "atlas-wsi batch SOURCE -o OUT" in done.stderr


@pytest.mark.slow
def test_a_dry_run_tells_what_it_will_take_and_writes_nothing(dozen, tmp_path, command):
    out = tmp_path / "out"
    told = command.here("batch", dozen, "-o", out, *command.plain, "--dry-run", "--json")
    assert told.exit_code == 0, told.stderr
    found = json.loads(told.stdout)
    assert (found["slides"], found["sampled"], found["failed"]) == (12, 4, 0)
    assert found["windows"] > 12
    assert found["worker_hours"] > 0 < found["result_bytes"]
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--cluster", "cloud"), "There is no cluster 'cloud'"),
        (("--cluster", "tcp://127.0.0.1"), "cannot be opened"),
        (("--model", "nothing"), "There is no model 'nothing'"),
        (("--memory", "much"), "not an amount of memory"),
        (("--cluster-options", "missing.yaml"), "cannot be read"),
    ],
)
def test_wrong_arguments_are_one_message(few_slides, tmp_path, command, arguments, says):
    done = command.here("batch", few_slides, "-o", tmp_path / "out", *arguments)
    assert done.exit_code == 2
    assert says in done.stderr
