"""`atlas-wsi train slides`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from atlas_wsi.cli import train_options


def slides(
    table: Annotated[
        Path,
        typer.Argument(
            help="CSV with the columns slide, label and optionally group (such as the patient) and "
            "split (train, validation, held-out)."
        ),
    ],
    out: train_options.Out,
    mpp: Annotated[float, typer.Option(help="Micrometers a pixel that the model sees.", min=1e-3)],
    windows: Annotated[
        int, typer.Option(help="Fine windows of a slide that a step learns from.", min=1)
    ] = 16,
    batch: Annotated[int, typer.Option(help="Slides a step.", min=1)] = 4,
    memory: Annotated[
        str, typer.Option(help="Memory for the pass over a slide, beside the gradient's.")
    ] = "4GB",
    domain: train_options.Domain = "slide",
    name: train_options.Name = None,
    held_out: train_options.HeldOut = 0.2,
    folds: train_options.Folds = 0,
    validation: train_options.Validation = 0.0,
    patience: train_options.Patience = 0,
    init: train_options.Init = None,
    epochs: Annotated[float, typer.Option(help="How often the slides are seen.", min=0.01)] = 30,
    dim: train_options.Dim = None,
    rate: train_options.Rate = 1.5e-3,
    jitter: Annotated[
        float, typer.Option(help="How strongly colors vary; 0: not at all.", min=0, max=2)
    ] = 0.5,
    seed: train_options.Seed = 0,
    tensorboard: train_options.TensorBoard = None,
    overwrite: train_options.Overwrite = False,
    quiet: train_options.Quiet = False,
    as_json: train_options.AsJson = False,
) -> None:
    """Train a model on labels of whole slides (weak supervision).

    The slide's score is trained end to end through the streamed encoder: with a gradient through
    the coarse scales and through a sample of fine windows. A column split in the table takes the
    place of --held-out and --validation. A training that was killed goes on when the same command
    is given again.
    """
    import torch

    from atlas_wsi.streaming.plan import parse_bytes
    from atlas_wsi.training.fitting import About
    from atlas_wsi.training.recipe import Recipe
    from atlas_wsi.training.slides import Sampling, find_slides
    from atlas_wsi.training.tables import given_parts, read_slides

    try:
        parse_bytes(memory)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--memory") from error
    rows = read_slides(table)
    parts = given_parts(rows)
    if parts is not None and (folds or validation):
        raise typer.BadParameter(
            "the table's column split takes the place of --folds and --validation"
        )
    name = train_options.check(
        out,
        name=name,
        dim=dim,
        overwrite=overwrite,
        patience=patience,
        validation=validation if parts is None else len(parts.chosen),
        folds=folds,
    )
    sampling = Sampling(windows=windows, slides=batch, memory=memory)
    train_options.train_labeled(
        lambda report: find_slides(rows, mpp=mpp, seed=seed, sampling=sampling, progress=report),
        out,
        About(name=name, domain=domain, mpp=mpp),
        Recipe(dim=dim, epochs=epochs, rate=rate, jitter=jitter, patience=patience, seed=seed),
        start=lambda: train_options.starting(init, None, None),
        facts={},
        held_out=held_out,
        validation=validation,
        folds=folds,
        dtype=torch.float32,
        parts=parts,
        tensorboard=tensorboard,
        overwrite=overwrite,
        quiet=quiet,
        as_json=as_json,
    )
