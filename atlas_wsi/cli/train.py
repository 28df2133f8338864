"""`atlas-wsi train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from atlas_wsi.cli import options, train_options

train_app = typer.Typer(help="Train a model.", no_args_is_help=True)


@train_app.command()
def tiles(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder with one subfolder per class.")
    ],
    out: train_options.Out,
    mpp: Annotated[
        float | None,
        typer.Option("--mpp", metavar="UM", help="Micrometers per pixel of the tiles."),
    ] = None,
    gsd: options.Gsd = None,
    work_mpp: options.WorkMpp = None,
    work_gsd: options.WorkGsd = None,
    domain: train_options.Domain = "slide",
    name: train_options.Name = None,
    test_fraction: train_options.TestFraction = 0.2,
    folds: train_options.Folds = 0,
    validation_fraction: train_options.ValidationFraction = 0.0,
    patience: train_options.Patience = 0,
    init: train_options.Init = None,
    encoder: options.Encoder = None,
    weights: options.Weights = None,
    freeze: train_options.Freeze = False,
    context: train_options.Context = True,
    baselines: train_options.Baselines = True,
    epochs: train_options.Epochs = 30,
    backbone: Annotated[
        Literal["atlas", "mambavision", "mambavision+msa"] | None,
        typer.Option(
            help="atlas and mambavision+msa see the whole slide, mambavision windows of 256 px "
            "only. Default: that of --init, else atlas.",
        ),
    ] = None,
    dim: train_options.Dim = None,
    lr: train_options.LearningRate = 1.5e-3,
    lr_encoder: train_options.EncoderLearningRate = None,
    color_jitter: train_options.Jitter = None,
    mosaics: train_options.Mosaics = None,
    megapixels: train_options.Megapixels = 0.8,
    precision: options.Precision = "auto",
    seed: train_options.Seed = 0,
    tensorboard: train_options.TensorBoard = None,
    half: Annotated[bool, typer.Option("--half", help="Store the weights as float16.")] = False,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Train a model on labeled tiles.

    It is tested on tiles of other groups.

    FOLDER contains one subfolder per class. A groups.csv in it (columns path, class, group) keeps
    duplicates and tiles of one patient in the same split. The card (.card.md, .card.json) and the
    learning curve (.training.csv, .training.png) are written beside the model. A training that was
    stopped resumes when the same command is given again. With --folds, the models of the folds
    (.fold0.safetensors, ...), their figures (.folds.json, .folds.csv) and the prediction of every
    tile by the model that did not see it (.predictions.csv) are written, too.
    """
    from atlas_wsi import CardSpec, Recipe, TrainOptions, read_tile_folder

    size = options.require_mpp(mpp, gsd)
    work_size = options.one_mpp(work_mpp, work_gsd, name="work-")
    spec = CardSpec(name=name or out.stem, domain=domain, mpp=work_size or size)
    recipe = Recipe(
        backbone=backbone, encoder=encoder, freeze=freeze, dim=dim, epochs=epochs,
        megapixels=megapixels, learning_rate=lr, encoder_learning_rate=lr_encoder,
        color_jitter=color_jitter, mosaics=mosaics, precision=precision, patience=patience,
        seed=seed, context=context,
    )  # fmt: skip
    settings = TrainOptions(
        out=out, test_fraction=test_fraction, validation_fraction=validation_fraction, init=init,
        encoder_weights=weights, dtype="float16" if half else "float32",
        tensorboard=tensorboard, overwrite=overwrite, baselines=baselines,
    )  # fmt: skip
    settings.check(recipe)
    data = read_tile_folder(folder, mpp=size)
    train_options.run(data, spec, recipe, settings, folds=folds, quiet=quiet, as_json=as_json)


