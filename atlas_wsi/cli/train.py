"""`atlas-wsi train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from atlas_wsi.cli import train_options, train_regions, train_slides

train_app = typer.Typer(help="Train a model.", no_args_is_help=True)


@train_app.callback()
def _train() -> None:
    pass


@train_app.command()
def tiles(
    folder: Annotated[Path, typer.Argument(help="Folder of class folders of tiles of one size.")],
    out: train_options.Out,
    mpp: Annotated[
        float, typer.Option(help="Micrometers a pixel of the tiles (10 m is 1e7).", min=1e-3)
    ],
    domain: train_options.Domain = "slide",
    name: train_options.Name = None,
    held_out: train_options.HeldOut = 0.2,
    folds: train_options.Folds = 0,
    validation: train_options.Validation = 0.0,
    patience: train_options.Patience = 0,
    work_mpp: Annotated[
        float | None,
        typer.Option(help="Micrometers a pixel that the model sees; the tiles' by default."),
    ] = None,
    init: train_options.Init = None,
    encoder: train_options.Encoder = None,
    weights: train_options.Weights = None,
    epochs: train_options.Epochs = 30,
    backbone: Annotated[
        Literal["atlas", "mambavision", "mambavision+msa"] | None,
        typer.Option(
            help="atlas and mambavision+msa see the whole slide, mambavision 256 px windows only. "
            "By default atlas, or that of --init."
        ),
    ] = None,
    dim: train_options.Dim = None,
    rate: train_options.Rate = 1.5e-3,
    megapixels: train_options.Megapixels = 0.8,
    precision: train_options.Precision = "auto",
    seed: train_options.Seed = 0,
    tensorboard: train_options.TensorBoard = None,
    half: Annotated[bool, typer.Option("--half", help="Store the weights as float16.")] = False,
    overwrite: train_options.Overwrite = False,
    quiet: train_options.Quiet = False,
    as_json: train_options.AsJson = False,
) -> None:
    """Train a model on labeled tiles and measure it on tiles held out by group.

    FOLDER holds a folder a class. A groups.csv in it (columns path, class, group) keeps copies and
    tiles of one patient on one side of the split. Beside the model its card is written
    (.card.md, .card.json) and the curve (.training.csv, .training.png). A training that was
    killed goes on when the same command is given again. With --folds the models of the folds
    (.fold0.safetensors, ...), their figures (.folds.json, .folds.csv) and the prediction of every
    tile by the model that did not see it (.predictions.csv) are written too.
    """
    import torch

    from atlas_wsi.training.fitting import About
    from atlas_wsi.training.recipe import Recipe
    from atlas_wsi.training.tiles import read_tiles

    name = train_options.check(
        out,
        name=name,
        dim=dim,
        overwrite=overwrite,
        patience=patience,
        validation=validation,
        folds=folds,
    )
    if work_mpp is not None and work_mpp <= 0:
        raise typer.BadParameter("--work-mpp must be above 0")
    recipe = Recipe(
        backbone=backbone,
        encoder=encoder,
        dim=dim,
        epochs=epochs,
        megapixels=megapixels,
        rate=rate,
        precision=precision,
        patience=patience,
        seed=seed,
    )
    zoom = mpp / (work_mpp or mpp)
    train_options.train_labeled(
        lambda report: read_tiles(folder, zoom=zoom, progress=report),
        out,
        About(name=name, domain=domain, mpp=mpp / zoom),
        recipe,
        start=lambda: train_options.starting(init, encoder, weights),
        facts={"zoom": zoom},
        held_out=held_out,
        validation=validation,
        folds=folds,
        dtype=torch.float16 if half else torch.float32,
        tensorboard=tensorboard,
        overwrite=overwrite,
        quiet=quiet,
        as_json=as_json,
    )


train_app.command("regions")(train_regions.regions)
train_app.command("slides")(train_slides.slides)
