"""`atlas-wsi bench`."""

from __future__ import annotations

from typing import Annotated

import typer

from atlas_wsi.cli import console, options


def bench(
    slide: Annotated[
        str | None,
        typer.Argument(metavar="SLIDE", help="Slide to time. Default: a generated one."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Model. Default: the one for slides."),
    ] = None,
    mpp: options.Mpp = None,
    gsd: options.Gsd = None,
    gigapixels: Annotated[
        float, typer.Option(metavar="N", help="Size of the generated slide.", min=0.001, max=100)
    ] = 0.1,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    memory: options.Memory = None,
    as_json: options.AsJson = False,
) -> None:
    """Benchmark decoding, encoding and end-to-end prediction.

    Reports the speeds of this machine and the bottleneck.
    """
    from atlas_wsi import benchmark

    um = options.one_mpp(mpp, gsd)
    with console.progress_of("bench", quiet=as_json) as report:
        speeds = benchmark(
            slide,
            model,
            mpp=um,
            gigapixels=gigapixels,
            device=device,
            precision=precision,
            memory=memory,
            progress=report,
        )
    if as_json:
        console.print_json(speeds.as_dict())
        return
    console.say(f"windows      {speeds.windows}, {speeds.megapixels:.1f} Mpx")
    console.say(f"decoding     {speeds.decode_mpx_s:.1f} Mpx/s alone")
    console.say(f"encoding     {speeds.encode_mpx_s:.1f} Mpx/s alone")
    console.say(
        f"whole        {speeds.whole_mpx_s:.1f} Mpx/s, {speeds.fraction_of_slower:.0%} of the "
        f"slower; bound by {speeds.bound_by}"
    )
    console.say(f"peak memory  {speeds.peak_memory_bytes / 2**20:.0f} MiB")
