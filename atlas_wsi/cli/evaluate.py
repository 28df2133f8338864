"""`atlas-wsi evaluate`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from atlas_wsi.cli import console, train_options

if TYPE_CHECKING:
    from atlas_wsi.models.model import Model
    from atlas_wsi.training.evaluation import Evaluation

evaluate_app = typer.Typer(help="Measure a model on labeled data.", no_args_is_help=True)

ModelName = Annotated[str, typer.Option("--model", help="Name of a shipped model, or a file.")]
Split = Annotated[
    Literal["held-out", "all"],
    typer.Option(help="held-out: what the model's card says it did not see."),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Folder for evaluation.json and evaluation.html."),
]
FitTemperature = Annotated[
    bool,
    typer.Option(
        "--fit-temperature",
        help="Fit the temperature on half of the groups, store it in the model's file, and "
        "measure on the other half.",
    ),
]
Memory = Annotated[str, typer.Option(help="Memory for the pass over a slide, as of predict.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@evaluate_app.callback()
def _evaluate() -> None:
    pass


@evaluate_app.command()
def tiles(
    folder: Annotated[Path, typer.Argument(help="Folder of class folders of tiles.")],
    model: ModelName,
    split: Split = "held-out",
    mpp: Annotated[
        float | None,
        typer.Option(help="Micrometers a pixel of the tiles; those it was trained on by default."),
    ] = None,
    mosaics: Annotated[
        bool,
        typer.Option(
            "--mosaics",
            help="Also measure borders, on pictures put together of the tiles, with glass between: "
            "dice with context and tile by tile.",
        ),
    ] = False,
    out: Out = None,
    fit_temperature: FitTemperature = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Measure a model on class folders of tiles.

    A tile's prediction is the mean of the class probabilities of its heatmap cells.
    """
    from atlas_wsi.training.dense import evaluate_mosaics
    from atlas_wsi.training.run import calibrate, evaluate, held_out_tiles
    from atlas_wsi.training.tiles import read_tiles

    loaded = _load(model, fit_temperature)
    with console.progress_of(loaded.card.name, quiet=quiet or as_json) as report:
        zoom = float(loaded.card.training.get("zoom", 1)) if mpp is None else mpp / loaded.card.mpp
        chosen = read_tiles(folder, zoom=zoom, progress=report)
        if split == "held-out":
            chosen = held_out_tiles(loaded, chosen)
        if fit_temperature:
            chosen = calibrate(loaded, chosen, progress=report)
        found = evaluate(loaded, chosen, progress=report)
        if mosaics:
            borders = evaluate_mosaics(loaded, chosen)
            found = replace(found, metrics={**found.metrics, **borders})
    what = f"{len(chosen)} tiles of {folder}"
    _tell(found, loaded, what, model, split, out, fitted=fit_temperature, as_json=as_json)