@train_app.command()
def regions(
    table: Annotated[
        Path,
        typer.Argument(
            metavar="TABLE",
            help="CSV with the columns slide, regions (GeoJSON as QuPath writes it, a vector file "
            "or a label raster) and optionally group, such as the patient, and mpp or gsd.",
        ),
    ],
    out: train_options.Out,
    work_mpp: options.WorkMpp = None,
    work_gsd: options.WorkGsd = None,
    mpp: options.Mpp = None,
    gsd: options.Gsd = None,
    scale: options.Scale = None,
    image: options.ImageNumber = None,
    allow_truncated: options.AllowTruncated = False,
    domain: train_options.Domain = "slide",
    name: train_options.Name = None,
    tile_px: Annotated[
        int,
        typer.Option(
            metavar="PIXELS", help="Side of the tiles that are cut out.", min=64, max=1024
        ),
    ] = 128,
    column: train_options.Column = None,
    classes: train_options.ClassNames = None,
    test_fraction: train_options.TestFraction = 0.2,
    folds: train_options.Folds = 0,
    validation_fraction: train_options.ValidationFraction = 0.0,
    patience: train_options.Patience = 0,
    epochs: train_options.Epochs = 30,
    dim: train_options.Dim = None,
    lr: train_options.LearningRate = 1.5e-3,
    lr_encoder: train_options.EncoderLearningRate = None,
    color_jitter: train_options.Jitter = None,
    mosaics: train_options.Mosaics = None,
    megapixels: train_options.Megapixels = 0.8,
    seed: train_options.Seed = 0,
    init: train_options.Init = None,
    encoder: options.Encoder = None,
    weights: options.Weights = None,
    freeze: train_options.Freeze = False,
    context: train_options.Context = True,
    baselines: train_options.Baselines = True,
    features: train_options.Features = None,
    tensorboard: train_options.TensorBoard = None,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Train a model on labeled areas of slides or scenes.

    The slides are shown whole: some labeled windows are learned from in every step, all the rest is
    their context. Tiles that are cut out of the areas measure the model; --mosaics shows mosaics of
    them, too. Whole slides (or groups) are held out for testing, once or by --folds. With --freeze
    every slide is encoded once, and --features keeps that for other trainings. --mpp or --gsd is
    for files that do not state their pixel size.
    """
    from atlas_wsi import CardSpec, Recipe, TrainOptions, read_regions

    work_size = options.require_mpp(work_mpp, work_gsd, name="work-")
    size = options.one_mpp(mpp, gsd)
    spec = CardSpec(name=name or out.stem, domain=domain, mpp=work_size)
    recipe = Recipe(
        encoder=encoder, freeze=freeze, dim=dim, epochs=epochs, megapixels=megapixels,
        learning_rate=lr, encoder_learning_rate=lr_encoder, color_jitter=color_jitter,
        mosaics=mosaics, patience=patience, seed=seed, context=context,
    )  # fmt: skip
    settings = TrainOptions(
        out=out, test_fraction=test_fraction, validation_fraction=validation_fraction, init=init,
        encoder_weights=weights, features=features, tensorboard=tensorboard,
        overwrite=overwrite, baselines=baselines,
    )  # fmt: skip
    settings.check(recipe)
    data = read_regions(
        table, mpp=size, scale=scale, image=image, allow_truncated=allow_truncated,
        tile_px=tile_px, column=column, classes=classes,
    )  # fmt: skip
    train_options.run(data, spec, recipe, settings, folds=folds, quiet=quiet, as_json=as_json)


@train_app.command()
def slides(
    table: Annotated[
        Path,
        typer.Argument(
            metavar="TABLE",
            help="CSV with the columns slide, label and optionally group (such as the patient), "
            "split (train, validation, test) and mpp or gsd.",
        ),
    ],
    out: train_options.Out,
    work_mpp: options.WorkMpp = None,
    work_gsd: options.WorkGsd = None,
    mpp: options.Mpp = None,
    gsd: options.Gsd = None,
    scale: options.Scale = None,
    image: options.ImageNumber = None,
    allow_truncated: options.AllowTruncated = False,
    windows: Annotated[
        int,
        typer.Option(metavar="N", help="Fine windows per slide that a step learns from.", min=1),
    ] = 16,
    batch: Annotated[int, typer.Option(metavar="N", help="Slides per step.", min=1)] = 4,
    readout: Annotated[
        Literal["attention", "mean"],
        typer.Option(
            help="A slide's score: the heatmap's logits weighted by attention, or read from the "
            "mean of all tokens."
        ),
    ] = "attention",
    memory: options.FixedMemory = "4GB",
    domain: train_options.Domain = "slide",
    name: train_options.Name = None,
    test_fraction: train_options.TestFraction = 0.2,
    folds: train_options.Folds = 0,
    validation_fraction: train_options.ValidationFraction = 0.0,
    patience: train_options.Patience = 0,
    init: train_options.Init = None,
    encoder: options.Encoder = None,
    weights: options.Weights = None,
    freeze: train_options.Freeze = False,
    context: train_options.Context = True,
    epochs: train_options.Epochs = 30,
    dim: train_options.Dim = None,
    lr: train_options.LearningRate = 1.5e-3,
    lr_encoder: train_options.EncoderLearningRate = None,
    color_jitter: train_options.Jitter = None,
    seed: train_options.Seed = 0,
    tensorboard: train_options.TensorBoard = None,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Train a model on labels of whole slides.

    The slide's score is trained end to end through the streamed encoder: with a gradient through
    the coarse scales and through a sample of fine windows. A column split in the table replaces
    --test-fraction and --validation-fraction. A training that was stopped resumes when the same
    command is given again. --mpp or --gsd is for files that do not state their pixel size.
    """
    from atlas_wsi import CardSpec, Recipe, TrainOptions, read_slide_table

    work_size = options.require_mpp(work_mpp, work_gsd, name="work-")
    size = options.one_mpp(mpp, gsd)
    spec = CardSpec(name=name or out.stem, domain=domain, mpp=work_size)
    recipe = Recipe(
        encoder=encoder, freeze=freeze, dim=dim, epochs=epochs, learning_rate=lr,
        encoder_learning_rate=lr_encoder, color_jitter=color_jitter, patience=patience, seed=seed,
        readout=readout, context=context,
    )  # fmt: skip
    settings = TrainOptions(
        out=out, test_fraction=test_fraction, validation_fraction=validation_fraction, init=init,
        encoder_weights=weights, tensorboard=tensorboard, overwrite=overwrite,
    )  # fmt: skip
    data = read_slide_table(
        table, mpp=size, scale=scale, image=image, allow_truncated=allow_truncated,
        windows=windows, batch=batch, memory=memory,
    )  # fmt: skip
    train_options.run(data, spec, recipe, settings, folds=folds, quiet=quiet, as_json=as_json)
