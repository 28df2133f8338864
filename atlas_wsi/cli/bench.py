"""`atlas-wsi bench`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Literal

import typer

from atlas_wsi.cli import console


def bench(
    slide: Annotated[
        str | None, typer.Argument(help="Slide to time; by default one is generated.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model; by default what suits slides.")] = None,
    mpp: Annotated[
        float | None, typer.Option(help="Micrometers a pixel, if the file does not say.", min=0)
    ] = None,
    gigapixels: Annotated[
        float, typer.Option(help="Size of the generated slide.", min=0.001, max=100)
    ] = 0.1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"], typer.Option(help="As for predict.")
    ] = "auto",
    memory: Annotated[str | None, typer.Option(help="As for predict.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Time decoding, encoding and the whole on a slide, and say what bounds it."""
    from atlas_wsi.inference.bench import bench as run
    from atlas_wsi.models.registry import DEFAULTS, load_model
    from atlas_wsi.slides.synthetic import make_svs

    with tempfile.TemporaryDirectory(prefix="atlas-wsi-bench-") as folder:
        path = slide
        if path is None:
            side = round((gigapixels * 1e9) ** 0.5)
            path = str(Path(folder) / "generated.svs")
            make_svs(path, shape=(side, side), mpp=0.5, tissue=0.3)
        with console.progress_of("bench", quiet=as_json) as report:
            found = run(
                path,
                load_model(model or DEFAULTS["slide"]),
                mpp=mpp,
                device=device,
                precision=precision,
                memory=memory,
                progress=report,
            )
    if as_json:
        console.print_json(found.as_dict())
        return
    console.say(f"windows      {found.windows}, {found.megapixels:.1f} Mpx")
    console.say(f"decoding     {found.decode_mpx_s:.1f} Mpx/s alone")
    console.say(f"encoding     {found.encode_mpx_s:.1f} Mpx/s alone")
    console.say(
        f"whole        {found.whole_mpx_s:.1f} Mpx/s, {found.share_of_slower:.0%} of the slower; "
        f"bound by {found.bound_by}"
    )
    console.say(f"peak memory  {found.peak_memory_bytes / 2**20:.0f} MiB")
