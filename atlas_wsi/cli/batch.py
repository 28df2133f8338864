"""`atlas-wsi batch`."""

from __future__ import annotations

import logging
import signal
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atlas_wsi.cli import console, options
from atlas_wsi.cli.status import describe, show_failed
from atlas_wsi.errors import Cancelled

if TYPE_CHECKING:
    from collections.abc import Iterator

    from atlas_wsi import ArchiveEstimate, ArchiveStatus, CancelToken

SOME_FAILED = 2


def batch(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A folder, a quoted pattern, a CSV with the columns slide (or wsi) and optionally "
            "mpp, or a prefix of an object store such as s3://bucket/slides/.",
        ),
    ],
    out: options.OutFolder,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help="local, cuda (one worker per GPU of this machine), slurm, kubernetes, or a running "
            "scheduler such as tcp://host:8786. Default: one worker on this machine.",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Workers to start; each handles one slide at a time.", min=1
        ),
    ] = None,
    cluster_options: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="YAML file with options of the cluster: queue, image, walltime ..."
        ),
    ] = None,
    model: options.ModelName = None,
    trust_model: options.TrustModel = False,
    mpp: options.Mpp = None,
    gsd: options.Gsd = None,
    scale: options.Scale = None,
    image: options.ImageNumber = None,
    allow_truncated: options.AllowTruncated = False,
    max_unreadable: options.MaxUnreadable = 0.01,
    cell_px: options.CellPx = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    memory: options.FixedMemory = "4GB",
    batch_size: options.BatchSize = None,
    formats: options.Formats = None,
    tissue: options.Tissue = None,
    tissue_model: options.TissueModel = None,
    roi: options.Roi = None,
    keep_fat: options.KeepFat = False,
    strict: options.Strict = False,
    distribute_above: Annotated[
        float | None,
        typer.Option(
            metavar="GIGAPIXELS",
            help="Distribute slides above this size over all workers.",
            min=1e-6,
        ),
    ] = None,
    max_attempts: Annotated[
        int, typer.Option(metavar="N", help="Attempts per slide before it is given up.", min=1)
    ] = 3,
    heartbeat_timeout: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            help="Seconds without a heartbeat before another worker takes over a slide.",
            min=1,
        ),
    ] = 120.0,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Estimate time and disk space from a measured sample."),
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Retry failed slides.")
    ] = False,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Check finished results and repeat those that are damaged."),
    ] = False,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Predict all slides of an archive, on this machine or a cluster.

    Writes OUT/SLIDE/ as predict does, and OUT/archive.parquet with one row per slide. Re-run the
    same command to resume; slides that cannot be read or crash their worker are recorded and
    skipped. Where the list states mpp, it takes precedence over --mpp. Ctrl-C finishes slides in
    progress; press again to stop at once (they resume next time).

    Exit codes: 0 all done, 2 some slides failed, 3 the disk is full, 4 some results are incomplete
    because too much of the tissue could not be read, 130 stopped.
    """
    from atlas_wsi import BatchOptions, RunOptions, estimate_archive, predict_archive

    options.one_tissue(tissue, tissue_model)
    common: dict[str, Any] = {
        "options": BatchOptions(
            model=model,
            trust_model=trust_model,
            mpp=options.one_mpp(mpp, gsd),
            scale=scale,
            image=image,
            allow_truncated=allow_truncated,
            max_unreadable=max_unreadable,
            tissue=None if tissue is None else str(tissue),
            tissue_model=tissue_model,
            roi=None if roi is None else str(roi),
            keep_fat=keep_fat,
            cell_px=cell_px,
            precision=precision,
            memory=memory,
            batch_size=batch_size,
            formats=tuple(map(str, formats)) if formats else None,
            strict=strict,
            distribute_above=distribute_above,
        ),
        "run_options": RunOptions(
            device=device, max_attempts=max_attempts, heartbeat_timeout_s=heartbeat_timeout
        ),
    }
    # what dask logs about lost workers and schedulers reaches the user as our line, once
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    quiet = quiet or as_json
    title = "sample" if dry_run else "archive"
    with _stoppable() as cancel, console.progress_of(title, quiet=quiet) as report:
        common |= {"progress": report, "cancel": cancel}
        if dry_run:
            estimate = estimate_archive(source, out, workers=workers or 1, **common)
        else:
            status = predict_archive(
                source,
                out,
                cluster=cluster,
                workers=workers,
                cluster_options=cluster_options,
                overwrite=overwrite,
                retry_failed=retry_failed,
                verify=verify,
                **common,
            )
    if dry_run:
        _show_estimate(estimate, workers or 1, as_json=as_json)
    else:
        _finish(status, stopped=cancel.is_cancelled, quiet=quiet, as_json=as_json)


def _show_estimate(estimate: ArchiveEstimate, workers: int, *, as_json: bool) -> None:
    if as_json:
        console.print_json(estimate.as_dict())
        return
    size = "" if estimate.slide_bytes is None else f", {estimate.slide_bytes / 1e9:.3g} GB"
    failed = f", of which {estimate.failed} failed" if estimate.failed else ""
    console.say(f"slides         {estimate.slides}{size}")
    console.say(f"windows        {estimate.windows}")
    console.say(f"hours          {estimate.hours:.3g} with {workers} workers like this machine")
    console.say(f"results        {estimate.result_bytes / 1e9:.3g} GB")
    console.say(f"memory         {estimate.peak_memory_bytes / 1e9:.3g} GB per worker")
    console.say(f"measured       {estimate.sampled} slides, from small to large{failed}")


@contextmanager
def _stoppable() -> Iterator[CancelToken]:
    """Let the first Ctrl-C, SIGTERM or SIGHUP finish the slides in progress."""
    from atlas_wsi import CancelToken

    cancel = CancelToken()
    names = ("SIGINT", "SIGTERM", "SIGHUP")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}

    def stop(*_: object) -> None:
        cancel.cancel()
        for number in before:
            signal.signal(number, signal.default_int_handler)

    for number in before:
        signal.signal(number, stop)
    try:
        yield cancel
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _finish(status: ArchiveStatus, *, stopped: bool, quiet: bool, as_json: bool) -> None:
    if as_json:
        console.print_json(status.as_json())
    else:
        console.say(describe(status), quiet=quiet)
        show_failed(status, quiet=quiet)
        console.say(f"  {status.out / 'archive.parquet'}", quiet=quiet)
    left = status.count("waiting") + status.count("running")
    if stopped and left:
        raise Cancelled(f"Stopped; {left} slides remain.", hint="Run the same command to resume.")
    if status.count("failed"):
        raise typer.Exit(SOME_FAILED)
    if status.n_incomplete:
        raise typer.Exit(console.INCOMPLETE)
