"""`atlas-wsi batch`."""

from __future__ import annotations

import logging
import signal
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from atlas_wsi.cli import console
from atlas_wsi.cli.status import SHOWN, describe, tell_failed
from atlas_wsi.errors import Cancelled

if TYPE_CHECKING:
    from collections.abc import Iterator

    from atlas_wsi.batch.options import BatchOptions, HowToRun
    from atlas_wsi.batch.status import Status
    from atlas_wsi.progress import CancelToken

SOME_FAILED = 2


def batch(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A folder, a pattern in quotes, a CSV with the columns slide (or wsi) and perhaps "
            "mpp, or a prefix of an object store such as s3://bucket/slides/.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="Folder for the results; each slide gets a folder in it."),
    ],
    cluster: Annotated[
        str | None,
        typer.Option(
            help="local, cuda (a worker for each GPU here), slurm, kubernetes, or a running "
            "scheduler such as tcp://host:8786. By default one worker on this machine."
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Workers to start; one slide at a time in each.", min=1)
    ] = None,
    cluster_options: Annotated[
        Path | None,
        typer.Option(help="YAML file with the options of the cluster: queue, image, walltime ..."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Name of a shipped model or a .safetensors file. By default, what suits the slide."
        ),
    ] = None,
    mpp: Annotated[
        float | None,
        typer.Option(
            help="Micrometers a pixel, for slides that do not say or are wrong. A CSV goes before.",
            min=0,
        ),
    ] = None,
    cell: Annotated[
        int, typer.Option(help="Side of a heatmap cell in working pixels: 16, 32 or 64.")
    ] = 64,
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda ...: where each worker computes.")
    ] = "auto",
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"],
        typer.Option(help="auto computes in bfloat16 where the hardware multiplies it."),
    ] = "auto",
    memory: Annotated[
        str, typer.Option(help="Memory for the encoder in each worker; the same on all of them.")
    ] = "4GB",
    batch_size: Annotated[
        int | None, typer.Option(help="Windows that attend at once. By default what fits.", min=1)
    ] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", "-f", help="Output to write; may be given several times."),
    ] = None,
    keep_fat: Annotated[bool, typer.Option("--keep-fat", help="Take pale fat as tissue.")] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail a slide at the first tile that cannot be read.")
    ] = False,
    split_over: Annotated[
        float | None,
        typer.Option(help="Gigapixels above which a slide is spread over all workers.", min=0),
    ] = None,
    tries: Annotated[int, typer.Option(help="Tries after which a slide is given up.", min=1)] = 3,
    lease: Annotated[
        float,
        typer.Option(
            help="Seconds without a sign of life after which a slide is taken over.", min=1
        ),
    ] = 120.0,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say how long it will take, from a measured sample."),
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Do the slides again that failed.")
    ] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="Read finished results again; those that are damaged are done again."
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Remove what was done and start anew.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print how each slide stands as JSON.")
    ] = False,
) -> None:
    """Predict all slides of an archive, on this machine or a cluster.

    Writes OUT/SLIDE/ as predict does, and OUT/archive.parquet with a row a slide. The same command
    goes on where it was stopped; slides that cannot be read or kill their worker are recorded and
    left. Ctrl-C finishes the slides that are begun, a second one leaves them for the next time.
    Exit codes: 0 all done, 2 some slides failed, 3 the disk is full, 130 stopped.
    """
    from atlas_wsi.batch.clusters import read_cluster_options
    from atlas_wsi.batch.options import HowToRun

    quiet = quiet or as_json
    options = _options(
        model=model,
        mpp=mpp,
        cell_px=cell,
        precision=precision,
        memory=memory,
        batch_size=batch_size,
        formats=tuple(formats) if formats else None,
        keep_fat=keep_fat,
        strict=strict,
        split_over=split_over,
    )
    how = HowToRun(device=device, max_tries=tries, lease_s=lease)
    if dry_run:
        _estimate(source, out, options, how, workers or 1, quiet=quiet, as_json=as_json)
        return
    from atlas_wsi.batch.run import predict_archive

    # what dask says of workers and schedulers that went away reaches the user as our line, once
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    with _stoppable() as cancel, console.progress_of("archive", quiet=quiet) as report:
        status = predict_archive(
            source,
            out,
            options=options,
            how=how,
            cluster=cluster,
            workers=workers,
            cluster_options=read_cluster_options(cluster_options) if cluster_options else None,
            overwrite=overwrite,
            retry_failed=retry_failed,
            verify=verify,
            progress=report,
            cancel=cancel,
        )
    _finish(status, stopped=cancel.is_cancelled, quiet=quiet, as_json=as_json)


def _options(**fields: Any) -> BatchOptions:
    from pydantic import ValidationError

    from atlas_wsi.batch.options import BatchOptions
    from atlas_wsi.heatmap.write import FORMATS
    from atlas_wsi.streaming.plan import parse_bytes

    unknown = set(fields["formats"] or ()) - {*FORMATS, "json"}
    if unknown:
        raise typer.BadParameter(f"--format {unknown.pop()}: there are {', '.join(FORMATS)}")
    try:
        parse_bytes(fields["memory"])
        return BatchOptions(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        raise typer.BadParameter(f"--{first['loc'][0]}: {first['msg']}") from error
    except ValueError as error:
        raise typer.BadParameter(f"--memory: {error}") from error


def _estimate(
    source: str,
    out: Path,
    options: BatchOptions,
    how: HowToRun,
    workers: int,
    *,
    quiet: bool,
    as_json: bool,
) -> None:
    from atlas_wsi.batch.estimate import estimate_archive

    with _stoppable() as cancel, console.progress_of("sample", quiet=quiet) as report:
        found = estimate_archive(
            source, out, options=options, how=how, workers=workers, progress=report, cancel=cancel
        )
    if as_json:
        console.print_json(found.as_dict())
        return
    size = "" if found.slide_bytes is None else f", {found.slide_bytes / 1e9:.3g} GB"
    console.say(f"slides         {found.slides}{size}")
    console.say(f"windows        {found.windows}")
    console.say(f"hours          {found.hours:.3g} with {workers} workers such as this machine")
    console.say(f"results        {found.result_bytes / 1e9:.3g} GB")
    console.say(f"memory         {found.peak_memory_bytes / 1e9:.3g} GB a worker")
    bad = f", of which {found.failed} failed" if found.failed else ""
    console.say(f"measured       {found.sampled} slides, from small to large{bad}")


@contextmanager
def _stoppable() -> Iterator[CancelToken]:
    """Take the first Ctrl-C (or SIGTERM) as a wish to finish what is begun."""
    from atlas_wsi.progress import CancelToken

    cancel = CancelToken()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop(*_: object) -> None:
        cancel.cancel()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.default_int_handler)

    for number in before:
        signal.signal(number, stop)
    try:
        yield cancel
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _finish(status: Status, *, stopped: bool, quiet: bool, as_json: bool) -> None:
    if as_json:
        console.print_json(status.as_json())
    else:
        console.say(describe(status), quiet=quiet)
        tell_failed(status, SHOWN, quiet=quiet)
        console.say(f"  {status.out / 'archive.parquet'}", quiet=quiet)
    left = status.count("waiting") + status.count("running")
    if stopped and left:
        raise Cancelled(
            f"Stopped; {left} slides are left.", hint="The same command goes on with them."
        )
    if status.count("failed"):
        raise typer.Exit(SOME_FAILED)
