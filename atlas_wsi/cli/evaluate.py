"""`atlas-wsi evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from atlas_wsi.cli import console, options, train_options

if TYPE_CHECKING:
    from atlas_wsi import LabeledData

evaluate_app = typer.Typer(help="Measure a model on labeled data.", no_args_is_help=True)

ModelName = Annotated[
    str, typer.Option("--model", metavar="MODEL", help="Name of a bundled model, or a file.")
]
Split = Annotated[
    Literal["test", "all"] | None,
    typer.Option(
        help="test: the part that the model was not trained on; all: everything. Default: test on "
        "the training data, all on other data."
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", "-o", metavar="FOLDER", help="Folder for evaluation.json and evaluation.html."
    ),
]
FitTemperature = Annotated[
    bool,
    typer.Option(
        "--fit-temperature",
        help="Fit the temperature on half of the groups, store it in the model file, and measure "
        "on the other half.",
    ),
]


@evaluate_app.command()
def tiles(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder with one subfolder per class.")
    ],
    model: ModelName,
    split: Split = None,
    mpp: Annotated[
        float | None,
        typer.Option(
            "--mpp",
            metavar="UM",
            help="Micrometers per pixel of the tiles. Default: that of the training tiles.",
        ),
    ] = None,
    gsd: options.Gsd = None,
    mosaics: Annotated[
        bool,
        typer.Option(
            "--mosaics",
            help="Also measure borders, on mosaics of the tiles: dice with context and window by "
            "window.",
        ),
    ] = False,
    out: Out = None,
    fit_temperature: FitTemperature = False,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Measure a model on a folder of labeled tiles.

    On the training folder the test split is measured, on other folders everything. A tile's
    prediction is the mean of the class probabilities of its heatmap cells.
    """
    from atlas_wsi import read_tile_folder

    data = read_tile_folder(folder, mpp=options.one_mpp(mpp, gsd))
    settings = {"split": split, "fit_temperature": fit_temperature, "mosaics": mosaics}
    _measure(model, data, folder, out, settings, quiet=quiet, as_json=as_json)


@evaluate_app.command()
def regions(
    table: Annotated[
        Path,
        typer.Argument(
            metavar="TABLE",
            help="CSV with the columns slide, regions and optionally group, and mpp or gsd.",
        ),
    ],
    model: ModelName,
    split: Split = None,
    mpp: options.Mpp = None,
    gsd: options.Gsd = None,
    scale: options.Scale = None,
    image: options.ImageNumber = None,
    allow_truncated: options.AllowTruncated = False,
    column: train_options.Column = None,
    classes: train_options.ClassNames = None,
    memory: options.FixedMemory = "4GB",
    out: Out = None,
    fit_temperature: FitTemperature = False,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Evaluate heatmaps against labeled areas.

    Whole slides are predicted, as predict does; the cells in the labeled areas are compared with
    them.
    """
    from atlas_wsi import read_regions

    size = options.one_mpp(mpp, gsd)
    data = read_regions(
        table, mpp=size, scale=scale, image=image, allow_truncated=allow_truncated,
        column=column, classes=classes,
    )  # fmt: skip
    settings = {"split": split, "fit_temperature": fit_temperature, "memory": memory}
    _measure(model, data, table, out, settings, quiet=quiet, as_json=as_json)


@evaluate_app.command()
def slides(
    table: Annotated[
        Path,
        typer.Argument(
            metavar="TABLE",
            help="CSV with the columns slide, label and optionally group, split, and mpp or gsd.",
        ),
    ],
    model: ModelName,
    split: Split = None,
    mpp: options.Mpp = None,
    gsd: options.Gsd = None,
    scale: options.Scale = None,
    image: options.ImageNumber = None,
    allow_truncated: options.AllowTruncated = False,
    memory: options.FixedMemory = "4GB",
    out: Out = None,
    fit_temperature: FitTemperature = False,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Evaluate slide scores against labels of whole slides.

    A column split in the table states the test slides; otherwise the model's card does.
    """
    from atlas_wsi import read_slide_table

    size = options.one_mpp(mpp, gsd)
    data = read_slide_table(
        table, mpp=size, scale=scale, image=image, allow_truncated=allow_truncated
    )
    settings = {"split": split, "fit_temperature": fit_temperature, "memory": memory}
    _measure(model, data, table, out, settings, quiet=quiet, as_json=as_json)


def _measure(
    model: str,
    data: LabeledData,
    source: Path,
    out: Path | None,
    settings: dict[str, Any],
    *,
    quiet: bool,
    as_json: bool,
) -> None:
    """Measure a model, write the report and print the figures."""
    from atlas_wsi import evaluate

    with console.progress_of(Path(model).stem, quiet=quiet or as_json) as report:
        result = evaluate(model, data, **settings, progress=report)
    files = result.write(out) if out is not None else []
    card = result.card
    assert card is not None
    if as_json:
        console.print_json({"model": card.name, "split": result.split, **result.as_dict()})
        return
    console.say(f"{card.name} on {source}: {result.measured_on}")
    for key, value in result.metrics.items():
        known = card.metrics.get(key) if result.unit in card.training else None
        note = f"   card {known:.1%}" if known is not None and result.split == "test" else ""
        console.say(f"  {key:<32}{value:7.1%}{note}")
    baseline = card.metrics.get("color_baseline_balanced_accuracy")
    if baseline is not None and result.unit == "tiles":
        console.say(f"  {'color alone, balanced accuracy':<32}{baseline:7.1%}   (card)")
    for key, name in (("f1", "F1"), ("auroc", "AUROC"), ("auprc", "AUPRC")):
        score = result.scores[key]
        console.say(f"  {name:<32}{score.value:7.3f}   95% {score.low:.3f} to {score.high:.3f}")
    if result.resampled != "groups":
        console.say(f"  intervals are over {result.resampled}: all are of one group")
    console.say(
        f"  {'expected calibration error':<32}{result.reliability.ece:7.3f}   "
        f"temperature {result.temperature:g}"
    )
    console.print_confusion(result.classes, result.confusion.tolist())
    for file in files:
        console.say(f"  {file}")
