"""`atlas-wsi evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from atlas_wsi.cli import console

evaluate_app = typer.Typer(help="Measure a model on labelled data.", no_args_is_help=True)


@evaluate_app.callback()
def _evaluate() -> None:
    pass


@evaluate_app.command()
def tiles(
    folder: Annotated[Path, typer.Argument(help="Folder of class folders of tiles.")],
    model: Annotated[str, typer.Option(help="Name of a shipped model, or a file.")],
    split: Annotated[
        Literal["held-out", "all"],
        typer.Option(help="held-out: the tiles that the model's card says it did not see."),
    ] = "held-out",
    mpp: Annotated[
        float | None,
        typer.Option(help="Micrometres a pixel of the tiles; those it was trained on by default."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for evaluation.json and evaluation.html."),
    ] = None,
    fit_temperature: Annotated[
        bool,
        typer.Option(
            "--fit-temperature",
            help="Fit the temperature on half of the groups, store it in the model's file, and "
            "measure on the other half.",
        ),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure a model on class folders of tiles.

    A tile's prediction is the mean of the class probabilities of its heatmap cells.
    """
    from atlas_wsi.models.model import stored_dtype
    from atlas_wsi.models.registry import load_model, shipped_models
    from atlas_wsi.training.report import write_report
    from atlas_wsi.training.run import calibrate, evaluate, held_out_tiles
    from atlas_wsi.training.tiles import read_tiles

    if fit_temperature and model in shipped_models():
        raise typer.BadParameter(
            f"{model} is shipped with the program; give --model the path of a copy of its file"
        )
    loaded = load_model(model)
    with console.progress_of(loaded.card.name, quiet=quiet or as_json) as report:
        zoom = float(loaded.card.training.get("zoom", 1)) if mpp is None else mpp / loaded.card.mpp
        chosen = read_tiles(folder, zoom=zoom, progress=report)
        if split == "held-out":
            chosen = held_out_tiles(loaded, chosen)
        if fit_temperature:
            chosen = calibrate(loaded, chosen, progress=report)
        found = evaluate(loaded, chosen, progress=report)
    if fit_temperature:
        loaded.save(model, dtype=stored_dtype(model))
    half = ", the half that the temperature was not fitted on" if fit_temperature else ""
    what = f"{len(chosen)} tiles of {folder} ({split}{half})"
    files = write_report(found, loaded.card, out, what=what) if out is not None else []
    if as_json:
        console.print_json({"model": loaded.card.name, "split": split, **found.as_dict()})
        return
    console.say(f"{loaded.card.name} on {what}")
    for key, value in found.metrics.items():
        card = loaded.card.metrics.get(key)
        note = f"   card {card:.1%}" if card is not None and split == "held-out" else ""
        console.say(f"  {key:<32}{value:7.1%}{note}")
    baseline = loaded.card.metrics.get("colour_baseline_balanced_accuracy")
    if baseline is not None:
        console.say(f"  {'colour alone, balanced accuracy':<32}{baseline:7.1%}   (card)")
    for key, name in (("f1", "F1"), ("auroc", "AUROC"), ("auprc", "AUPRC")):
        score = found.scores[key]
        console.say(f"  {name:<32}{score.value:7.3f}   95% {score.low:.3f} to {score.high:.3f}")
    console.say(
        f"  {'expected calibration error':<32}{found.reliability.ece:7.3f}   "
        f"temperature {found.temperature:g}"
    )
    console.print_confusion(found.classes, found.confusion.tolist())
    for file in files:
        console.say(f"  {file}")
