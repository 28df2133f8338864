"""One slide on one worker, whatever happens to it."""

from __future__ import annotations

import json

import pytest
import torch

import atlas_wsi
from atlas_wsi.batch.journal import Journal
from atlas_wsi.batch.lease import take
from atlas_wsi.batch.options import BatchOptions, RunOptions
from atlas_wsi.batch.start_run import begin
from atlas_wsi.batch.task import do_slide
from atlas_wsi.batch.worker import BatchWorker
from atlas_wsi.models.stems.convolution import ConvolutionStem as Stem

OPTIONS = BatchOptions(
    model="atlas_test", precision="float32", memory="400MB", formats=("ome-zarr",)
)


@pytest.fixture
def worker(few_slides, tmp_path):
    """A worker's worker for an archive of three slides."""
    journal = Journal(tmp_path / "out")
    begin(journal, few_slides, OPTIONS)
    made = BatchWorker(str(journal.out), "run", OPTIONS, RunOptions(max_attempts=2))
    made.setup(None)
    return made


def test_a_result_is_recorded_with_what_its_summary_says(worker):
    assert do_slide(worker, worker.slides[0]).kind == "done"
    row = worker.journal.row("slide0")
    summary = json.loads((worker.journal.out / "slide0" / "summary.json").read_text())
    assert row.areas == {one["name"]: one["area"] for one in summary["classes"]}
    assert row.scores == {one["name"]: one["score"] for one in summary["classes"]}
    assert (row.mpp, row.mpp_source) == ((1.0, 1.0), summary["slide"]["mpp_source"])
    assert row.windows == summary["run"]["parameters"]["windows"] > 0
    assert row.result_bytes == sum(one["bytes"] for one in summary["files"].values())
    assert row.peak_memory_bytes > 0 < row.wall_s
    assert do_slide(worker, worker.slides[0]).kind == "done"


def test_a_slide_of_another_worker_is_left_to_it(worker):
    lease = take(worker.journal.leases_folder, "slide0")
    assert do_slide(worker, worker.slides[0]).kind == "busy"
    lease.settle()
    assert do_slide(worker, worker.slides[0]).kind == "done"


def test_a_result_whose_worker_died_before_it_could_record_it_is_taken_as_it_is(worker):
    do_slide(worker, worker.slides[0])
    worker.journal.remove_row("slide0")
    written = (worker.journal.out / "slide0" / "summary.json").stat().st_mtime_ns
    assert do_slide(worker, worker.slides[0]).kind == "done"
    assert (worker.journal.out / "slide0" / "summary.json").stat().st_mtime_ns == written


def test_a_damaged_result_is_never_taken_as_finished(worker):
    do_slide(worker, worker.slides[0])
    worker.journal.remove_row("slide0")
    chunk = next(p for p in (worker.journal.out / "slide0").rglob("c/*/*/*") if p.is_file())
    chunk.write_bytes(b"half")
    assert do_slide(worker, worker.slides[0]).kind == "done"
    assert atlas_wsi.open_result(worker.journal.out / "slide0").scores


def test_the_result_of_another_slide_is_left_alone_and_said(worker, few_slides):
    other = atlas_wsi.predict(few_slides / "slide1.svs", "atlas_test", memory="400MB")
    other = other.write(worker.journal.out, formats=("ome-zarr",))["json"].parent
    other.rename(worker.journal.out / "slide0")
    assert do_slide(worker, worker.slides[0]).kind == "failed"
    assert "slide1.svs" in worker.journal.row("slide0").reason
    assert (worker.journal.out / "slide0" / "summary.json").is_file()


def test_half_a_result_of_a_dead_worker_is_removed(worker):
    half = worker.journal.out / ".slide0.partial-00000000-1-00000000"
    half.mkdir(parents=True)
    assert do_slide(worker, worker.slides[0]).kind == "done"
    assert not half.exists()


@pytest.fixture
def small_gpu(monkeypatch):
    """The stem has no memory for more than a number of pixels at once, as a GPU would not."""
    asked = []
    forward = Stem.part

    def part(self, x_BCYX, *rest):
        asked.append(x_BCYX.shape[-1] * x_BCYX.shape[-2])
        if asked[-1] > small_gpu.pixels:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return forward(self, x_BCYX, *rest)

    small_gpu = type("SmallGpu", (), {"pixels": 0, "asked": asked})
    monkeypatch.setattr(Stem, "part", part)
    return small_gpu


def test_a_gpu_out_of_memory_gets_half_as_much_until_it_suffices(worker, small_gpu):
    small_gpu.pixels = 400 * 400
    assert do_slide(worker, worker.slides[0]).kind == "done"
    row = worker.journal.row("slide0")
    assert small_gpu.asked[0] > small_gpu.pixels >= small_gpu.asked[-1]
    assert any("Out of GPU memory" in warning for warning in row.warnings)


def test_a_gpu_too_small_for_anything_is_told_as_the_reason(worker, small_gpu):
    assert do_slide(worker, worker.slides[0]).kind == "failed"
    row = worker.journal.row("slide0")
    assert row.error == "MemoryBudgetError"
    assert "CUDA out of memory" in row.reason


def test_a_fault_that_may_pass_is_tried_again_and_then_told(worker, monkeypatch):
    def lose_the_disk(*_, **__):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Stem, "part", lose_the_disk)
    assert do_slide(worker, worker.slides[0]).kind == "again"
    assert do_slide(worker, worker.slides[0]).kind == "failed"
    row = worker.journal.row("slide0")
    assert (row.error, row.attempts) == ("OSError", 2)
    assert "Input/output error" in row.reason
    assert not list(worker.journal.leases_folder.iterdir())
    monkeypatch.undo()
    worker.journal.remove_row("slide0")
    assert do_slide(worker, worker.slides[0]).kind == "done"
