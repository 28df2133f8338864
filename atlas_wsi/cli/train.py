"""`atlas-wsi train`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from atlas_wsi.cli import console

NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"

train_app = typer.Typer(help="Train a model.", no_args_is_help=True)


@train_app.callback()
def _train() -> None:
    pass


@train_app.command()
def tiles(
    folder: Annotated[Path, typer.Argument(help="Folder of class folders of tiles of one size.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Model file to write (.safetensors).")],
    mpp: Annotated[
        float, typer.Option(help="Micrometres a pixel of the tiles (10 m is 1e7).", min=1e-3)
    ],
    domain: Annotated[
        Literal["slide", "scene"], typer.Option(help="Stained tissue, or land.")
    ] = "slide",
    name: Annotated[
        str | None, typer.Option(help="Name of the model; the file's by default.")
    ] = None,
    held_out: Annotated[
        float, typer.Option(help="Share kept for measuring, by whole groups.", min=0.01, max=0.9)
    ] = 0.2,
    validation: Annotated[
        float,
        typer.Option(
            help="Share of the other groups that choose the weights and the temperature; 0 for "
            "none.",
            min=0,
            max=0.9,
        ),
    ] = 0.0,
    patience: Annotated[
        int,
        typer.Option(help="Checks without progress on --validation that end it; 0: never.", min=0),
    ] = 0,
    work_mpp: Annotated[
        float | None,
        typer.Option(help="Micrometres a pixel that the model sees; the tiles' by default."),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(help="Model to start from: shipped name, file or hf://owner/name@revision."),
    ] = None,
    epochs: Annotated[float, typer.Option(help="How often the tiles are seen.", min=0.01)] = 30,
    backbone: Annotated[
        Literal["atlas", "mambavision", "mambavision+msa"],
        typer.Option(
            help="atlas and mambavision+msa see the whole slide, mambavision 256 px windows only."
        ),
    ] = "atlas",
    dim: Annotated[int, typer.Option(help="Channels of a token; a multiple of 32.", min=32)] = 128,
    rate: Annotated[float, typer.Option(help="Highest learning rate.", min=1e-6)] = 1.5e-3,
    seed: Annotated[int, typer.Option(help="The same seed gives the same model.", min=0)] = 0,
    half: Annotated[bool, typer.Option("--half", help="Store the weights as float16.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Train a model on labelled tiles and measure it on tiles held out by group.

    FOLDER holds a folder a class. A groups.csv in it (columns path, class, group) keeps copies and
    tiles of one patient on one side of the split. Beside the model its card is written
    (.card.md, .card.json) and the curve (.training.csv, .training.png). A training that was
    killed goes on when the same command is given again.
    """
    import torch

    from atlas_wsi.errors import OutputNotWritableError, ResultExistsError
    from atlas_wsi.models.registry import load_model
    from atlas_wsi.training.history import History
    from atlas_wsi.training.loop import Recipe
    from atlas_wsi.training.run import train_tiles, write_card

    if out.suffix != ".safetensors":
        raise typer.BadParameter(f"{out} must end in .safetensors")
    if dim % 32:
        raise typer.BadParameter(f"--dim is {dim}, expected a multiple of 32")
    name = name or out.stem
    if not re.fullmatch(NAME_PATTERN, name):
        raise typer.BadParameter(
            f"'{name}' is no name for a model: letters, digits, '.', '_' and '-', at most 64"
        )
    if out.exists() and not overwrite:
        raise ResultExistsError(f"{out} is there.", hint="--overwrite replaces it.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        probe = out.with_name(f".{out.name}.partial")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OutputNotWritableError(f"{out} cannot be written: {error.strerror}.") from error
    if patience and not validation:
        raise typer.BadParameter("--patience needs --validation")
    if work_mpp is not None and work_mpp <= 0:
        raise typer.BadParameter("--work-mpp must be above 0")
    start = load_model(init) if init else None
    history = History()
    dtype = torch.float16 if half else torch.float32
    with console.progress_of(out.stem, quiet=quiet or as_json) as report:
        model = train_tiles(
            folder,
            name=name,
            domain=domain,
            mpp=mpp,
            recipe=Recipe(
                backbone=backbone,
                dim=dim,
                epochs=epochs,
                rate=rate,
                patience=patience,
                seed=seed,
            ),
            held_out=held_out,
            validation=validation,
            zoom=mpp / (work_mpp or mpp),
            stored=dtype,
            init=start,
            checkpoint=out.with_suffix(".resume.pt"),
            history=history,
            progress=report,
        )
    model.save(out, dtype=dtype)
    card, _ = write_card(model, out)
    curve, _ = history.write(out)
    if as_json:
        console.print_json({"model": str(out), "card": model.card.model_dump(mode="json")})
        return
    console.say(card.read_text(encoding="utf-8"), quiet=quiet)
    console.say(f"{out}\n{card}\n{curve}", quiet=quiet)


@train_app.command()
def regions(
    table: Annotated[
        Path,
        typer.Argument(
            help="CSV with the columns slide, regions (GeoJSON as QuPath writes it) and optionally "
            "group, such as the patient."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Model file to write (.safetensors).")],
    mpp: Annotated[float, typer.Option(help="Micrometres a pixel that the model sees.", min=1e-3)],
    domain: Annotated[
        Literal["slide", "scene"], typer.Option(help="Stained tissue, or land.")
    ] = "slide",
    tile_px: Annotated[
        int, typer.Option(help="Side of the tiles that are cut out.", min=64, max=1024)
    ] = 128,
    held_out: Annotated[
        float, typer.Option(help="Share kept for measuring, by whole groups.", min=0.01, max=0.9)
    ] = 0.2,
    validation: Annotated[
        float,
        typer.Option(help="Share of the other groups that choose the weights.", min=0, max=0.9),
    ] = 0.0,
    epochs: Annotated[float, typer.Option(help="How often the tiles are seen.", min=0.01)] = 30,
    dim: Annotated[int, typer.Option(help="Channels of a token; a multiple of 32.", min=32)] = 128,
    seed: Annotated[int, typer.Option(help="The same seed gives the same model.", min=0)] = 0,
    init: Annotated[
        str | None,
        typer.Option(help="Model to start from: shipped name, file or hf://owner/name@revision."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> None:
    """Train a model on polygons that were drawn on slides or scenes.

    Tiles are cut out of the polygons; whole slides (or groups) are held out for measuring.
    """
    from atlas_wsi.errors import ResultExistsError
    from atlas_wsi.models.registry import load_model
    from atlas_wsi.training.history import History
    from atlas_wsi.training.loop import Recipe
    from atlas_wsi.training.regions import read_regions
    from atlas_wsi.training.run import train_set, write_card

    if out.suffix != ".safetensors":
        raise typer.BadParameter(f"{out} must end in .safetensors")
    if dim % 32:
        raise typer.BadParameter(f"--dim is {dim}, expected a multiple of 32")
    if not re.fullmatch(NAME_PATTERN, out.stem):
        raise typer.BadParameter(f"'{out.stem}' is no name for a model")
    if out.exists() and not overwrite:
        raise ResultExistsError(f"{out} is there.", hint="--overwrite replaces it.")
    start = load_model(init) if init else None
    out.parent.mkdir(parents=True, exist_ok=True)
    history = History()
    with console.progress_of(out.stem, quiet=quiet) as report:
        model = train_set(
            read_regions(table, mpp=mpp, tile_px=tile_px, seed=seed, progress=report),
            name=out.stem,
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
    model.save(out)
    card, _ = write_card(model, out)
    curve, _ = history.write(out)
    console.say(card.read_text(encoding="utf-8"), quiet=quiet)
    console.say(f"{out}\n{card}\n{curve}", quiet=quiet)
