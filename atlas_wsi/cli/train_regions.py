"""`atlas-wsi train regions`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from atlas_wsi.cli import train_options


def regions(
    table: Annotated[
        Path,
        typer.Argument(
            help="CSV with the columns slide, regions (GeoJSON as QuPath writes it, a vector file or "
            "a label raster) and optionally group, such as the patient."
        ),
    ],
    out: train_options.Out,
    mpp: Annotated[float, typer.Option(help="Micrometers a pixel that the model sees.", min=1e-3)],
    domain: train_options.Domain = "slide",
    tile_px: Annotated[
        int, typer.Option(help="Side of the tiles that are cut out.", min=64, max=1024)
    ] = 128,
    column: train_options.Column = None,
    classes: train_options.ClassNames = None,
    held_out: train_options.HeldOut = 0.2,
    folds: train_options.Folds = 0,
    validation: train_options.Validation = 0.0,
    patience: train_options.Patience = 0,
    epochs: train_options.Epochs = 30,
    dim: train_options.Dim = None,
    megapixels: train_options.Megapixels = 0.8,
    seed: train_options.Seed = 0,
    init: train_options.Init = None,
    tensorboard: train_options.TensorBoard = None,
    overwrite: train_options.Overwrite = False,
    quiet: train_options.Quiet = False,
) -> None:
    """Train a model on labeled areas of slides or scenes.

    Tiles are cut out of the areas; whole slides (or groups) are held out for measuring, once or
    by --folds.
    """
    import torch

    from atlas_wsi.models.start import load_start
    from atlas_wsi.training.fitting import About
    from atlas_wsi.training.recipe import Recipe
    from atlas_wsi.training.regions import read_regions

    name = train_options.check(
        out, dim=dim, overwrite=overwrite, patience=patience, validation=validation, folds=folds
    )
    labels = train_options.labels(column, classes)
    train_options.train_labeled(
        lambda report: read_regions(
            table, mpp=mpp, tile_px=tile_px, seed=seed, labels=labels, progress=report
        ),
        out,
        About(name=name, domain=domain, mpp=mpp),
        Recipe(dim=dim, epochs=epochs, megapixels=megapixels, patience=patience, seed=seed),
        start=lambda: load_start(init) if init else None,
        facts={"tile_px": tile_px},
        held_out=held_out,
        validation=validation,
        folds=folds,
        dtype=torch.float32,
        tensorboard=tensorboard,
        overwrite=overwrite,
        quiet=quiet,
    )
