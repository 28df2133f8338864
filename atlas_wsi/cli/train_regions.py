"""`atlas-wsi train regions`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from atlas_wsi.cli import console, train_options


def regions(
    table: Annotated[
        Path,
        typer.Argument(
            help="CSV with the columns slide, regions (GeoJSON as QuPath writes it) and optionally "
            "group, such as the patient."
        ),
    ],
    out: train_options.Out,
    mpp: Annotated[float, typer.Option(help="Micrometres a pixel that the model sees.", min=1e-3)],
    domain: train_options.Domain = "slide",
    tile_px: Annotated[
        int, typer.Option(help="Side of the tiles that are cut out.", min=64, max=1024)
    ] = 128,
    held_out: train_options.HeldOut = 0.2,
    validation: train_options.Validation = 0.0,
    epochs: train_options.Epochs = 30,
    dim: train_options.Dim = None,
    seed: train_options.Seed = 0,
    init: train_options.Init = None,
    overwrite: train_options.Overwrite = False,
    quiet: train_options.Quiet = False,
) -> None:
    """Train a model on polygons that were drawn on slides or scenes.

    Tiles are cut out of the polygons; whole slides (or groups) are held out for measuring.
    """
    import torch

    from atlas_wsi.models.start import load_start
    from atlas_wsi.training.history import History
    from atlas_wsi.training.recipe import Recipe
    from atlas_wsi.training.regions import read_regions
    from atlas_wsi.training.run import train_set

    name = train_options.check(out, dim=dim, overwrite=overwrite)
    start = load_start(init) if init else None
    history = History()
    with console.progress_of(out.stem, quiet=quiet) as report:
        model = train_set(
            read_regions(table, mpp=mpp, tile_px=tile_px, seed=seed, progress=report),
            name=name,
            domain=domain,
            mpp=mpp,
            recipe=Recipe(dim=dim, epochs=epochs, seed=seed),
            held_out=held_out,
            validation=validation,
            init=start,
            checkpoint=out.with_suffix(".resume.pt"),
            history=history,
            progress=report,
        )
    train_options.finish(model, out, dtype=torch.float32, history=history, quiet=quiet)