@evaluate_app.command()
def regions(
    table: Annotated[
        Path,
        typer.Argument(help="CSV with the columns slide, regions and optionally group."),
    ],
    model: ModelName,
    split: Split = "held-out",
    column: train_options.Column = None,
    classes: train_options.ClassNames = None,
    memory: Memory = "4GB",
    out: Out = None,
    fit_temperature: FitTemperature = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Measure heatmaps of slides or scenes where somebody has told the class.

    Whole slides are predicted, as predict does; the cells that lie in the labeled areas are
    compared with them.
    """
    from atlas_wsi.training.cells import calibrate_cells, measure_cells, predict_cells
    from atlas_wsi.training.regions import read_list, read_regions
    from atlas_wsi.training.run import held_out_tiles

    loaded = _load(model, fit_temperature)
    labels = train_options.labels(column, classes)
    with console.progress_of(loaded.card.name, quiet=quiet or as_json) as report:
        rows = read_list(table)
        if split == "held-out":
            facts = loaded.card.training
            if "tile_px" not in facts:
                raise typer.BadParameter(
                    f"{loaded.card.name} was not trained by train regions, so its card does not say "
                    "which slides it did not see; give --split all",
                    param_hint="--split",
                )
            seed, side = int(facts["seed"]), int(facts["tile_px"])
            seen = read_regions(
                table, mpp=loaded.card.mpp, tile_px=side, seed=seed, labels=labels, progress=report
            )
            held = set(held_out_tiles(loaded, seen).groups)
            rows = [one for one in rows if one.group in held]
        cells = predict_cells(loaded, rows, labels=labels, memory=memory, progress=report)
        if fit_temperature:
            cells = calibrate_cells(loaded, cells)
        found = measure_cells(loaded, cells)
    what = f"{len(cells.labels)} cells of {len(rows)} slides of {table}"
    if cells.n_missed:
        what += f"; {cells.n_missed} labeled cells hold no tissue and were left out"
    _tell(found, loaded, what, model, split, out, fitted=fit_temperature, as_json=as_json)


@evaluate_app.command()
def slides(
    table: Annotated[
        Path,
        typer.Argument(help="CSV with the columns slide, label and optionally group and split."),
    ],
    model: ModelName,
    split: Split = "held-out",
    memory: Memory = "4GB",
    out: Out = None,
    fit_temperature: FitTemperature = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Measure slide scores against labels of whole slides.

    A column split in the table says which are held out; else the model's card does.
    """
    from atlas_wsi.training.marks import trained_on
    from atlas_wsi.training.run import calibrate, evaluate, held_out_tiles
    from atlas_wsi.training.slides import Sampling, find_slides
    from atlas_wsi.training.tables import held_out, is_split, read_slides
    from atlas_wsi.training.tiles import Labeled

    loaded = _load(model, fit_temperature)
    with console.progress_of(loaded.card.name, quiet=quiet or as_json) as report:
        rows = read_slides(table)
        asked = held_out(rows, loaded.card) if split == "held-out" and is_split(rows) else None
        found_slides = find_slides(
            rows,
            mpp=loaded.card.mpp,
            seed=int(loaded.card.training.get("seed", 0)),
            sampling=Sampling(memory=memory),
            progress=report,
        )
        chosen: Labeled = found_slides
        if asked is not None:
            chosen = found_slides.subset(asked)
        elif split == "held-out":
            chosen = held_out_tiles(loaded, found_slides)
        if fit_temperature:
            chosen = calibrate(loaded, chosen, progress=report)
        found = evaluate(loaded, chosen, progress=report)
    what = f"{len(chosen)} slides of {table}"
    if asked is not None and not trained_on(loaded.card.training):
        what += "; the table says that they were held out, the model's card does not"
    _tell(found, loaded, what, model, split, out, fitted=fit_temperature, as_json=as_json)


def _load(model: str, fit_temperature: bool) -> Model:
    from atlas_wsi.models.registry import load_model, shipped_models

    if fit_temperature and model in shipped_models():
        raise typer.BadParameter(
            f"{model} is shipped with the program; give --model the path of a copy of its file"
        )
    return load_model(model)


def _tell(
    found: Evaluation,
    loaded: Model,
    what: str,
    model: str,
    split: str,
    out: Path | None,
    *,
    fitted: bool,
    as_json: bool,
) -> None:
    """Store the temperature that was fitted; write the report; print the figures."""
    from atlas_wsi.models.model import stored_dtype
    from atlas_wsi.training.report import write_report

    if fitted:
        loaded.save(model, dtype=stored_dtype(model))
    half = (
        f", the half of the {found.drawn} that the temperature was not fitted on" if fitted else ""
    )
    what = f"{what} ({split}{half})"
    files = write_report(found, loaded.card, out, what=what) if out is not None else []
    if as_json:
        console.print_json({"model": loaded.card.name, "split": split, **found.as_dict()})
        return
    console.say(f"{loaded.card.name} on {what}")
    for key, value in found.metrics.items():
        card = loaded.card.metrics.get(key) if found.unit in loaded.card.training else None
        note = f"   card {card:.1%}" if card is not None and split == "held-out" else ""
        console.say(f"  {key:<32}{value:7.1%}{note}")
    baseline = loaded.card.metrics.get("colour_baseline_balanced_accuracy")
    if baseline is not None and found.unit == "tiles":
        console.say(f"  {'color alone, balanced accuracy':<32}{baseline:7.1%}   (card)")
    for key, name in (("f1", "F1"), ("auroc", "AUROC"), ("auprc", "AUPRC")):
        score = found.scores[key]
        console.say(f"  {name:<32}{score.value:7.3f}   95% {score.low:.3f} to {score.high:.3f}")
    if found.drawn != "groups":
        console.say(f"  intervals are over {found.drawn}: all are of one group")
    console.say(
        f"  {'expected calibration error':<32}{found.reliability.ece:7.3f}   "
        f"temperature {found.temperature:g}"
    )
    console.print_confusion(found.classes, found.confusion.tolist())
    for file in files:
        console.say(f"  {file}")
